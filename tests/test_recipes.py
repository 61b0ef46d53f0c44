"""One table visits every recipe in configs/: it fits CIFAR-10, a small copy learns, and it says what it reaches."""

import ast
import functools
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cifar_jax import training
from cifar_jax.models import MODELS
from cifar_jax.recipe import differences, flatten, freeze, from_json, resolve, to_json
from cifar_jax.runs.devices import jit
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training import evaluation
from cifar_jax.training.check import check
from tests import made
from tests.models.test_models import TINY

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "base")
STEPS = 200  # of the small runs, an epoch each; they cost next to nothing once compiled
every_recipe = pytest.mark.parametrize("name", RECIPES)


def load(name, changes=None):
    return load_recipe(CONFIGS / f"{name}.py", changes)


def smallest(model):
    """The fields that make it small: those of a member of its class in TINY."""
    kinds = {member: getattr(MODELS[member], "func", MODELS[member]) for member in MODELS}
    found = [fields for member, fields in TINY.items() if kinds[member] is kinds[model]]
    assert found, f"model '{model}' has no small member: add one of its class to TINY in tests/models/test_models.py"
    return found[0]


@functools.cache
def small(name):
    """The recipe for `made.split()` in `STEPS` steps: a small model, and what is counted in pixels, epochs or steps by
    a full run's sizes in proportion. Optimiser, schedule, loss and augmentations are its own."""
    recipe = load(name)
    pixels, share = made.SIZE / 32, STEPS / recipe.epochs
    steps = (50_000 - recipe.data.validation) // recipe.batch_size * recipe.epochs
    changes = {
        "dtype": "float32",
        "epochs": STEPS,
        "batch_size": made.COUNT,
        "model": smallest(recipe.model.name),
        "augment": {field: math.ceil(recipe.augment[field] * pixels) for field in ("crop", "cutout", "inner_cutout")},
        "groups": tuple((*group[:3], *(epochs * share for epochs in group[3:])) for group in recipe.groups),
        "average.start_epoch": math.ceil(recipe.average.start_epoch * share),
        "average.decay": recipe.average.decay ** (steps / STEPS),
    }
    if "warmup_epochs" in recipe.schedule:
        changes["schedule.warmup_epochs"] = recipe.schedule.warmup_epochs * share
    if recipe.selection.share:
        changes["proxy"] = smallest(recipe.proxy.name)
    if name.startswith("speedrun"):  # their rates of SGD are for sums over a batch
        rate = "sgd_factor" if "sgd_factor" in recipe.optimizer else "learning_rate"
        changes[f"optimizer.{rate}"] = recipe.optimizer[rate] * made.COUNT / recipe.batch_size
    if "milestones" in recipe.schedule:
        changes["schedule.milestones"] = tuple(milestone * share for milestone in recipe.schedule.milestones)
    return made.resolved(recipe, changes)


@functools.cache
def run(name):
    """The small run -> (the first state, the states after each step, sums, losses before and after).

    The losses are what an evaluation of the 32 images reports: not augmented, with running statistics, no dropout, and
    the averaged weights where the recipe averages.
    """
    recipe, data = small(name), made.split()

    def steps(start, images, labels):
        def epoch(state, _):
            state, sums = training.train_epoch(recipe, state, images, labels)
            return state, (state, sums)

        return jax.lax.scan(epoch, start, length=STEPS)

    def loss(weights, images, labels):
        return evaluation.sums(recipe, weights, images, labels, "one")["loss_sum"] / len(labels)

    start = jit(lambda: training.init(recipe))()  # three programs: recipes of one model share the first and the last
    last, (states, sums) = jit(steps)(start, data.images, data.labels)
    evaluate = jit(loss)
    losses = [evaluate(training.evaluated_weights(state), data.images, data.labels) for state in (start, last)]
    return jax.device_get((start, states, sums, losses))


def test_there_are_recipes():
    assert {"cnn", "resnet18", "quickstart"} <= set(RECIPES)


@pytest.mark.parametrize("name", ["base", *RECIPES])
def test_a_recipe_comes_back_from_json(name):
    recipe = load(name)
    back = from_json(json.loads(json.dumps(to_json(freeze(recipe)))))
    assert back == recipe
    assert differences(recipe, back) == []
    for field, value in flatten(recipe).items():
        assert type(flatten(back)[field]) is type(value), field


@pytest.mark.parametrize("name", ["base", *RECIPES])
def test_a_recipe_fits_cifar10_in_full_size(name):
    """As on a GPU, in bfloat16, without computing anything."""
    count = 50_000 - load(name).data.validation
    facts = {"data.num_classes": 10, "data.image_shape": (32, 32, 3), "data.train_count": count}
    recipe = load(name, {"dtype": "bfloat16"})
    check(resolve(recipe, facts | made.weights_of(recipe, 10)))


@every_recipe
def test_two_steps_change_every_parameter_and_all_steps_stay_finite(name):
    start, states, sums, _ = run(name)
    frozen = [pattern for pattern, factor, *_ in small(name).groups if factor == 0]
    for (path, before), after in zip(
        jax.tree.leaves_with_path(start.params), jax.tree.leaves(states.params), strict=True
    ):
        path = "/".join(part.key for part in path)
        fixed = any(re.fullmatch(pattern, path) for pattern in frozen)
        assert np.any(after[1] != before) != fixed, path
    for path, leaf in jax.tree.leaves_with_path((states, sums)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


@every_recipe
def test_the_loss_falls_on_32_images(name):
    """Clearly below where it began, and below that of equal odds for every class."""
    before, after = run(name)[3]
    assert after < 0.85 * min(before, math.log(made.CLASSES))


@every_recipe
def test_a_recipe_says_how_to_train_it_and_what_it_reaches(name):
    """Either a test accuracy with its n, or that none is measured yet."""
    docstring = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text())) or ""
    text = " ".join(docstring.split())
    command = f"launch.py train --config=configs/{name}.py"
    assert re.search(rf"{re.escape(command)}(\s|$)", text), f"the docstring lacks '{command}'"
    measured = re.search(r"test accuracy \d+(\.\d+)?%( ± \d+(\.\d+)?)? \([^)]*\bn=\d+", text)
    waiting = re.search(r"not measured yet", text, re.IGNORECASE)
    assert bool(measured) != bool(waiting), (
        "say 'test accuracy 95.51% ± 0.12 (n=3, ...)' or 'not measured yet' in the docstring, and not both"
    )
