"""Images of a report: which ones are shown, and how they stand in a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHOWN = 24  # images of a gallery
OF_CLASS = 6  # most typical, and hardest, of each class


@dataclass(frozen=True)
class Picture:
    """An image with what the model says about it."""

    source: str  # data URI
    text: str  # for those who cannot see it, and below it
    detail: str
    name: str = ""  # what the image can be found by


def data_uri(image: np.ndarray) -> str:
    """A PNG of uint8 [H, W, 1 or 3] as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(
    image: np.ndarray, label: int, probabilities: np.ndarray, classes: Sequence[str], name: str = ""
) -> Picture:
    predicted = int(np.argmax(probabilities))
    said = f"{classes[predicted]} {probabilities[predicted]:.0%}"
    if predicted == label:
        return Picture(data_uri(image), said, "correct", name)
    return Picture(data_uri(image), said, f"is {classes[label]} ({probabilities[label]:.0%})", name)


def confident_errors(labels: np.ndarray, probabilities: np.ndarray, count: int = SHOWN) -> np.ndarray:
    """Indices of the wrong predictions with the highest probability, that first."""
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(-1), kind="stable")][:count]


def doubtful_successes(labels: np.ndarray, probabilities: np.ndarray, count: int = SHOWN) -> np.ndarray:
    """Indices of the correct predictions with the lowest probability, that first."""
    right = np.flatnonzero(probabilities.argmax(-1) == labels)
    return right[np.argsort(probabilities[right].max(-1), kind="stable")][:count]


def of_class(
    labels: np.ndarray, probabilities: np.ndarray, label: int, count: int = OF_CLASS
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images of a class whose own class is the most probable, and of those where it is the least."""
    own = np.flatnonzero(labels == label)
    ranked = own[np.argsort(-probabilities[own, label], kind="stable")]
    return ranked[:count], ranked[::-1][:count]


def filters(kernel: np.ndarray, columns: int = 16) -> np.ndarray:
    """The filters of a first layer, float [h, w, 1 or 3, N], as one uint8 image, each scaled to its own range."""
    height, width, channels, count = kernel.shape
    low, high = kernel.min((0, 1, 2), keepdims=True), kernel.max((0, 1, 2), keepdims=True)
    scaled = (255 * (kernel - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, np.uint8)
    for number in range(count):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        sheet[top : top + height, left : left + width] = scaled[..., number]
    return sheet
