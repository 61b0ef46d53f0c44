"""What a recipe costs, without training it: layers, parameters, multiply-adds, memory."""

from collections.abc import Mapping
from typing import Any

import jax

from cifar_jax import training
from cifar_jax.models.counts import counts, layers, saved_bytes
from cifar_jax.recipe import resolve
from cifar_jax.runs.devices import compute_dtype
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training.state import input_shape

FACTS = {"cifar100": (100, 50_000), "digits": (10, 1_437)}  # classes, training images; CIFAR-10's otherwise


def description(path: str, changes: Mapping[str, Any]) -> str:
    """A table of the recipe's model for 32x32x3 images, and what a training step needs."""
    recipe = load_recipe(path, changes)
    classes, count = FACTS.get(recipe.data.name, (10, 50_000))
    facts = {"data.num_classes": classes, "data.image_shape": (32, 32, 3), "dtype": compute_dtype(recipe.dtype)}
    recipe = resolve(recipe, facts | {"data.train_count": count - recipe.data.validation})
    module, shape = training.model(recipe), input_shape(recipe)
    parameters, multiply_adds = counts(module, shape)
    rows = [("layer", "output", "parameters")]
    rows += [
        (f"{path} ({kind})", "x".join(map(str, size)), f"{number:,}")
        for path, kind, size, number in layers(module, shape)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [f"{name:{widths[0]}}  {size:>{widths[1]}}  {number:>{widths[2]}}" for name, size, number in rows]
    state = jax.eval_shape(lambda: training.init(recipe))
    size_of = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    steps = training.steps_per_epoch(recipe)
    work = 3 * 2 * multiply_adds * recipe.batch_size * steps * recipe.epochs
    return "\n".join(
        [
            *table,
            "",
            f"parameters           {parameters:,}",
            f"multiply-adds        {multiply_adds:,} for an image of {'x'.join(map(str, shape))}",
            f"training state       {size_of(state) / 2**20:,.1f} MiB (parameters, optimiser, averages)",
            f"saved activations    {saved_bytes(module, shape, recipe.batch_size) / 2**20:,.1f} MiB for a batch of"
            f" {recipe.batch_size} (before the compiler removes some)",
            f"training             {recipe.epochs} epochs of {steps} steps, {work / 1e15:.3g} PFLOP",
        ]
    )
