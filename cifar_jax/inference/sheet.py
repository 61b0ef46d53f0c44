"""A contact sheet: each query with its neighbours, in one picture."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_jax.errors import InputError

SIDE = 112  # pixels of an image
GAP = 8  # pixels between two
LINE = 15  # pixels of a line of text
LARGEST = 60_000_000  # pixels of a sheet


@dataclass(frozen=True)
class Tile:
    """An image, and the lines below it."""

    image: np.ndarray | None  # uint8 [H, W, 1 or 3]; None where there is none
    lines: tuple[str, ...]


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> bytes:
    """A PNG: a row of tiles for each query, that itself first. Raises InputError where it would be too large."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max(map(len, rows))
    lines = max(len(tile.lines) for row in rows for tile in row)
    height, width = SIDE + lines * LINE + GAP, SIDE + GAP
    size = (columns * width + 2 * GAP, len(rows) * height + GAP)
    if size[0] * size[1] > LARGEST:
        most = max(1, LARGEST // size[0] // height)
        raise InputError(f"a sheet of {len(rows)} queries is too large; it holds {most} of them")
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for line, row in enumerate(rows):
        for column, tile in enumerate(row):
            # The query stands a little apart.
            left, top = GAP + column * width + (GAP if column else 0), GAP + line * height
            if tile.image is None:
                draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="gray")
            else:
                sheet.paste(_fitted(tile.image), (left, top))
            for number, text in enumerate(tile.lines):
                place = (left, top + SIDE + 1 + number * LINE)
                draw.text(place, _shortened(text, font), fill="black", font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _fitted(pixels: np.ndarray) -> Any:
    """The image in a square, enlarged without smoothing where it is small."""
    from PIL import Image, ImageOps

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    way = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.BILINEAR
    return ImageOps.pad(image, (SIDE, SIDE), way, color="white")


def _shortened(text: str, font: Any) -> str:
    """The end of a text that is too wide; that of a path tells more than its start."""
    while len(text) > 1 and font.getlength(text) > SIDE:
        text = "…" + text[2 if text[0] == "…" else 1 :]
    return text
