"""Objectives: what a training step computes its loss from. An objective is replaced to train for something else than
classification (see examples/simclr.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError
from cifar_jax.models import MODELS
from cifar_jax.models.kernels import at_least_float32
from cifar_jax.recipe import Table, build
from cifar_jax.training.augment import augment
from cifar_jax.training.keys import Purpose, key
from cifar_jax.training.losses import LOSSES
from cifar_jax.training.state import model_inputs, normalise

Array = jax.Array
Inputs = dict[str, Array]  # what an objective prepares: arrays [B, ...]


class Batch(NamedTuple):
    """Some images of the training set."""

    images: Array  # uint8 [B, H, W, C]
    labels: Array  # int32 [B]
    positions: Array  # int32 [B], in the training set
    epoch: Array  # int32 [], from 0


@dataclass(frozen=True)
class Objective:
    """Two functions, and what they support.

    prepare(recipe, batch, key) -> inputs, a dictionary of arrays [B, ...]. It runs once in a step, outside of the
        gradient: augmentation and normalisation. It may make several views of each image.
    losses(recipe, apply, batch_stats, inputs, context, key) -> (losses [B], next batch_stats, metrics), where
        `apply(inputs, batch_stats, key) -> (outputs, next batch_stats)` is the model in training mode, bound to the
        parameters; `context` holds the arrays that `fit` was given, for example a teacher's weights; metrics are
        arrays [B], reported as their means. The metric "correct" is reported as the accuracy.
    supports: of "selection" (needs inputs "inputs" and "targets") and "gradient_accumulation" (the loss of an example
        must not depend on the others).
    predicts: whether the model's outputs are logits of the classes. If not, no accuracy is reported and no split is
        evaluated.
    """

    prepare: Callable[..., Inputs]
    losses: Callable[..., tuple[Array, Any, dict[str, Array]]]
    supports: tuple[str, ...] = ()
    predicts: bool = True


def prepare_classification(recipe: Any, batch: Batch, step_key: Array) -> Inputs:
    """{"inputs": augmented and normalised, "targets": float32 [B, classes], "labels"}."""
    wide = at_least_float32(recipe.dtype)
    targets = jax.nn.one_hot(batch.labels, recipe.data.num_classes, dtype=wide)
    images = batch.images.astype(wide) / 255
    given = {"index": batch.positions, "epoch": batch.epoch, "coin": key(recipe, Purpose.DATA_SET)}
    images, targets = augment(recipe.augment, step_key, images, targets, mean=recipe.data.mean, **given)
    return {"inputs": model_inputs(recipe, images), "targets": targets, "labels": batch.labels}


def classification_losses(
    recipe: Any, apply: Any, batch_stats: Any, inputs: Inputs, context: Any, step_key: Array
) -> tuple[Array, Any, dict[str, Array]]:
    """recipe.loss. An image that was mixed with another counts as correct by its own label."""
    logits, batch_stats = apply(inputs["inputs"], batch_stats, step_key)
    losses = build(LOSSES, recipe.loss, "loss", logits=logits, targets=inputs["targets"])
    return losses, batch_stats, {"correct": logits.argmax(-1) == inputs["labels"]}


def classification() -> Objective:
    """recipe.loss between the logits and the labels, or what mixup and cutmix make of them."""
    return Objective(prepare_classification, classification_losses, ("selection", "gradient_accumulation"))


@dataclass(frozen=True)
class DistillationLosses:
    """Hinton et al. 2015, section 2: (1 - weight) * recipe.loss + weight * temperature^2 * KL(teacher, student), both
    distributions softened by the temperature. `context` is {"params", "batch_stats"} of the teacher, whose model,
    mean and std stand in recipe.teacher; it sees the same augmented images, in evaluation mode."""

    temperature: float
    weight: float

    def __call__(
        self, recipe: Any, apply: Any, batch_stats: Any, inputs: Inputs, context: Any, step_key: Array
    ) -> tuple[Array, Any, dict[str, Array]]:
        logits, batch_stats = apply(inputs["inputs"], batch_stats, step_key)
        teacher_logits = jax.lax.stop_gradient(teacher_apply(recipe, context, inputs["inputs"]))
        soft = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)) / self.temperature)
        teacher_soft = jax.nn.log_softmax(teacher_logits.astype(soft.dtype) / self.temperature)
        divergence = jnp.sum(jnp.exp(teacher_soft) * (teacher_soft - soft), -1) * self.temperature**2
        hard = build(LOSSES, recipe.loss, "loss", logits=logits, targets=inputs["targets"])
        losses = (1 - self.weight) * hard + self.weight * divergence
        agrees = logits.argmax(-1) == teacher_logits.argmax(-1)
        return losses, batch_stats, {"correct": logits.argmax(-1) == inputs["labels"], "teacher_agreement": agrees}


def teacher_apply(recipe: Any, weights: Any, inputs: Array) -> Array:
    """The logits of the teacher for the student's inputs, normalised as the teacher knows them."""
    teacher = recipe.teacher
    dtype, classes = jnp.dtype(recipe.dtype), recipe.data.num_classes
    images = inputs * jnp.asarray(recipe.data.std, inputs.dtype) + jnp.asarray(recipe.data.mean, inputs.dtype)
    module: Any = build(MODELS, teacher.model, "model", num_classes=classes, dtype=dtype)
    return module.apply(weights, normalise(images, teacher.mean, teacher.std), train=False)


def distillation(teacher: str = "", temperature: float = 4.0, weight: float = 0.9) -> Objective:
    """The class probabilities of a teacher, the workdir of another run, beside the labels (Hinton et al. 2015)."""
    if not teacher:
        raise InputError("objective 'distillation' needs a teacher; set objective.teacher to the workdir of a run")
    if temperature <= 0 or not 0 <= weight <= 1:
        raise InputError(
            f"objective.temperature is {temperature} and objective.weight {weight}; the temperature must be above 0,"
            " and the weight between 0 and 1"
        )
    losses = DistillationLosses(temperature, weight)
    return Objective(prepare_classification, losses, ("gradient_accumulation",))


OBJECTIVES: Table = {"classification": classification, "distillation": distillation}


def objective_of(recipe: Any) -> Objective:
    """The objective that the recipe names. Raises InputError where a set option is not supported by it."""
    objective: Objective = build(OBJECTIVES, recipe.objective, "objective")
    if not isinstance(objective, Objective):
        raise InputError(f"objective '{recipe.objective.name}' gave {objective!r}; it must give a cifar_jax.Objective")
    options = {"selection": bool(recipe.selection.share), "gradient_accumulation": recipe.gradient_accumulation > 1}
    for option, wanted in options.items():
        if wanted and option not in objective.supports:
            name = recipe.objective.name if isinstance(recipe.objective.name, str) else "of the caller"
            raise InputError(f"objective '{name}' does not support {option}; switch {option} off")
    if recipe.early_stopping.patience and not objective.predicts:
        raise InputError("early_stopping needs class predictions, which this objective does not make")
    return objective
