"""What one step and one epoch compute, as pure functions of a recipe. Read `step.py` first, then `state.py`.

policies, augment      augmentation on the device, views of an image       losses          of logits and targets
optimizers, schedules  by name; the learning rate of a step                parameter_groups, update   the optimiser
keys                   seeds and purposes of random numbers                state           TrainState, model, inputs
gradients              accumulation, SAM, float16 scaling                  objectives      what is trained for
selection, averaging   the hardest images; EMA, SWA, lookahead             step            train_step, train_epoch
metrics, evaluation    sums over a split, and what they say                check           is a recipe trainable
"""

from cifar_jax.training.check import check
from cifar_jax.training.objectives import Batch, Objective
from cifar_jax.training.schedules import learning_rate, steps_per_epoch
from cifar_jax.training.state import TrainState, evaluated_weights, init, model, model_inputs, prepare
from cifar_jax.training.step import Phase, phase_of, train_epoch, train_step

__all__ = [
    "Batch",
    "Objective",
    "Phase",
    "TrainState",
    "check",
    "evaluated_weights",
    "init",
    "learning_rate",
    "model",
    "model_inputs",
    "phase_of",
    "prepare",
    "steps_per_epoch",
    "train_epoch",
    "train_step",
]
