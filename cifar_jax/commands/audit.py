"""Find doubtful labels and duplicated images of a data set, by models that are trained on folds of it.

Writes labels.csv, duplicates.csv, predictions.npz and audit.html to the folder. The same command continues an audit
that was interrupted. It needs the extra `audit`.
"""

import argparse
import contextlib
import json
from pathlib import Path

import cifar_jax as cj

_folder: Path | None = None  # of the audit of this process, for `last_words`; None before it trains
_folds = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="recipe: a .py or a run's recipe.json")
    parser.add_argument("--folder", help="of the audit; audits/<recipe> if not given")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument("--folds", type=int, default=5, help="models, each trained without one part; 5")
    parser.add_argument("--without_test", action="store_true", help="do not look at the test split")
    parser.add_argument("--thumbnail_cosine", type=float, help="from which on thumbnails are near duplicates")
    parser.add_argument("--embedding_cosine", type=float, help="likewise for embeddings; both are needed")


def run(options: argparse.Namespace) -> int:
    if options.folder == "":
        raise cj.InputError("--folder is empty; name a folder")
    if options.folder is None and options.config.endswith(".json"):
        raise cj.InputError(f"--config={options.config} is a run's recipe; name a --folder for the audit")
    folder = Path(options.folder or f"audits/{Path(options.config).stem}")
    recipe = cj.load_recipe(options.config, options.changes)
    names = ("thumbnail_cosine", "embedding_cosine")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    def remember(event: cj.Event) -> None:
        """A callback: from its first call on, the folder holds the audit of this process and no other."""
        global _folder, _folds
        _folder, _folds = folder, options.folds

    chosen = {"folds": options.folds, "test": not options.without_test, "data_dir": options.data_dir}
    print(cj.audit(recipe, folder, callbacks=[remember], **chosen, **given))
    print(
        f"\nThe audit is in {folder}: audit.html, labels.csv, duplicates.csv, predictions.npz, and a run for each fold."
    )
    return 0


def last_words() -> str:
    """What a signal leaves of the audit, in one sentence, from the files of its folder. Imports nothing."""
    if _folder is None:
        return ""
    done = 0
    for number in range(_folds):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            done += bool(json.loads((_folder / "folds" / str(number) / "run.json").read_text()).get("complete"))
    return f"stopped; {done} of {_folds} folds are trained, and the same command continues"
