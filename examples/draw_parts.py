"""Draws a data set of metal parts for inspection: good, scratched, dented. The images are drawn, not photographed.

    python examples/draw_parts.py parts                # 12,500 images of 64x64, 2% of them with a defect
    python examples/draw_parts.py parts --share=0.2    # a fifth of the training images; the other splits stay

A part is brushed metal: streaks along a direction, uneven light, noise. A scratch is a thin line, brighter or darker
than the metal; a dent is a round shallow hollow, with light on one side and shade on the other. Every image is a
function of the seed, its split, its class and its number.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

SIZE = 64  # pixels a side
SPLITS = {"train": 5000, "validation": 2500, "test": 5000}
CLASSES = ("good", "scratched", "dented")
DEFECTS = 0.02  # share of the images with a defect, half of each kind


def draw(kind: str, random: np.random.RandomState, size: int = SIZE) -> np.ndarray:
    """uint8 [size, size, 3]."""
    row, column = np.mgrid[:size, :size] / size
    metal = _brushed(row, column, random, size)
    if kind == "scratched":
        metal += _scratch(row, column, random)
    if kind == "dented":
        metal += _dent(row, column, random)
    tint = 1 + random.normal(0, 0.015, 3)
    noisy = metal[..., None] * tint + random.normal(0, 0.015, (size, size, 3))
    return np.clip(noisy * 255, 0, 255).astype(np.uint8)


def _brushed(row: np.ndarray, column: np.ndarray, random: np.random.RandomState, size: int) -> np.ndarray:
    """Streaks along one axis, turned by up to 10 degrees, under light that falls off in some direction."""
    streaks = ndimage.gaussian_filter(random.normal(0, 1, (size, size)), (0.6, 12), mode="wrap")
    streaks = ndimage.rotate(streaks, random.uniform(-10, 10), reshape=False, mode="reflect", order=1)
    light = random.normal(0, 0.12, 2)
    shade = light[0] * (row - 0.5) + light[1] * (column - 0.5)
    return random.uniform(0.45, 0.65) + shade + 0.035 * streaks / streaks.std()


def _scratch(row: np.ndarray, column: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A line of 0.15 to 0.5 of the side, 1 to 2 pixels wide, at any angle."""
    angle, length = random.uniform(0, np.pi), random.uniform(0.15, 0.5)
    at = random.uniform(0.2, 0.8, 2)
    along = (row - at[0]) * np.sin(angle) + (column - at[1]) * np.cos(angle)
    across = (row - at[0]) * np.cos(angle) - (column - at[1]) * np.sin(angle)
    across += random.uniform(-0.3, 0.3) * along**2  # slightly bent
    width = random.uniform(0.5, 1.0) / 64
    line = np.exp(-((across / width) ** 2)) / (1 + np.exp((np.abs(along) - length / 2) * 120))
    return line * random.choice([-1, 1]) * random.uniform(0.08, 0.3)


def _dent(row: np.ndarray, column: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """The slope of a round hollow of 0.06 to 0.15 of the side, seen under light from one direction."""
    at, radius, angle = random.uniform(0.15, 0.85, 2), random.uniform(0.06, 0.15), random.uniform(0, 2 * np.pi)
    down, right = (row - at[0]) / radius, (column - at[1]) / radius
    slope = (down * np.sin(angle) + right * np.cos(angle)) * np.exp(-(down**2 + right**2))
    return slope * random.uniform(0.12, 0.4)


def kinds(count: int) -> list[str]:
    """The class of each image of a split, defects first."""
    each = round(count * DEFECTS / 2)
    return ["scratched"] * each + ["dented"] * each + ["good"] * (count - 2 * each)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the training images that are drawn; 1")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of images in every split; 1")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for place, (split, count) in enumerate(SPLITS.items()):
        wanted = round(count * options.scale * (options.share if split == "train" else 1))
        for name in CLASSES:
            (options.folder / split / name).mkdir(parents=True, exist_ok=True)
        numbers = {name: itertools.count() for name in CLASSES}
        for kind in tqdm(kinds(wanted), f"draw {split}", unit=" images"):
            number = next(numbers[kind])
            random = np.random.RandomState([options.seed, place, CLASSES.index(kind), number])
            Image.fromarray(draw(kind, random)).save(options.folder / split / kind / f"{number:05d}.png")


if __name__ == "__main__":
    main()
