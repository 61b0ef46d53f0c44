"""Whether a recipe can be trained: what a training run asks before it writes anything."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from ml_collections import FrozenConfigDict

from cifar_jax.errors import InputError, with_article
from cifar_jax.recipe import build, override, to_json
from cifar_jax.training.augment import views
from cifar_jax.training.objectives import Batch, objective_of
from cifar_jax.training.optimizers import OPTIMIZERS
from cifar_jax.training.schedules import steps_per_epoch
from cifar_jax.training.state import apply_in_training, init, input_shape, model
from cifar_jax.training.step import train_step


def check(recipe: Any, context: Any = None) -> None:
    """Raises InputError unless the resolved recipe can be built and its numbers make sense; `context` is that of the
    objective."""
    count = recipe.data.train_count
    if recipe.batch_size > count:
        raise InputError(f"batch_size={recipe.batch_size} is larger than the training set of {count} images; lower it")
    _check_ranges(recipe)
    _check_data(recipe)
    _check_combinations(recipe)
    views(recipe.evaluation.views)
    try:
        if context is None:
            _trace_once(FrozenConfigDict(override(recipe, {"seed": 0})))
        else:
            _trace(recipe, context)
    except InputError:
        raise
    except ScopeParamShapeError as error:
        cause = "the images of a step have another size than its parameters are for; look at `augment` and `model`"
        raise InputError(f"the model cannot be trained: {cause} ({str(error).splitlines()[0]})") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:  # a size that no layer can have, for instance
        cause = str(error).splitlines()[0]
        remedy = "check its sizes and the functions that were passed to fit"
        raise InputError(f"the recipe cannot be built: {cause}; {remedy}") from error


def _trace(recipe: Any, context: Any) -> None:
    """Builds everything without computing anything."""
    build(OPTIMIZERS, recipe.optimizer, "optimizer")
    state = jax.eval_shape(lambda: init(recipe))
    if objective_of(recipe).predicts:
        for section in ("model", "proxy") if recipe.selection.share else ("model",):
            _check_logits(recipe, state, section)
    _check_step(recipe, state, context)


@functools.lru_cache(32)
def _trace_once(recipe: FrozenConfigDict) -> None:
    """The seeds of a study differ, and their traces do not; an exception is not kept."""
    _trace(recipe, None)


def _check_ranges(recipe: Any) -> None:
    of_proxy = [(f"proxy{field[5:]}", low, high) for field, low, high in RANGES if field.startswith("model.")]
    for field, low, high in RANGES + (of_proxy if recipe.selection.share else []):
        value = recipe
        for name in field.split("."):
            value = value.get(name) if not callable(value) else None
            if value is None:
                break
        if isinstance(value, int | float) and not low <= value <= high:
            allowed = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
            raise InputError(f"recipe field '{field}' is {value}; it must be {allowed}")


def _check_data(recipe: Any) -> None:
    channels = recipe.data.image_shape[-1]
    for field in ("mean", "std"):
        values = recipe.data[field]
        if len(values) not in (1, channels) or (field == "std" and not all(value > 0 for value in values)):
            raise InputError(
                f"recipe field 'data.{field}' is {values}; it takes one number, or {channels} (std above 0)"
            )


def _check_combinations(recipe: Any) -> None:
    """Fields that exclude or need each other."""
    if recipe.early_stopping.metric not in ("validation_accuracy", "validation_loss"):
        metric = recipe.early_stopping.metric
        raise InputError(f"early_stopping.metric is '{metric}'; it must be 'validation_accuracy' or 'validation_loss'")
    if recipe.chunk_epochs > 1 and 0 < recipe.part_steps < steps_per_epoch(recipe):
        both = f"part_steps={recipe.part_steps} and chunk_epochs={recipe.chunk_epochs}"
        raise InputError(f"{both}: one splits epochs and the other joins them; set part_steps=0 or chunk_epochs=1")
    if not callable(recipe.augment) and recipe.augment.flip and recipe.augment.alternating_flip:
        raise InputError("augment.flip and augment.alternating_flip undo each other; set one of them to 0")
    averages = {
        "average.decay": recipe.average.decay,
        "average.start_epoch": recipe.average.start_epoch,
        "lookahead.steps": recipe.lookahead.steps,
    }
    chosen = [field for field, value in averages.items() if value]
    if len(chosen) > 1:
        raise InputError(f"{', '.join(chosen)} are set; a run keeps one average of weights")
    if recipe.average.start_epoch > recipe.epochs:
        late = recipe.average.start_epoch
        raise InputError(f"average.start_epoch={late} is after the last of {recipe.epochs} epochs")
    trained, parts = round(recipe.batch_size * (recipe.selection.share or 1)), recipe.gradient_accumulation
    if not trained or trained % parts:
        size = f"batch_size={recipe.batch_size}"
        size += f" times selection.share={recipe.selection.share}" if recipe.selection.share else ""
        raise InputError(f"{size} does not divide into gradient_accumulation={parts} parts")


def _check_logits(recipe: Any, state: Any, section: str) -> None:
    """Raises InputError unless the model of `section` returns float logits [B, classes]; [B, 1] would train."""
    own = {"params": state.params, "batch_stats": state.batch_stats} if section == "model" else state.proxy
    images = jax.ShapeDtypeStruct((recipe.batch_size, *input_shape(recipe)), jnp.float32)

    def apply(params: Any, batch_stats: Any, images: Any) -> Any:
        return apply_in_training(model(recipe, section), params, batch_stats, images, jax.random.key(0))[0]

    found = jax.eval_shape(apply, own["params"], own["batch_stats"], images)
    expected = [recipe.batch_size, recipe.data.num_classes]
    array = isinstance(found, jax.ShapeDtypeStruct)
    if array and list(found.shape) == expected and jnp.issubdtype(found.dtype, jnp.floating):
        return
    returned = f"{found.dtype} {list(found.shape)}" if array else with_article(type(found).__name__)
    raise InputError(
        f"{section} '{to_json(recipe)[section]['name']}' returns {returned} for {recipe.batch_size} images; it must "
        f"return logits, one float array {expected} with a column for each class"
    )


def _check_step(recipe: Any, state: Any, context: Any) -> None:
    """Traces a step without computing anything."""
    images: Any = jax.ShapeDtypeStruct((recipe.batch_size, *recipe.data.image_shape), jnp.uint8)
    labels: Any = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32)
    epoch: Any = jax.ShapeDtypeStruct((), jnp.int32)
    batch = Batch(images, labels, labels, epoch)
    jax.eval_shape(functools.partial(train_step, recipe, context=context), state, batch)


RANGES: list[tuple[str, float, float]] = [  # field, least, most
    ("seed", 0, 2**31 - 1),
    ("seeds.weights", -1, 2**31 - 1),
    ("seeds.order", -1, 2**31 - 1),
    ("seeds.augmentation", -1, 2**31 - 1),
    ("epochs", 1, float("inf")),
    ("batch_size", 1, float("inf")),
    ("chunk_epochs", 1, float("inf")),
    ("part_steps", 0, float("inf")),
    ("gradient_accumulation", 1, float("inf")),
    ("data.validation", 0, float("inf")),
    ("data.seed", 0, 2**32 - 1),
    ("data.input_size", 0, float("inf")),
    ("optimizer.learning_rate", 0, float("inf")),
    ("optimizer.weight_decay", 0, float("inf")),
    ("optimizer.momentum", 0, 1),
    ("optimizer.beta1", 0, 1),
    ("optimizer.beta2", 0, 1),
    ("optimizer.epsilon", 0, float("inf")),
    ("optimizer.steps", 1, float("inf")),
    ("optimizer.sgd_factor", 0, float("inf")),
    ("optimizer.sgd_momentum", 0, 1),
    ("gradient_clip_norm", 0, float("inf")),
    ("model.dropout", 0, 1),
    ("model.drop_path", 0, 1),
    ("model.width", 1, float("inf")),
    ("model.hidden", 0, float("inf")),
    ("model.kernel_size", 1, float("inf")),
    ("model.widen", 1, float("inf")),
    ("model.depth", 1, float("inf")),
    ("model.growth", 1, float("inf")),
    ("model.heads", 1, float("inf")),
    ("model.patch_size", 1, float("inf")),
    ("schedule.warmup_epochs", 0, float("inf")),
    ("schedule.peak", 1e-6, 1 - 1e-6),
    ("schedule.start", 0, 1),
    ("schedule.final", 0, 1),
    ("schedule.factor", 0, 1),
    ("loss.label_smoothing", 0, 1),
    ("loss.gamma", 0, float("inf")),
    ("augment.flip", 0, 1),
    ("augment.alternating_flip", 0, 1),
    ("augment.vertical_flip", 0, 1),
    ("augment.crop", 0, float("inf")),
    ("augment.rotation", 0, 180),
    ("augment.brightness", 0, 1),
    ("augment.contrast", 0, 1),
    ("augment.saturation", 0, 1),
    ("augment.randaugment", 0, 10),
    ("augment.trivial_augment", 0, 1),
    ("augment.cutout", 0, float("inf")),
    ("augment.inner_cutout", 0, float("inf")),
    ("augment.random_erasing", 0, 1),
    ("augment.mixup", 0, float("inf")),
    ("augment.cutmix", 0, float("inf")),
    ("average.decay", 0, 1),
    ("average.start_epoch", 0, float("inf")),
    ("lookahead.steps", 0, float("inf")),
    ("lookahead.pull", 0, 1),
    ("lookahead.power", 0, float("inf")),
    ("sam.rho", 0, float("inf")),
    ("selection.share", 0, 1),
    ("selection.every", 1, float("inf")),
    ("early_stopping.patience", 0, float("inf")),
    ("checkpoint.every_epochs", 0, float("inf")),
    ("checkpoint.every_minutes", 0, float("inf")),
    ("evaluation.batch_size", 1, float("inf")),
]
