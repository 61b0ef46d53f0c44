"""audit: which labels of a data set are doubtful, and which images are duplicates of others.

audit.json         what was audited, and the figures once it is complete
folds/             the run of each fold, without its optimiser
labels.csv         all images, the most doubtful label of each split first
duplicates.csv     pairs of equal and of nearly equal images
predictions.npz    labels and out-of-fold probabilities of each split
audit.html         the galleries
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.duplicates import ALONE, TOGETHER, Pair, check_cosines, find_duplicates
from cifar_jax.data.load import image_files, load_splits
from cifar_jax.errors import InputError
from cifar_jax.recipe import differences
from cifar_jax.reports.audit_accuracy import Accuracy, accuracies, has_copy
from cifar_jax.reports.audit_labels import Judged, check_library, judge
from cifar_jax.reports.audit_models import ask_models, embed_images, folds_of, recipe_of_folds, train_models
from cifar_jax.reports.audit_page import audit_page
from cifar_jax.reports.audit_result import Audit
from cifar_jax.reports.audit_tables import DUPLICATES, LABELS, duplicate_rows, label_rows, written
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.events import Callback
from cifar_jax.runs.files import read_json, unsealed, write_arrays, write_bytes, write_sealed
from cifar_jax.runs.fit import FUNCTIONS
from cifar_jax.runs.identity import fixed_fields, identifying
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.runs.workdir import locked

FOLDS = 5
FORMAT = 1


def audit(
    recipe: Any,
    folder: str | Path | None = None,
    *,
    folds: int = FOLDS,
    test: bool = True,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    thumbnail_cosine: float | None = None,
    embedding_cosine: float | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **functions: Any,
) -> Audit:
    """Finds doubtful labels and duplicated images, and writes labels.csv, duplicates.csv and audit.html to the folder.

    The training set is divided into folds, and a model is trained without each (by `fit`, with the recipe's epochs and
    seed; recipe.data.seed divides). The images of a fold are judged by the model that has not seen them, those of the
    other splits by all models, whose probabilities are averaged. Labels are judged by confident learning
    (`audit_labels`), duplicates by their pixels, thumbnails and embeddings (`data.duplicates`).

    recipe: a recipe, or the file of one. folder: audits/<recipe> if the recipe is a file. The same call continues an
    audit that was interrupted. test: whether the test split is audited too; nothing is chosen by it. data: as for
    `fit`. thumbnail_cosine, embedding_cosine: from which on two images are near duplicates; both must be reached, and
    that of the embeddings is measured if it is not given (`audit_models.embed_images`). functions: model=..., loss=...
    as for `fit`.

    Raises InputError where a library is missing, the folder holds another audit, or the data cannot be divided.
    """
    check_library()
    check_cosines(thumbnail_cosine=thumbnail_cosine, embedding_cosine=embedding_cosine)
    if unknown := sorted(functions.keys() - set(FUNCTIONS)):
        raise TypeError(f"audit takes no argument {unknown[0]!r}")
    recipe, place = _recipe_and_folder(recipe, folder)
    recipe = recipe_of_folds(recipe, functions)
    splits = arrays.splits(data) if data is not None else load_splits(recipe.data, test, data_dir, progress)
    splits = {name: splits[name] for name in arrays.SPLITS if name in splits and (test or name != "test")}
    train = splits["train"]
    fold_of = folds_of(train, folds, recipe.data.seed)
    with locked(place):
        record = claim(place, recipe, folds, splits)
        options: dict[str, Any] = {"functions": functions, "callbacks": callbacks, "progress": progress}
        runs = train_models(recipe, place, train, fold_of, seed=recipe.data.seed, **options)
        said = ask_models([run.classifier for run in runs], splits, fold_of)
        judged = {name: judge(split.labels, said[name]) for name, split in splits.items()}
        files = image_files(recipe.data, splits, progress) if data is None else {}
        pairs, cosines = _duplicates(runs[0].classifier, splits, thumbnail_cosine, embedding_cosine)
        found = Audit(place, splits, judged, fold_of, pairs, measured(splits, judged, pairs), files)
        write(found, {**record, **cosines})
    return found


def _duplicates(
    model: Classifier, splits: Mapping[str, arrays.Split], thumbnail: float | None, embedding: float | None
) -> tuple[list[Pair], dict[str, float | None]]:
    """The duplicates among all images, and the cosines from which on two are near; None is chosen here."""
    images = np.concatenate([split.images for split in splits.values()])
    embedded = embed_images(model, images, len(splits["train"].labels))
    if embedded and embedding is not None:
        embedded = replace(embedded, threshold=embedding)
    cosine = thumbnail or (TOGETHER if embedded else ALONE)
    pairs = find_duplicates(images, [embedded] if embedded else [], thumbnail_cosine=cosine)
    return pairs, {"thumbnail_cosine": cosine, "embedding_cosine": embedded.threshold if embedded else None}


def _recipe_and_folder(recipe: Any, folder: str | Path | None) -> tuple[Any, Path]:
    if isinstance(recipe, str | Path):
        return load_recipe(recipe), Path(folder or f"audits/{Path(recipe).stem}")
    if folder is None:
        raise InputError("an audit needs a folder; give folder='audits/NAME'")
    return recipe, Path(folder)


def claim(folder: Path, recipe: Any, folds: int, splits: Mapping[str, arrays.Split]) -> dict[str, Any]:
    """audit.json of an audit that begins or goes on. Raises InputError where the folder holds something else."""
    wanted: dict[str, Any] = {
        "format": FORMAT,
        "folds": folds,
        "recipe": fixed_fields(recipe),
        "data": {name: split.digest for name, split in splits.items()},
    }
    path = folder / "audit.json"
    if not path.exists():
        if (folder / "run.json").exists() or (folder / "study.json").exists():
            raise InputError(f"'{folder}' holds a run or a study; name another folder for the audit")
        write_sealed(path, {**wanted, "complete": False})
        return wanted
    stored = unsealed(read_json(path))
    if stored is None:
        raise InputError(f"{path} is damaged; audit in another folder, or remove this one")
    parts = [{"folds": each["folds"], "recipe": identifying(each["recipe"])} for each in (stored, wanted)]
    if changed := differences(*parts):
        raise InputError(f"'{folder}' holds another audit ({'; '.join(changed)}); name another folder")
    if stored["data"].get("train") != wanted["data"]["train"]:
        raise InputError(f"'{folder}' holds an audit of other training images or labels; name another folder")
    return wanted


def measured(splits: Mapping[str, arrays.Split], judged: Mapping[str, Judged], pairs: Sequence[Pair]) -> list[Accuracy]:
    """The accuracies of each split: of out-of-fold predictions on "train", of the mean over the models elsewhere."""
    counts = [len(split.labels) for split in splits.values()]
    trained = np.repeat([name == "train" for name in splits], counts)
    copied = np.split(has_copy(pairs, trained), np.cumsum(counts)[:-1])
    rows = []
    for (name, each), own in zip(judged.items(), copied, strict=True):
        rows += accuracies(name, each.correct, each.doubtful, own)
    return rows


def write(found: Audit, record: Mapping[str, Any]) -> None:
    """The files of a complete audit; audit.json, last, says that all are there."""
    page = audit_page(found)  # first: it may miss a library
    folder = found.folder
    predictions: dict[str, np.ndarray] = {"train_folds": found.folds}
    for name, judged in found.labels.items():
        predictions |= {f"{name}_labels": judged.labels, f"{name}_probabilities": judged.probabilities}
    write_arrays(folder / "predictions.npz", predictions)
    write_bytes(folder / "labels.csv", written(LABELS, label_rows(found)))
    write_bytes(folder / "duplicates.csv", written(DUPLICATES, duplicate_rows(found)))
    write_bytes(folder / "audit.html", page.encode())
    write_sealed(folder / "audit.json", {**record, "complete": True, **found.figures()})
