"""Draws a data set of cells under a microscope: lymphocyte, monocyte, neutrophil. The images are drawn, not taken, and
show only what tells the three apart in a textbook: a round nucleus, a kidney-shaped one, and one of several lobes.

    python examples/draw_cells.py cells       # 3,000 images of 48x48, a folder for each class, about 15 s

Cells lie at any angle, and the stain varies from slide to slide: hue, strength, background. Every image is a
function of the seed, its class and its number.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

SIZE = 48  # pixels a side
COUNT = 1000  # images of each class
CLASSES = ("lymphocyte", "monocyte", "neutrophil")


def draw(kind: str, random: np.random.RandomState, size: int = SIZE) -> np.ndarray:
    """uint8 [size, size, 3]."""
    angle = random.uniform(0, 2 * np.pi)
    row, column = (np.mgrid[:size, :size] - (size - 1) / 2) / (size / 2)
    row, column = row - random.uniform(-0.12, 0.12), column - random.uniform(-0.12, 0.12)
    down = row * np.cos(angle) - column * np.sin(angle)
    right = row * np.sin(angle) + column * np.cos(angle)
    warp = ndimage.gaussian_filter(random.normal(0, 1, (2, size, size)), (0, 6, 6))
    warp *= 0.08 / warp.std()
    down, right = down + warp[0], right + warp[1]  # no outline is a perfect ellipse
    body = _ellipse(down, right, 0, 0, random.uniform(0.55, 0.75), random.uniform(0.55, 0.75))
    nucleus = _nucleus(kind, down, right, random) * body
    stain = np.array([random.uniform(0.3, 0.5), random.uniform(0.15, 0.35), random.uniform(0.5, 0.7)])
    plasma = np.array([random.uniform(0.72, 0.88), random.uniform(0.65, 0.8), random.uniform(0.78, 0.9)])
    background = np.array([0.93, 0.9, 0.88]) * random.uniform(0.9, 1.05)
    image = background + (plasma - background) * body[..., None]
    image = image + (stain - image) * (nucleus * random.uniform(0.75, 1))[..., None]
    image = image + random.normal(0, 0.03, (size, size, 3))
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def _nucleus(kind: str, down: np.ndarray, right: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    if kind == "lymphocyte":
        radius = random.uniform(0.4, 0.5)
        return _ellipse(down, right, 0, 0, radius, radius * random.uniform(0.85, 1.1))
    if kind == "monocyte":  # a disk with a bay
        whole = _ellipse(down, right, 0, 0, random.uniform(0.42, 0.52), random.uniform(0.38, 0.48))
        return whole * (1 - _ellipse(down, right, random.uniform(0.25, 0.38), 0, 0.28, random.uniform(0.14, 0.22)))
    lobes, total = random.randint(3, 5), np.zeros_like(down)
    for number in range(lobes):
        place = 2.4 * (number / (lobes - 1) - 0.5)
        at = 0.27 * np.cos(place), 0.3 * np.sin(place)
        total = np.maximum(total, _ellipse(down, right, *at, *random.uniform(0.12, 0.19, 2)))
    return total


def _ellipse(down: np.ndarray, right: np.ndarray, top: float, left: float, height: float, width: float) -> np.ndarray:
    """1 inside, 0 outside, soft at the border."""
    distance = np.sqrt(((down - top) / height) ** 2 + ((right - left) / width) ** 2)
    return 1 / (1 + np.exp((distance - 1) * 14))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT, help="images of each class; 1000")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for label, kind in enumerate(CLASSES):
        (options.folder / kind).mkdir(parents=True, exist_ok=True)
        for number in tqdm(range(options.count), f"draw {kind}", unit=" images"):
            image = draw(kind, np.random.RandomState([options.seed, label, number]))
            Image.fromarray(image).save(options.folder / kind / f"{number:04d}.png")


if __name__ == "__main__":
    main()
