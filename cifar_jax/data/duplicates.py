"""Equal and nearly equal images, in one array or across several. NumPy only; nothing is read or written.

Two images are exact duplicates where all their pixels are equal. They are near duplicates where they agree in their
`thumbnails`, in their `details`, and where there is a trained model also in its embeddings: the cosine of each must
reach a threshold. None of them is enough alone; docs/label_audit.md says what was measured.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cifar_jax.errors import InputError

THUMBNAIL = 8  # pixels a side of what images are compared by
BLOCK = 2048  # rows of a matrix product: 16 MB of cosines
MOST_PAIRS = 1_000_000  # a threshold that gives more does not separate anything
# The cosine of thumbnails from which on two images are near duplicates: alone, and where other features must agree.
# docs/label_audit.md says what was measured.
ALONE, TOGETHER = 0.97, 0.92
FINE, COARSE = 16, 4  # pixels a side: details are what images have at FINE and not at COARSE
DETAIL_COSINE = 0.7
EXACT, NEAR = "exact", "near"


@dataclass(frozen=True)
class Pair:
    """Two images by their places, the smaller first."""

    first: int
    second: int
    kind: str  # EXACT or NEAR
    similarity: float  # the least of the cosines; 1 for exact duplicates


@dataclass(frozen=True)
class Features:
    """One way to compare N images: unit vectors, and the cosine from which on two of them are near duplicates."""

    vectors: np.ndarray  # float32 [N, D], of length 1 or 0
    threshold: float
    mirrored: np.ndarray | None = None  # those of the mirror images, where a mirror image is a duplicate too

    def of(self, places: np.ndarray) -> "Features":
        """Those of some of the images."""
        mirrored = None if self.mirrored is None else self.mirrored[places]
        return Features(self.vectors[places], self.threshold, mirrored)


def image_digests(images: np.ndarray) -> list[bytes]:
    """The sha256 of the pixels of each image uint8 [N, H, W, C]."""
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def exact_groups(images: np.ndarray) -> np.ndarray:
    """int64 [N], equal for images uint8 [N, H, W, C] with equal pixels: the place of the first of them."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, place) for place, digest in enumerate(image_digests(images))], np.int64)


def find_duplicates(
    images: np.ndarray, others: Sequence[Features] = (), *, thumbnail_cosine: float | None = None
) -> list[Pair]:
    """The exact and then the near duplicates among images uint8 [N, H, W, C], the most similar first.

    Several splits are searched together by concatenating their images. Near duplicates are alike in thumbnails and
    details, one of them mirrored or not, and in all the other features of the N images that are given. Of equal images
    the first stands for all: each other one is in one pair with it, and in no pair of near duplicates.
    thumbnail_cosine: ALONE or TOGETHER if not given.

    Raises InputError on a threshold outside 0..1, or one that more than a million pairs reach.
    """
    check_cosines(thumbnail_cosine=thumbnail_cosine)
    if thumbnail_cosine is None:
        thumbnail_cosine = TOGETHER if others else ALONE
    groups = exact_groups(images)
    copies = np.flatnonzero(groups != np.arange(len(images)))
    exact = [Pair(int(groups[place]), int(place), EXACT, 1.0) for place in copies]
    single = np.flatnonzero(groups == np.arange(len(images)))
    small = thumbnails(images)[single]
    features = [Features(small, thumbnail_cosine, mirror(small)), *(each.of(single) for each in others)]
    found = near_pairs(features)
    if not found:
        return exact
    firsts, seconds = (single[[getattr(pair, side) for pair in found]] for side in ("first", "second"))
    cosines = detail_cosines(images, firsts, seconds)
    near = [
        Pair(int(first), int(second), NEAR, pair.similarity)
        for pair, first, second, cosine in zip(found, firsts, seconds, cosines, strict=True)
        if cosine >= DETAIL_COSINE
    ]
    return exact + near


def check_cosines(**cosines: float | None) -> None:
    """Raises InputError on one that two images cannot have, or that all of them may."""
    for name, value in cosines.items():
        if value is not None and not 0 < value <= 1:
            raise InputError(f"{name} is {value}; the cosine of two duplicates is above 0 and at most 1")


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, D] of length 1; a vector of length 0 stays, and is near to nothing."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)


