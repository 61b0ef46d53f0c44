"""Search by similarity: `build_index` embeds a folder or a split, `find_similar` answers with its nearest images.

Images are compared by the cosine of their embeddings, the inputs of the model's last layer.
"""

import functools
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_jax.data.arrays import Split
from cifar_jax.data.image_files import find_images, read_images, shown
from cifar_jax.data.load import load_split
from cifar_jax.errors import InputError
from cifar_jax.inference.index_files import (
    NAME,
    Index,
    Item,
    add_part,
    described,
    load_index,
    new_record,
    write_record,
    written,
)
from cifar_jax.inference.search import EXACT_ROWS, new_graph, normalised
from cifar_jax.inference.sheet import SIDE, Tile, contact_sheet
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.workdir import locked

SPLITS = ("train", "validation", "test")
ROWS = 65536  # of a part
STEP = 1000  # images of a split that are embedded between two moves of the progress bar
NAMED = 5  # files that a warning names


@dataclass(frozen=True)
class Built:
    """What `build_index` did."""

    index: Index
    added: int
    kept: int  # images of the source that were there already
    skipped: int  # files that could not be read

    def __str__(self) -> str:
        parts = [
            f"{self.added} image{'s' * (self.added != 1)} added",
            *([f"{self.kept} were there already"] if self.kept else []),
        ]
        parts += [f"{self.skipped} could not be read"] if self.skipped else []
        return f"{'; '.join(parts)}; {len(self.index)} in {self.index.folder}"


@dataclass(frozen=True)
class Neighbour:
    item: Item  # of the index
    similarity: float  # cosine, at most 1
    row: int  # of the index


@dataclass(frozen=True)
class Answer:
    """The nearest images of one query, the nearest first; or why it could not be read."""

    path: str
    neighbours: tuple[Neighbour, ...]
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        found = [
            {"path": each.item["path"], "similarity": each.similarity}
            | ({"label": each.item["label"]} if "label" in each.item else {})
            for each in self.neighbours
        ]
        return {"query": self.path, "neighbours": found, "error": self.error or None}

    def __str__(self) -> str:
        """The query, and a line for each neighbour: similarity, place, and label where it is known."""
        if self.error:
            return f"{shown(self.path)}\n  unreadable: {shown(self.error)}"
        lines = [f"  {each.similarity:.4f}  {described(each.item)}" for each in self.neighbours]
        return "\n".join([shown(self.path), *lines])


def build_index(
    classifier: Classifier,
    source: str | Path,
    out: str | Path,
    *,
    workdir: str | Path | None = None,
    add: bool = False,
    force: bool = False,
    approximate: bool = False,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> Built:
    """An index of the images of `source`, a folder or "train", "validation" or "test" of the model's data set.

    `workdir` is where the model was loaded from; queries are embedded by it. `add` adds to an index that exists: only
    images that are new or were changed are embedded. `force` replaces one. `approximate` adds a graph, which searches
    more than a million images in milliseconds, and not quite exactly.

    Raises InputError where no images are found, `out` exists and neither is given, it is of another model, or usearch
    is missing.
    """
    out, workdir = Path(out), Path(workdir) if workdir is not None else None
    before = _before(classifier, out, add, force)
    if approximate:
        new_graph(1)  # raises where the library is missing
    if before is not None:
        with locked(out):
            before = load_index(out)
            return _extend(classifier, str(source), out, before, approximate, data_dir, progress)
    # A new index is written beside its place: the folder appears when all is there.
    writing = out.absolute().with_name(f".{out.absolute().name}.writing")
    with locked(writing):
        for path in writing.iterdir():
            if path.name != ".lock":
                path.unlink()
        dimension = classifier.embeddings(np.zeros((1, *classifier.recipe.data.image_shape), np.uint8)).shape[-1]
        empty = Index(writing, new_record(classifier, workdir, dimension), [], [])
        try:
            built = _extend(classifier, str(source), writing, empty, approximate, data_dir, progress)
        except BaseException:
            shutil.rmtree(writing)
            raise
        old = writing.with_name(f"{writing.name}.old")
        if out.exists():
            os.rename(out, old)
        os.rename(writing, out)
        shutil.rmtree(old, ignore_errors=True)
    return Built(load_index(out), built.added, built.kept, built.skipped)


def _before(classifier: Classifier, out: Path, add: bool, force: bool) -> Index | None:
    """The index that is added to; None where a new one is made. Raises InputError where neither may be."""
    if add and force:
        raise InputError("--add keeps the index and --force replaces it; give one of them")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / NAME).exists():
        raise InputError(f"'{out}' exists and is no index; name another folder")
    if not (add or force):
        raise InputError(f"'{out}' holds an index; add new images with --add, replace it with --force, or name another")
    if force:
        return None
    index = load_index(out)
    index.check_model(classifier)
    return index


