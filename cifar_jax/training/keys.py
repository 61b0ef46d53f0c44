"""Random keys: each is a function of a seed of the recipe, a purpose, and the step. There is no other randomness."""

from enum import IntEnum
from typing import Any

import jax


class Purpose(IntEnum):
    """What a key is for. The numbers are part of every result: they never change, and a new purpose gets a new one."""

    WEIGHTS = 0  # initial weights
    ORDER = 1  # of the images in each epoch
    STEP = 2  # augmentation and dropout of a step
    DATA_SET = 3  # what augmentation decides once for each image of the training set


SEEDS = {  # the field of `recipe.seeds` behind each purpose
    Purpose.WEIGHTS: "weights",
    Purpose.ORDER: "order",
    Purpose.STEP: "augmentation",
    Purpose.DATA_SET: "augmentation",
}
FOLLOW = -1  # the value of a seed in `recipe.seeds` that follows `recipe.seed`


def seeds(recipe: Any) -> dict[str, Any]:
    """{"weights", "order", "augmentation"}: each as the recipe sets it, or `recipe.seed`."""
    chosen = {name: recipe.seeds[name] for name in ("weights", "order", "augmentation")}
    return {name: recipe.seed if isinstance(seed, int) and seed == FOLLOW else seed for name, seed in chosen.items()}


def key(recipe: Any, purpose: Purpose) -> jax.Array:
    """The key of a purpose; a key of each step follows from `jax.random.fold_in(key, step)`."""
    return jax.random.fold_in(jax.random.key(seeds(recipe)[SEEDS[purpose]]), int(purpose))
