"""How long training and inference take beside PyTorch on this machine: both sides warm, taking turns, in one run.

    python benchmarks/against_torch.py step --torch-python=PATH              # a training step of each network
    python benchmarks/against_torch.py epochs --epochs=1 --torch-python=PATH # configs/cnn.py on CIFAR-10
    python benchmarks/against_torch.py inference --torch-python=PATH         # 256 images, and one
    python benchmarks/against_torch.py gpu --torch-python=PATH               # steps on an NVIDIA GPU, in bfloat16
    python benchmarks/against_torch.py step --smoke                          # tiny, for errors only

--torch-python is the Python of an environment that has torch and numpy; this one's by default. CIFAR-10 is found as the
training finds it (TFDS_DATA_DIR). Each measurement writes results/<what>_<network>.json, and the tables over them all.
"""

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from measuring import OthersClock, machine, ratio, turns
from report import write_tables
from worker import HERE, Worker

# Batch size (0: that of configs/cnn.py) and steps a turn, for turns of 1 to 3 s on two cores.
STEPS = {
    "tutorial": (128, 200),
    "two_conv": (128, 40),
    "cnn": (0, 200),
    "resnet20": (128, 8),
    "speedrun94": (250, 4),
    "vgg16_bn": (64, 4),
    "wide_resnet16_4": (64, 4),
    "resnet18": (64, 4),
}
# The same on a GPU, for turns of about two seconds.
GPU = {"resnet18": (512, 80), "wide_resnet16_4": (512, 80), "vgg16_bn": (512, 120), "resnet20": (512, 240)}
# Calls a turn by batch size, for turns of about a second.
CALLS = {
    "cnn": {256: 40, 1: 1000},
    "resnet20": {256: 8, 1: 300},
    "speedrun94": {256: 4, 1: 200},
    "resnet18": {256: 2, 1: 100},
}
SMOKE: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "two_conv": {"width": 4},
    "cnn": {"width": 4, "hidden": 8},
    "resnet20": {"width": 4, "stages": (1, 1)},
    "speedrun94": {"widths": (4, 4, 8)},
    "vgg16_bn": {"width": 4, "stages": (1, 1)},
    "wide_resnet16_4": {"width": 2, "widen": 2, "depth": 10},
    "resnet18": {"width": 4, "stages": (1, 1)},
}
# And the networks of each.
KINDS = {"step": tuple(STEPS), "epochs": ("cnn",), "inference": tuple(CALLS), "gpu": tuple(GPU)}

# Largest difference that two networks that are alike may have: of their weights after a few steps from the same ones,
# as a share of the way, and of their logits, as a share of the largest. Seen: 1e-6 without batch normalisation, 0.7% in
# vgg16_bn, where PyTorch's own float32 and float64 part by 1.7%; a convolution padded at the other side made 30%.
ALIKE = 0.05

# What launch.py sets for ours: glibc keeps the memory that a step frees.
MALLOC = "mmap_max=0 trim_threshold=2147483647 top_pad=268435456 arena_max=1"
FAST = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{setting}" for setting in MALLOC.split())}


def main() -> int:
    options = parse()
    torch_python = options.torch_python if has_torch(options.torch_python) else None
    if not torch_python:
        message = f"{options.torch_python} has no torch; give --torch-python=PATH of an environment that has it"
        print(f"note: {message}; only our side runs" if options.smoke else f"error: {message}", file=sys.stderr)
        if not options.smoke:
            return 2
    if options.what == "gpu" and torch_python and not options.smoke and not gpu(torch_python):
        print(f"error: the torch of {torch_python} sees no NVIDIA GPU; 'step' measures processors", file=sys.stderr)
        return 2
    if options.smoke:
        smoke(options.what, options.models, torch_python)
        return 0
    failed = False
    for name in options.models:
        try:
            for result in measure(options.what, name, torch_python, options.rounds, options.epochs):
                print(describe(result), flush=True)
                write(result)
        except RuntimeError as error:  # the next network may do
            failed = True
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"some of {', '.join(STEPS)}; all if not given")
    parser.add_argument("--epochs", type=int, default=1, help="epochs a turn, of epochs")
    parser.add_argument("--rounds", type=int, default=3, help="each gives every side two turns: A B C C B A")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--smoke", action="store_true", help="tiny networks and made-up images; writes nothing")
    options = parser.parse_args()
    options.models = options.models or KINDS[options.what]
    for name in options.models:
        if name not in KINDS[options.what]:
            parser.error(f"'{name}' is no network of {options.what}; those are {', '.join(KINDS[options.what])}")
    return options