def _extend(
    classifier: Classifier,
    source: str,
    folder: Path,
    before: Index,
    approximate: bool,
    data_dir: str | Path | None,
    progress: bool,
) -> Built:
    record = {**before.record, "parts": list(before.record["parts"]), "splits": dict(before.record["splits"])}
    skipped: list[str] = []
    if source in SPLITS:
        split = load_split(classifier.recipe.data, source, data_dir, progress)
        kept, batches = _of_split(classifier, split, source, record, progress)
    else:
        kept, batches = _of_files(classifier, source, before, skipped, progress)
    added, graph_rows = 0, []
    for embeddings, items in _in_parts(batches):
        add_part(folder, record, embeddings, items)
        graph_rows.append(embeddings)
        added += len(items)
    if skipped:
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        told = f"{len(skipped)} files are left out: {', '.join(skipped[:NAMED])}{more}"
        warnings.warn(told, stacklevel=3)
    if not added and not len(before):
        raise InputError(f"none of the images in '{shown(source)}' can be read, so there is nothing to index")
    if approximate or record["graph"]:
        record["graph"] = _with_graph(folder, before, graph_rows)
    elif added and len(before) + added > EXACT_ROWS:
        warnings.warn(f"more than {EXACT_ROWS:,} images: --approximate makes searching faster", stacklevel=3)
    write_record(folder, record)
    if before.record["graph"] and before.record["graph"] != record["graph"]:
        (folder / before.record["graph"]["file"]).unlink()
    return Built(load_index(folder), added, kept, len(skipped))


def _of_split(
    classifier: Classifier, split: Split, name: str, record: dict[str, Any], progress: bool
) -> tuple[int, Iterator[tuple[np.ndarray, list[Item]]]]:
    """How many images are there already, and the embeddings of the others with their items, in batches."""
    if (known := record["splits"].get(name, split.digest)) != split.digest:
        raise InputError(f"the index holds split '{name}' with digest {known}; the data set now has {split.digest}")
    if name in record["splits"]:
        return len(split.images), iter(())
    record["splits"][name] = split.digest

    def batches() -> Iterator[tuple[np.ndarray, list[Item]]]:
        with tqdm(total=len(split.images), desc="embed", unit=" images", disable=not progress) as bar:
            for start in range(0, len(split.images), STEP):
                embeddings = normalised(classifier.embeddings(split.images[start : start + STEP]))
                labels = split.labels[start : start + STEP].tolist()
                numbered = enumerate(labels, start)
                yield (
                    embeddings,
                    [
                        {"path": f"{name}/{index}", "split": name, "index": index, "label": split.classes[label]}
                        for index, label in numbered
                    ],
                )
                bar.update(len(labels))

    return 0, batches()


def _of_files(
    classifier: Classifier, source: str, before: Index, skipped: list[str], progress: bool
) -> tuple[int, Iterator[tuple[np.ndarray, list[Item]]]]:
    """As `_of_split`; files that cannot be read are added to `skipped` while it goes on."""
    found = [_item(path) for path in find_images([source])]
    known = {path: before.items[row] for path, row in before.rows.items()}
    new = {item["path"]: item for item in found if known.get(item["path"]) != item}

    def batches() -> Iterator[tuple[np.ndarray, list[Item]]]:
        with tqdm(total=len(new), desc="embed", unit=" images", disable=not progress) as bar:
            for batch in classifier.of_files(classifier.embeddings, list(new)):
                yield (
                    normalised(batch.values),
                    [new[path] for path, reason in zip(batch.paths, batch.reasons, strict=True) if reason is None],
                )
                reasons = zip(batch.paths, batch.reasons, strict=True)
                skipped.extend(f"{shown(path)} ({reason})" for path, reason in reasons if reason is not None)
                bar.update(len(batch.paths))

    return len(found) - len(new), batches()


def _item(path: str) -> Item:
    stat = os.stat(path)
    return {"path": os.path.abspath(path), "size": stat.st_size, "time_ns": stat.st_mtime_ns}


def _in_parts(batches: Iterator[tuple[np.ndarray, list[Item]]]) -> Iterator[tuple[np.ndarray, list[Item]]]:
    """The batches, float16, joined to parts of at least `ROWS` rows; the last may have fewer."""
    embeddings: list[np.ndarray] = []
    items: list[Item] = []
    for own, more in batches:
        embeddings.append(own.astype(np.float16))
        items += more
        if len(items) >= ROWS:
            yield np.concatenate(embeddings), items
            embeddings, items = [], []
    if items:
        yield np.concatenate(embeddings), items


def _with_graph(folder: Path, before: Index, added: Sequence[np.ndarray]) -> dict[str, Any]:
    """The graph with the new rows, written; its entry in index.json."""
    graph = before.graph.graph if before.graph else new_graph(before.record["dimension"])
    row = len(graph)
    missing = [*(before.embeddings if not row else []), *added]
    for part in missing:
        graph.add(np.arange(row, row + len(part)), np.asarray(part))
        row += len(part)
    return {**written(folder, f"graph-{row}.usearch", bytes(graph.save())), "rows": row}


def find_similar(
    index: Index, classifier: Classifier, queries: Sequence[str], *, top: int = 10, exact: bool = False
) -> list[Answer]:
    """The `top` nearest images of each query; queries are files, folders or patterns (see `find_images`).

    A query that is in the index finds itself. With a graph the search is approximate unless `exact`. Raises InputError
    where another model made the index, no query is found, or `top` is below 1.
    """
    if top < 1:
        raise InputError(f"--top={top} asks for no image; it must be at least 1")
    index.check_model(classifier)
    answers = []
    for batch in classifier.of_files(classifier.embeddings, find_images(queries)):
        found = neighbours(index, batch.values, top, exact)
        for path, reason, place in zip(batch.paths, batch.reasons, batch.rows(), strict=True):
            answers.append(Answer(path, () if place is None else found[place], reason or ""))
    return answers


def neighbours(index: Index, embeddings: np.ndarray, top: int, exact: bool = False) -> list[tuple[Neighbour, ...]]:
    """The `top` nearest images of each row of embeddings, float [N, D]."""
    engine = (None if exact else index.graph) or index.exact
    scores, rows = engine.search(normalised(embeddings), top)
    return [
        tuple(Neighbour(index.items[row], min(1.0, score), row) for row, score in zip(*pair, strict=True))
        for pair in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def sheet_of(answers: Sequence[Answer], classifier: Classifier, data_dir: str | Path | None = None) -> bytes:
    """A PNG with each query and its neighbours. Images of a split are loaded again, those of files read again."""
    images = _Images(classifier, data_dir)
    rows = []
    for answer in answers:
        place, name = os.path.split(answer.path)
        said = answer.error or f"query {os.path.basename(place)}".rstrip()
        row = [Tile(images.of_file(answer.path), (shown(said), shown(name)))]
        for each in answer.neighbours:
            said = each.item.get("label") or os.path.basename(os.path.dirname(each.item["path"]))
            name = os.path.basename(each.item["path"]) if "split" not in each.item else each.item["path"]
            row.append(Tile(images.of(each.item), (f"{each.similarity:.3f} {shown(said)}", shown(name))))
        rows.append(row)
    return contact_sheet(rows)


class _Images:
    """The pixels of items; a split is loaded once."""

    def __init__(self, classifier: Classifier, data_dir: str | Path | None) -> None:
        self.split = functools.cache(
            lambda name: load_split(classifier.recipe.data, name, data_dir, progress=False).images
        )

    def of(self, item: Item) -> np.ndarray | None:
        return self.split(item["split"])[item["index"]] if "split" in item else self.of_file(item["path"])

    def of_file(self, path: str) -> np.ndarray | None:
        (image,) = read_images([path], (SIDE, SIDE, 3), "pad")
        return None if isinstance(image, str) else image
