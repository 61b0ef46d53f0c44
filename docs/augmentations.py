"""Draws docs/augmentations.png: every augmentation of cifar_jax at three strengths on a few images.

python docs/augmentations.py

The images are CIFAR-10's where it is prepared (TFDS_DATA_DIR, ~/tensorflow_datasets), else the embedded digits.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent))
from cifar_jax.data import arrays as data
from cifar_jax.data import store as datasets
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training.augment import AUGMENTATIONS, MIXTURES, augment

STRENGTHS = {
    "flip": (0.25, 0.5, 1.0),
    "alternating_flip": (1, 1, 1),
    "vertical_flip": (0.25, 0.5, 1.0),
    "crop": (2, 4, 8),
    "rotation": (10.0, 30.0, 90.0),
    "brightness": (0.2, 0.5, 1.0),
    "contrast": (0.2, 0.5, 1.0),
    "saturation": (0.2, 0.5, 1.0),
    "randaugment": (2.0, 5.0, 10.0),
    "trivial_augment": (0.2, 0.5, 1.0),
    "cutout": (4, 8, 16),
    "inner_cutout": (4, 8, 16),
    "random_erasing": (0.25, 0.5, 1.0),
    "mixup": (0.2, 1.0, 4.0),
    "cutmix": (0.2, 1.0, 4.0),
}
COUNT, GAP, LABEL, TITLE = 4, 1, 108, 14  # images a strength; widths and heights in pixels


def load() -> tuple[str, np.ndarray]:
    """The name of the data set and `COUNT` images uint8 [COUNT, 32, 32, 3], each of another class."""
    name = "cifar10" if datasets.find("cifar10") else "digits"
    split = data.load(name, "test", progress=False)
    first = [int(np.flatnonzero(split.labels == label)[0]) for label in range(COUNT)]
    pictures = [Image.fromarray(image.squeeze()).convert("RGB").resize((32, 32)) for image in split.images[first]]
    return name, np.stack([np.asarray(picture) for picture in pictures])


def main() -> None:
    name, images = load()
    assert list(STRENGTHS) == [*AUGMENTATIONS, *MIXTURES]
    recipe = load_recipe("configs/base.py")
    off = {field: type(recipe.augment[field])(0) for field in STRENGTHS}
    block, row = COUNT * (32 + GAP) + 8, 32 + TITLE
    sheet = Image.new("RGB", (LABEL + 3 * block, row * (len(STRENGTHS) + 1)), "white")
    draw = ImageDraw.Draw(sheet)

    def put(line: int, column: int, title: str, batch: np.ndarray) -> None:
        left, top = LABEL + column * block, line * row
        draw.text((left, top + 1), title, "black")
        for number, image in enumerate(batch):
            sheet.paste(Image.fromarray(image), (left + number * (32 + GAP), top + TITLE))

    draw.text((4, TITLE + 10), name, "black")
    put(0, 0, "as they are", images)
    for line, (field, strengths) in enumerate(STRENGTHS.items(), start=1):
        draw.text((4, line * row + TITLE + 10), field, "black")
        for column, strength in enumerate(strengths):
            given = {"index": jnp.arange(COUNT), "coin": jax.random.key(1), "mean": recipe.data.mean}
            epoch, key = jnp.int32(column), jax.random.fold_in(jax.random.key(4), column)
            targets = jax.nn.one_hot(jnp.arange(COUNT), COUNT)
            section = off | {field: strength}
            seen, _ = augment(section, key, jnp.asarray(images / np.float32(255)), targets, epoch=epoch, **given)
            title = f"{strength}, epoch {column}" if field == "alternating_flip" else str(strength)
            put(line, column, title, np.rint(np.asarray(seen) * 255).astype(np.uint8))
    sheet.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
