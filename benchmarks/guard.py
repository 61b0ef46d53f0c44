"""Has anything become slower, beside its peer? Measures every ratio that this machine can, against the committed ones.

    python benchmarks/guard.py --torch-python=PATH    # PATH as for against_torch.py
    python benchmarks/guard.py --smoke                # everything once, tiny, for errors only; needs no torch

What is measured is written to results/; git holds the figures that it is compared with. A ratio that seems more than
10% worse is measured a second time, and counts as worse where it is so both times. Exit code 1 then, 0 otherwise; what
could not be measured or compared is named with the reason.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import against_torch
from worker import HERE

WORSE = 1.1  # a median ratio above this many times the committed one
BUSY = 0.05  # share of the processors that others may take: figures beyond mean nothing

Result = dict[str, Any]


def main() -> int:
    options = parse()
    torch_python = options.torch_python if against_torch.has_torch(options.torch_python) else None
    no_torch = f"{options.torch_python} has no torch; give --torch-python=PATH of an environment that has it"
    if options.smoke:
        if not torch_python:
            print(f"note: {no_torch}; only our side runs")
        for what in ("step", "inference"):
            against_torch.smoke(what, against_torch.KINDS[what], torch_python)
        return 0
    known = committed()
    worse, reasons = [], dict.fromkeys(known, "it has no measurement here")
    for what in options.what:
        for name in against_torch.KINDS[what]:
            if not torch_python or (what == "gpu" and not against_torch.gpu(torch_python)):
                reason = "its torch sees no NVIDIA GPU" if torch_python else no_torch
                reasons |= dict.fromkeys(files_of(what, name, known), reason)
                continue
            for result in measured(what, name, torch_python, options.rounds, reasons, known):
                worse += judge(result, known, reasons, torch_python, options.rounds)
    reasons |= {file: "it was left out by --what" for file in reasons if file.split("_")[0] in left_out(options.what)}
    for file, reason in sorted(reasons.items()):
        print(f"not compared: {file}: {reason}")
    for line in worse:
        print(f"worse: {line}")
    if not worse:
        print("nothing that was compared became worse by more than 10%")
    return 1 if worse else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=against_torch.KINDS, default=list(against_torch.KINDS))
    parser.add_argument("--rounds", type=int, default=3, help="each gives every side two turns")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--smoke", action="store_true", help="tiny networks and made-up images; compares nothing")
    return parser.parse_args()


def committed() -> dict[str, Result]:
    """File name -> result, as the last commit has them; nothing, with a note, where there is no git."""
    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
    listed = git("ls-tree", "--name-only", "HEAD", "results/")
    if listed.returncode:
        print(f"note: no committed figures to compare with ({listed.stderr.strip()})")
    files = [file for file in listed.stdout.split() if file.endswith(".json")]
    results = {file.removeprefix("results/"): json.loads(git("show", f"HEAD:./{file}").stdout) for file in files}
    return {file: result for file, result in results.items() if "ratios" in result}


def left_out(what: list[str]) -> set[str]:
    return set(against_torch.KINDS) - set(what)


def files_of(what: str, name: str, known: dict[str, Result]) -> list[str]:
    """The committed results of one kind and network."""
    return [
        file for file, result in known.items() if result["what"] == what and result["setting"]["model"]["name"] == name
    ]


def measured(
    what: str, name: str, torch_python: str, rounds: int, reasons: dict[str, str], known: dict[str, Result]
) -> Iterator[Result]:
    """The results of one network; where a side fails, the reason why there are none."""
    try:
        yield from against_torch.measure(what, name, torch_python, rounds)
    except RuntimeError as error:  # CIFAR-10 is not prepared, for instance; the worker's own words stand above
        reasons |= dict.fromkeys(files_of(what, name, known) or [f"{what} {name}"], str(error))


def judge(
    result: Result, known: dict[str, Result], reasons: dict[str, str], torch_python: str, rounds: int
) -> list[str]:
    """Writes a result, and tells what became worse, twice."""
    file = against_torch.file_name(result)
    print(against_torch.describe(result), flush=True)
    reason = incomparable(result, known.get(file))
    write(result)
    if reason:
        reasons[file] = reason
        return []
    reasons.pop(file, None)
    suspects = worse_ratios(result, known[file])
    if not suspects:
        return []
    print(f"{file}: {', '.join(suspects)}; once more", flush=True)
    for again in against_torch.measure(result["what"], result["setting"]["model"]["name"], torch_python, rounds):
        if against_torch.file_name(again) == file:
            print(against_torch.describe(again), flush=True)
            write(again)
            if reason := incomparable(again, known[file]):
                reasons[file] = f"it seemed worse, and the second time {reason}"
                return []
            both = suspects.keys() & worse_ratios(again, known[file]).keys()
            return [f"{file}: {suspects[side]}" for side in sorted(both)]
    return []


def busy(result: Result) -> bool:
    return result["others_share_of_cpu"] > BUSY  # False where the system does not say


def write(result: Result) -> None:
    """To results/, unless the machine was busy: such a figure is worth less than the one that is there."""
    if not busy(result):
        against_torch.write(result)


def incomparable(result: Result, before: Result | None) -> str | None:
    """Why a result says nothing about the committed one; None where it does."""
    if busy(result):
        return f"other programs took {result['others_share_of_cpu']:.0%} of the processors"
    if before is None:
        return "it is not committed yet"
    for field in ("gpu",) if result["what"] == "gpu" else ("cpu", "cores"):
        if result[field] != before[field]:
            return f"{field} is {result[field]} here, and was {before[field]}"
    return None


def worse_ratios(result: Result, before: Result) -> dict[str, str]:
    """Side -> how its ratio grew, for those that grew by more than 10%."""
    grown = {}
    for side, figures in result["ratios"].items():
        now, then = figures["median"], before["ratios"].get(side, {}).get("median")
        if then is not None and now > WORSE * then:
            grown[side] = f"ours / {side} is {now:.3f}, and was {then:.3f}"
    return grown


if __name__ == "__main__":
    sys.exit(main())