def thumbnails(images: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Images uint8 [N, H, W, C] as unit vectors float32 [N, side * side * C] without their mean colour.

    The cosine of two of them is the correlation of the reduced images, which brightness and contrast do not change.
    """
    reduced, count = _reduced(images, side), len(images)
    centred = reduced - reduced.mean((1, 2), keepdims=True)
    centred[np.abs(centred).max((1, 2, 3)) < 0.5] = 0  # half a level of 255: an image of one colour has no direction
    return unit_vectors(centred.reshape(count, -1))


def details(images: np.ndarray) -> np.ndarray:
    """What images uint8 [N, H, W, C] have at FINE pixels a side and not at COARSE, as unit vectors float32 [N, D].

    Ships on the same sea have equal thumbnails, and other details.
    """
    fine, coarse = _reduced(images, FINE), _reduced(images, COARSE)
    repeated = coarse.repeat(FINE // COARSE, 1).repeat(FINE // COARSE, 2)
    return unit_vectors((fine - repeated).reshape(len(images), -1))


def detail_cosines(images: np.ndarray, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The cosine of the details of each pair of places, or of one and the mirrored other if that is larger."""
    places, where = np.unique(np.concatenate([firsts, seconds]), return_inverse=True)
    plain = details(images[places])
    mirrored = mirror(plain, FINE)
    first, second = np.split(where, 2)
    cosines = np.zeros(len(firsts), np.float32)
    for start in range(0, len(firsts), BLOCK):
        own, others = plain[first[start : start + BLOCK]], second[start : start + BLOCK]
        cosines[start : start + BLOCK] = np.maximum((own * plain[others]).sum(-1), (own * mirrored[others]).sum(-1))
    return cosines


def _reduced(images: np.ndarray, side: int) -> np.ndarray:
    """Averages over a grid of side x side, float32 [N, side, side, C]."""
    rows, columns = _averages(images.shape[1], side), _averages(images.shape[2], side)
    reduced = np.zeros((len(images), side, side, images.shape[3]), np.float32)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK].astype(np.float32)
        reduced[start : start + BLOCK] = np.einsum("sh,nhwc,tw->nstc", rows, block, columns, optimize=True)
    return reduced


def mirror(vectors: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """The thumbnails of the mirror images."""
    return vectors.reshape(len(vectors), side, side, -1)[:, :, ::-1].reshape(vectors.shape)


def shifted(images: np.ndarray, pixels: int = 1) -> np.ndarray:
    """The images uint8 [N, H, W, C] moved right and down; the border is repeated. Near duplicates by construction."""
    padded = np.pad(images, ((0, 0), (pixels, 0), (pixels, 0), (0, 0)), mode="edge")
    return padded[:, : images.shape[1], : images.shape[2]]


def _averages(size: int, side: int) -> np.ndarray:
    """float32 [side, size]: each row averages its share of `size` pixels, parts of pixels included."""
    edges = np.linspace(0, size, side + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(covered, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def near_pairs(features: Sequence[Features], block: int = BLOCK) -> list[Pair]:
    """The pairs whose cosines reach every threshold, the most similar first.

    Computed in blocks of rows by matrix products, so that the N x N cosines are never held at once: 60,000 images with
    384 numbers each are 1.4 TFLOP. Raises InputError where more than a million pairs are found.
    """
    count = len(features[0].vectors)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    total = 0
    for rows, columns in _blocks(count, block):
        least = _cosines(features[0], rows, columns)
        near = least >= features[0].threshold
        for each in features[1:]:
            if not near.any():
                break
            cosines = _cosines(each, rows, columns)
            near &= cosines >= each.threshold
            np.minimum(least, cosines, out=least)
        first, second = np.nonzero(near)
        similarity = least[first, second]
        first, second = first + rows.start, second + columns.start
        upper = first < second
        found.append((first[upper], second[upper], similarity[upper]))
        total += int(upper.sum())
        if total > MOST_PAIRS:
            thresholds = ", ".join(f"{each.threshold:g}" for each in features)
            raise InputError(f"more than {MOST_PAIRS:,} pairs of images are as similar as {thresholds}; raise a cosine")
    pairs = [
        Pair(int(first), int(second), NEAR, float(similarity))
        for part in found
        for first, second, similarity in zip(*part, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _blocks(count: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Those of the upper triangle of a matrix."""
    starts = range(0, count, block)
    for row in starts:
        for column in starts:
            if column >= row:
                yield slice(row, min(row + block, count)), slice(column, min(column + block, count))


def _cosines(features: Features, rows: slice, columns: slice) -> np.ndarray:
    cosines = features.vectors[rows] @ features.vectors[columns].T
    if features.mirrored is not None:
        np.maximum(cosines, features.vectors[rows] @ features.mirrored[columns].T, out=cosines)
    return cosines
