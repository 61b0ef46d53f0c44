"""The nearest rows of a matrix by cosine similarity: exactly, by matrix products in blocks, or by a graph (usearch)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import InputError

BLOCK = 65536  # rows that are multiplied at a time; the threads of BLAS wait for each other after each block
SAMPLE = 4096  # scores that are partitioned
QUERIES = 64  # queries at a time
IN_MEMORY = 2 << 30  # bytes of float32 rows that are kept; more are converted anew in each search
EXACT_ROWS = 1_000_000  # beyond it a graph is recommended


def normalised(vectors: np.ndarray) -> np.ndarray:
    """float32 rows of length 1; rows of zeros stay as they are."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


class ExactSearch:
    """All similarities are computed. `parts` are float16 or float32 [N, D], rows of length 1, whose numbers go on."""

    def __init__(self, parts: Sequence[np.ndarray], hidden: np.ndarray | None = None) -> None:
        """`hidden` are numbers of rows that are never found."""
        starts = np.cumsum([0, *map(len, parts)])
        self.blocks = [
            (int(start) + first, part[first : first + BLOCK])
            for start, part in zip(starts, parts, strict=False)
            for first in range(0, len(part), BLOCK)
        ]
        self.hidden = np.sort(hidden) if hidden is not None else np.zeros(0, np.int64)
        self.count = int(starts[-1]) - len(self.hidden)
        if sum(4 * part.size for part in parts) <= IN_MEMORY:
            self.blocks = [(start, np.ascontiguousarray(block, np.float32)) for start, block in self.blocks]

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """queries float32 [Q, D] of length 1 -> similarities float32 [Q, top] in falling order, and the numbers of the
        rows int64; equal ones come in the order of the rows. `top` is at most the number of rows."""
        top = min(top, self.count)
        found = [self._search(queries[start : start + QUERIES], top) for start in range(0, len(queries), QUERIES)]
        if not found:
            return np.zeros((0, top), np.float32), np.zeros((0, top), np.int64)
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])

    def _search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        best = [(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in queries]
        least = np.full((len(queries), 1), -np.inf, np.float32)  # the lowest similarity that would still be kept
        for start, block in self.blocks:
            scores = self._scores(queries, start, block)
            for query, places in _above(scores, least, top):
                both = np.concatenate([best[query][0], scores[query, places]])
                rows = np.concatenate([best[query][1], start + places])
                order = np.lexsort((rows, -both))[:top]
                best[query] = both[order], rows[order]
                if len(order) == top:
                    least[query] = both[order[-1]]
        return np.stack([scores for scores, _ in best]), np.stack([rows for _, rows in best])

    def _scores(self, queries: np.ndarray, start: int, block: np.ndarray) -> np.ndarray:
        block = np.asarray(block, np.float32)
        # A single query is a product with a vector, which BLAS reads the block for once.
        scores = (block @ queries[0])[None] if len(queries) == 1 else queries @ block.T
        first, last = np.searchsorted(self.hidden, (start, start + len(block)))
        scores[:, self.hidden[first:last] - start] = -np.inf
        return scores


def _above(scores: np.ndarray, least: np.ndarray, top: int) -> Iterator[tuple[int, np.ndarray]]:
    """The places of each query's scores that may be among its best: those above `least`.

    A lower bound of the best comes from the first scores, which are few enough to be partitioned.
    """
    if scores.shape[1] > top and np.isneginf(least).any():
        floor = np.partition(scores[:, : max(SAMPLE, top)], -top, axis=-1)[:, -top, None]
        queries, places = np.nonzero(scores >= np.maximum(floor, least))
    else:
        queries, places = np.nonzero(scores > least)
    bounds = np.searchsorted(queries, np.arange(len(scores) + 1))
    for query in range(len(scores)):
        if bounds[query] < bounds[query + 1]:
            yield query, places[bounds[query] : bounds[query + 1]]


class GraphSearch:
    """Most of the nearest rows, by a hierarchical graph (HNSW, Malkov & Yashunin 2016, arXiv 1603.09320)."""

    def __init__(self, graph: Any, hidden: np.ndarray | None = None) -> None:
        self.graph, self.hidden = graph, set() if hidden is None else set(hidden.tolist())
        self.count = len(graph) - len(self.hidden)

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactSearch.search`."""
        top = min(top, self.count)
        scores, rows = np.zeros((len(queries), top), np.float32), np.zeros((len(queries), top), np.int64)
        for place, query in enumerate(np.asarray(queries, np.float32)):
            found = self.graph.search(query, top + len(self.hidden))
            seen = [row not in self.hidden for row in found.keys.tolist()]
            scores[place], rows[place] = 1 - found.distances[seen][:top], found.keys[seen][:top]
        return scores, rows


def new_graph(dimension: int) -> Any:
    """An empty graph; `graph.add(rows, vectors)` adds to it. Raises InputError where usearch is missing."""
    return _usearch().Index(ndim=dimension, metric="cos", dtype="f16")


def read_graph(path: Path) -> Any:
    """Raises InputError where usearch is missing, or the file is no graph."""
    library = _usearch()
    try:
        graph = library.Index.restore(str(path))
    except Exception as error:  # RuntimeError, or what the library made of a damaged file
        raise InputError(f"{path} cannot be read ({error}); build the index again") from error
    if graph is None:
        raise InputError(f"{path} is no graph of usearch; build the index again")
    return graph


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[similar]', or search exactly"
        raise InputError(f"approximate search needs usearch, which is not installed; {remedy}") from error
    return usearch.index