def has_torch(python: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    return False


def gpu(torch_python: str) -> str:
    """The name of the GPU that its torch sees; empty without one."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return subprocess.run([torch_python, "-c", code], capture_output=True, text=True).stdout.strip()


def smoke(what: str, models: tuple[str, ...], torch_python: str | None) -> None:
    """Everything once, on tiny networks, in the same processes: for errors only."""
    with started(what, torch_python) as workers:
        for name in models:
            model = {"name": name, **SMOKE[name]}
            if what == "inference":
                result = measure_inference(workers, model, batch_size=4, calls=2, rounds=1)
            else:
                result = measure_training(workers, what, model, batch_size=8, steps=2, epochs=1, rounds=1)
            differences = ", ".join(f"{form} {value:.1g}" for form, value in result["differences"].items())
            print(f"{what} {name}: runs" + (f"; difference to {differences}" if differences else ""), flush=True)


def measure(what: str, name: str, torch_python: str | None, rounds: int, epochs: int = 1) -> Iterator[dict[str, Any]]:
    """The results of one network, each of processes of its own, so that the peak of memory is this network's."""
    model = {"name": name}
    if what == "inference":
        for batch_size, calls in CALLS[name].items():
            with started(what, torch_python) as workers:
                yield measure_inference(workers, model, batch_size, calls, rounds)
    else:
        batch_size, steps = {"step": STEPS, "gpu": GPU}.get(what, {}).get(name, (0, 0))
        with started(what, torch_python) as workers:
            if what == "gpu" and workers["ours"].ask("describe")["device"] == "cpu":
                raise RuntimeError("JAX sees no GPU; install jax[cuda13]")
            yield measure_training(workers, what, model, batch_size, steps, epochs, rounds)


@contextlib.contextmanager
def started(what: str, torch_python: str | None) -> Iterator[dict[str, Worker]]:
    """Our worker, and PyTorch's two where there is one."""
    workers = {"ours": Worker(sys.executable, "ours.py")}
    forms = {"eager": {}, "compiled": {}} if what == "gpu" else {"plain": {}, "fast": FAST}
    if torch_python:
        workers |= {form: Worker(torch_python, "torch_peer.py", variables) for form, variables in forms.items()}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def prepared(workers: dict[str, Worker], command: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Every side's answer to the command, and how far each peer's is from ours. Raises RuntimeError where it is far."""
    with tempfile.TemporaryDirectory() as folder:
        ready = {"ours": workers["ours"].ask(command, folder=folder, **arguments)}
        for form in list(workers)[1:]:
            ready[form] = workers[form].ask(command, form=form, folder=folder, setting=ready["ours"]["setting"])
    differences = {form: float(f"{ready[form]['difference']:.2g}") for form in list(workers)[1:]}
    if not all(difference <= ALIKE for difference in differences.values()):
        name = arguments["model"]["name"]
        raise RuntimeError(f"{name}: the sides do not compute the same; their differences to ours are {differences}")
    return ready, differences


def measure_training(
    workers: dict[str, Worker],
    what: str,
    model: dict[str, Any],
    batch_size: int,
    steps: int,
    epochs: int,
    rounds: int,
) -> dict[str, Any]:
    """Epochs of `steps` steps on made-up images, or of configs/cnn.py's data set where `steps` is 0."""
    ready, differences = prepared(workers, "prepare", model=model, batch_size=batch_size, steps=steps)
    train = {side: functools.partial(worker.ask, "train", epochs=epochs) for side, worker in workers.items()}
    if what != "epochs":  # an epoch is long enough to need no warming up
        turns(train, 1)
    clock = OthersClock(workers.values())
    answers = turns(train, rounds)
    others = clock.share()
    sides = {side: worker.ask("describe") for side, worker in workers.items()}
    counted = ready["ours"]["steps"] * epochs
    for side, given in answers.items():
        sides[side] |= {
            "ready_seconds": round(ready[side]["ready_seconds"], 2),
            "step_ms": [round(answer["seconds"] / counted * 1e3, 4) for answer in given],
            "loss": given[-1]["loss"],
            "accuracy": given[-1]["accuracy"],
        }
    return {
        "what": what,
        "setting": ready["ours"]["setting"],
        "parameters": ready["ours"]["parameters"],
        "differences": differences,
        "steps_a_turn": counted,
        "epochs_a_turn": epochs,
        **({"gpu": sides["ours"]["device"]} if what == "gpu" else {}),
        **machine(),
        "others_share_of_cpu": others,
        "sides": sides,
        "ratios": {side: ratio(sides["ours"]["step_ms"], sides[side]["step_ms"]) for side in list(sides)[1:]},
    }


def measure_inference(
    workers: dict[str, Worker], model: dict[str, Any], batch_size: int, calls: int, rounds: int
) -> dict[str, Any]:
    """Logits of made-up images, uint8 in NumPy, back in NumPy. The side "program" is ours without what surrounds it:
    the compiled function on images that lie on the device."""
    ready, differences = prepared(workers, "prepare_inference", model=model, batch_size=batch_size)
    infer = {side: functools.partial(worker.ask, "infer", calls=calls) for side, worker in workers.items()}
    infer["program"] = functools.partial(workers["ours"].ask, "infer", calls=calls, alone=True)
    turns(infer, 1)
    clock = OthersClock(workers.values())
    answers = turns(infer, rounds)
    others = clock.share()
    sides = {side: workers.get(side, workers["ours"]).ask("describe") for side in infer}
    for side, given in answers.items():
        every = [seconds * 1e3 for answer in given for seconds in answer["seconds"]]
        sides[side] |= {
            "ready_seconds": round(ready.get(side, ready["ours"])["ready_seconds"], 2),
            "call_ms": [round(statistics.median(answer["seconds"]) * 1e3, 4) for answer in given],
            "median_ms": round(statistics.median(every), 4),
            "p95_ms": round(statistics.quantiles(every, n=20)[-1], 4),
        }
    return {
        "what": "inference",
        "setting": ready["ours"]["setting"],
        "parameters": ready["ours"]["parameters"],
        "differences": differences,
        "calls_a_turn": calls,
        **machine(),
        "others_share_of_cpu": others,
        "sides": sides,
        "ratios": {side: ratio(sides["ours"]["call_ms"], sides[side]["call_ms"]) for side in list(sides)[1:]},
    }


def file_name(result: dict[str, Any]) -> str:
    """Of a result, below results/."""
    setting = result["setting"]
    size = f"_batch{setting['batch_size']}" if result["what"] == "inference" else ""
    return f"{result['what']}_{setting['model']['name']}{size}.json"


def write(result: dict[str, Any]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / file_name(result)).write_text(json.dumps(result, indent=2) + "\n")
    write_tables(results)


def describe(result: dict[str, Any]) -> str:
    lines = [f"{result['what']} {result['setting']['model']['name']}, batch {result['setting']['batch_size']}:"]
    for side, figures in result["sides"].items():
        times, unit = (figures["step_ms"], "step") if "step_ms" in figures else (figures["call_ms"], "call")
        line = f"  {side:7} {statistics.median(times):8.3f} ms a {unit} ({min(times):.3f} to {max(times):.3f})"
        lines.append(f"{line}, ready in {figures['ready_seconds']} s, peak {figures['peak_rss_mib']} MiB")
    for side, figures in result["ratios"].items():
        low, high = figures["min"], figures["max"]
        lines.append(f"  ours / {side}: {figures['median']} ({low} to {high}, n={figures['n']})")
    return "\n".join([*lines, f"  other programs took {result['others_share_of_cpu']:.0%} of the processors"])


if __name__ == "__main__":
    sys.exit(main())
