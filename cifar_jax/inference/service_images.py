"""Images that strangers send: what is refused before anything is decoded."""

import numpy as np

from cifar_jax.data.decoding import TooManyPixels, decode
from cifar_jax.data.image_files import reason_of
from cifar_jax.inference.batching import SMALL_PIXELS, Postponed, Unreadable

# Formats whose decoders read untrusted data in every browser. EPS would start Ghostscript, TIFF is a container.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_SCANS = 100  # of a JPEG: each goes over all pixels, and takes a few bytes only
TEXT_BYTES = 1 << 20  # of the compressed texts of a PNG, which Pillow expands


def decode_upload(
    content: bytes, shape: tuple[int, ...], mode: str, max_pixels: int, small: bool
) -> np.ndarray | Unreadable:
    """uint8 [height, width, channels], or why not. Raises Postponed on a large image where `small` ones are wanted."""
    height, width, channels = shape
    if content.count(b"\xff\xda") > MAX_SCANS and content.startswith(b"\xff\xd8"):
        return Unreadable(413, f"this JPEG has more than {MAX_SCANS} scans")
    try:
        if (size := webp_size(content)) and size[0] * size[1] > max_pixels:
            raise TooManyPixels(*size)
        limit = min(SMALL_PIXELS, max_pixels) if small else max_pixels
        return decode(content, (height, width), mode, channels, limit, FORMATS)
    except TooManyPixels as error:
        if error.pixels <= max_pixels:
            raise Postponed from None
        return Unreadable(413, f"{error}; at most {max_pixels} are allowed")
    except Exception as error:  # each decoder of Pillow has its own
        return unreadable(error)


def unreadable(error: Exception) -> Unreadable:
    reason = reason_of(error)
    if reason == "not an image":
        return Unreadable(415, f"not an image of the formats {', '.join(FORMATS)}")
    if type(error).__name__ == "DecompressionBombError":
        return Unreadable(413, "too many pixels to decode")
    return Unreadable(422, f"a damaged image ({reason[:200]})" if reason.isprintable() else "a damaged image")


def webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file (RFC 9649); None of other files. Pillow allocates two images to learn them."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind, read = content[12:16], lambda place, count: int.from_bytes(content[place : place + count], "little")
    if kind == b"VP8X":
        return read(24, 3) + 1, read(27, 3) + 1
    if kind == b"VP8L":
        return (read(21, 4) & 0x3FFF) + 1, (read(21, 4) >> 14 & 0x3FFF) + 1
    return read(26, 2) & 0x3FFF, read(28, 2) & 0x3FFF


def limit_decoders() -> None:
    """Settings of Pillow for the whole process. Its warnings are ignored from now on, in all threads."""
    import warnings

    from PIL import PngImagePlugin

    warnings.filterwarnings("ignore", module=r"PIL\b")
    PngImagePlugin.MAX_TEXT_MEMORY = TEXT_BYTES
