"""An index as it lies on disk: embeddings of images, what each row stands for, and the model that made them.

index.json               format, digest of the model, workdir, dimension, digests of splits, and the parts with the
                         digests of their files; it is written last, so that an index is whole or absent
embeddings-0000.npy      float16 [N, D], rows of length 1
items-0000.jsonl         a line for each row: path, size and time of a file; or split, index and class
graph.usearch            of an index that was made with --approximate

Parts are never changed: new images become a new part. A file that was changed has a row in a later part, which hides
the earlier one.
"""

import functools
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data.image_files import shown
from cifar_jax.errors import InputError
from cifar_jax.inference.search import ExactSearch, GraphSearch, read_graph
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import digest_of_file, read_json, unsealed, write_bytes, write_sealed

FORMAT = 1
NAME = "index.json"
Item = dict[str, Any]


@dataclass(frozen=True)
class Index:
    """Embeddings of images, and what each row stands for."""

    folder: Path
    record: dict[str, Any]  # index.json
    embeddings: list[np.ndarray]  # of each part, float16 [N, D]
    items: list[Item]  # of each row of all parts

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Path of each image -> its newest row."""
        return {item["path"]: row for row, item in enumerate(self.items)}

    @functools.cached_property
    def hidden(self) -> np.ndarray:
        """Rows of which the file was changed since, int64."""
        if len(self.rows) == len(self.items):
            return np.zeros(0, np.int64)
        return np.setdiff1d(np.arange(len(self.items)), np.fromiter(self.rows.values(), np.int64))

    @functools.cached_property
    def exact(self) -> ExactSearch:
        return ExactSearch(self.embeddings, self.hidden)

    @functools.cached_property
    def graph(self) -> GraphSearch | None:
        """None where the index was made without one. Raises InputError where usearch is missing."""
        if not self.record["graph"]:
            return None
        return GraphSearch(read_graph(self.folder / self.record["graph"]["file"]), self.hidden)

    def __len__(self) -> int:
        return len(self.rows)

    def check_model(self, classifier: Classifier) -> None:
        """Raises InputError where another model made the index."""
        if classifier.digest != self.record["model"]:
            raise InputError(
                f"the index in '{self.folder}' was made by another model (digest {self.record['model'][:12]}) than the"
                f" one given (digest {classifier.digest[:12]}); name that model's --workdir, or make a new index"
            )


def load_index(folder: str | Path) -> Index:
    """The index in a folder. Raises InputError where there is none, or a file of it is missing or damaged."""
    folder = Path(folder)
    path = folder / NAME
    if not path.exists():
        raise InputError(f"'{folder}' holds no index (no {NAME}); make one with the command index")
    stored = read_json(path)
    if isinstance(stored, dict) and stored.get("format") != FORMAT:
        raise InputError(f"'{folder}' holds an index of format {stored.get('format')}, and this version reads {FORMAT}")
    record = unsealed(stored)
    if record is None:
        raise InputError(f"{path} is damaged; make the index again with --force")
    graph = [record["graph"]] if record["graph"] else []
    for entry in [*(part[kind] for part in record["parts"] for kind in ("embeddings", "items")), *graph]:
        file = folder / entry["file"]
        if not file.exists() or digest_of_file(file) != entry["sha256"]:
            state = "is damaged" if file.exists() else "is missing"
            raise InputError(f"{file} {state}; make the index again with --force")
    parts = record["parts"]
    embeddings = [np.load(folder / part["embeddings"]["file"], mmap_mode="r", allow_pickle=False) for part in parts]
    lines = [line for part in parts for line in (folder / part["items"]["file"]).read_bytes().splitlines()]
    return Index(folder, record, embeddings, [json.loads(line) for line in lines])


def new_record(classifier: Classifier, workdir: Path | None, dimension: int) -> dict[str, Any]:
    """index.json of an index without parts."""
    return {
        "format": FORMAT,
        "model": classifier.digest,
        "architecture": str(classifier.recipe.model.name),
        "workdir": os.path.abspath(workdir) if workdir is not None else None,
        "dimension": dimension,
        "splits": {},  # name -> digest of the images
        "parts": [],
        "graph": None,
    }


def add_part(folder: Path, record: dict[str, Any], embeddings: np.ndarray, items: list[Item]) -> None:
    """Writes the files of a part and adds it to the record, which `write_record` writes."""
    number = len(record["parts"])
    stream = io.BytesIO()
    np.save(stream, embeddings.astype(np.float16), allow_pickle=False)
    lines = "".join(json.dumps(item) + "\n" for item in items)
    contents = {
        "embeddings": (f"embeddings-{number:04d}.npy", stream.getvalue()),
        "items": (f"items-{number:04d}.jsonl", lines.encode()),
    }
    part = {kind: written(folder, file, content) for kind, (file, content) in contents.items()}
    record["parts"].append({"rows": len(items), **part})


def written(folder: Path, file: str, content: bytes) -> dict[str, str]:
    """Writes a file; its entry in index.json."""
    write_bytes(folder / file, content)
    return {"file": file, "sha256": digest_of_file(folder / file)}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    write_sealed(folder / NAME, record)


def described(item: Item) -> str:
    """An item in a few words, for people."""
    label = f" ({item['label']})" if "label" in item else ""
    return f"{shown(item['path'])}{label}"
