"""An image file of any format and mode that Pillow reads becomes uint8 [height, width, channels]."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

RESIZE_MODES = ("stretch", "pad", "crop")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
MAX_PIXELS = 89_478_485  # of an image that is decoded; Pillow warns of decompression bombs from there on

SHOWN = 5  # files that a message names


class TooManyPixels(ValueError):
    """An image of more `pixels` than may be decoded."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"{width}x{height} pixels are too many to decode")
        self.pixels = width * height


@contextmanager
def without_warnings() -> Iterator[None]:
    """Only Pillow's warnings are ignored inside. Entered around the threads that decode, never in one of them.

    The filters of `warnings` belong to the process: two threads that enter and leave in turn leave them changed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def warn_of_skipped(skipped: Sequence[str], count: int, stacklevel: int) -> None:
    """Names the first of the files that could not be read, of so many."""
    if skipped:
        more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        message = f"{len(skipped)} of {count} files are left out: {', '.join(skipped[:SHOWN])}{more}"
        warnings.warn(message, stacklevel=stacklevel + 1)


def decode(
    content: bytes,
    size: int | tuple[int, int],
    mode: str,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> np.ndarray:
    """uint8 [height, width, channels] of the content of a file; `size` is (height, width), or both in one number.

    One channel is grey, three are RGB. The first frame of an animation is taken. `formats` are those of Pillow that are
    tried, all if None. Raises ValueError or OSError, with the reason, where the content is no image, and TooManyPixels,
    before any is decoded, where it has more than `max_pixels`. Pillow may warn, of damaged EXIF data for example,
    although the image is read: see `without_warnings`.
    """
    from PIL import Image, ImageOps

    height, width = (size, size) if isinstance(size, int) else size
    image: Any = Image.open(io.BytesIO(content), formats=formats)
    if image.width * image.height > max_pixels:
        raise TooManyPixels(image.width, image.height)
    image.draft("RGB", (2 * width, 2 * height))  # JPEG decodes at an eighth to a half of its size
    ImageOps.exif_transpose(image, in_place=True)  # without a copy of an image that is upright
    image = _to_rgb(image)
    target = (width, height)
    if mode == "pad":
        image = ImageOps.pad(image, target, Image.Resampling.BILINEAR)
    elif mode == "crop":
        image = ImageOps.fit(image, target, Image.Resampling.BILINEAR)
    elif image.size != target:
        image = image.resize(target, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image) if channels == 3 else np.asarray(image.convert("L"))[..., None]


def _to_rgb(image: Any) -> Any:
    """Any mode as RGB: 16 bits scaled to 8, transparency on white."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        scale = 255 / 65535 if image.mode.startswith("I") else 255 / max(1e-12, values.max())
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy
