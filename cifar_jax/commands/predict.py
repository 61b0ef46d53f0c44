"""Name the classes of image files with a trained run, and sort the files by them.

PATHS are files, folders (all images at any depth), patterns such as 'photos/**/*.jpg', and - for a list on standard
input. Rows are written as they come; probabilities are those of the run's temperature, where it was calibrated.
"""

import argparse
import sys
from pathlib import Path

import cifar_jax as cj

_out: Path | None = None  # of the call that this process makes, for `last_words`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="image files, folders, patterns, or - for a list")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--top", type=int, default=3, help="most probable classes of each image; 3")
    parser.add_argument("--format", help="table, jsonl or csv; that of the name of --out, else table")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="P", help="images below it are 'unsure'; 0")
    parser.add_argument("--views", help="one, mirror, flips or mirror_shift; the recipe's if not given")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the rows there; to standard output if not given"
    )
    parser.add_argument("--copy_to", type=Path, metavar="DIR", help="sort the files into DIR/CLASS")
    parser.add_argument("--copy_as", default="copy", help="copy, symlink or hardlink; copy")
    parser.add_argument(
        "--by", default="class", help="class; or outcome, where folders give the true class: correct, wrong and missed"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted call: rows of --out are kept")
    parser.add_argument("--force", action="store_true", help="replace --out; add to a --copy_to that is not empty")


def run(options: argparse.Namespace) -> int:
    global _out
    from cifar_jax.inference.predict import Options, predict_files

    suffix = options.out.suffix.lower() if options.out else ""
    options.format = options.format or (suffix[1:] if suffix in (".csv", ".jsonl") else "table")
    given = vars(options)
    names = ("top", "threshold", "views", "format", "out", "copy_to", "copy_as", "by", "resume", "force")
    chosen = Options(**{name: given[name] for name in names})
    listed = read_standard_input() if "-" in options.paths else []
    classifier = cj.load_classifier(options.workdir)
    if options.format != "table":
        _out = options.out
    summary = predict_files(classifier, [path for path in options.paths if path != "-"], chosen, listed)
    print(summary, file=sys.stderr)
    return 0


def read_standard_input() -> list[str]:
    """The paths of a list. Raises InputError where there is none."""
    from cifar_jax.data.image_files import read_list

    if sys.stdin is None or sys.stdin.isatty():
        raise cj.InputError(
            "- reads a list of paths from standard input, and there is none; pipe one path a line to it"
        )
    try:
        return read_list(sys.stdin.buffer.read())
    except OSError as error:
        raise cj.InputError(f"the list on standard input cannot be read ({error.strerror or error})") from error


def last_words() -> str:
    """What a signal leaves. Imports nothing."""
    return f"stopped; the rows in {_out} are kept, and the same command with --resume goes on" if _out else "stopped"
