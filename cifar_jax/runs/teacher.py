"""The teacher of distillation: another run, as the arrays and facts that the objective needs."""

from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.recipe import to_json
from cifar_jax.runs.workdir import load_classifier


def load_teacher(recipe: Any, context: Any, classes: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """(context, facts of the recipe): the weights of objective.teacher and how it takes its inputs; the caller's
    context and {} for every other objective. Raises InputError where the teacher does not fit."""
    if recipe.objective.name != "distillation" or not recipe.objective.get("teacher"):
        return context, {}
    path = recipe.objective.teacher
    teacher = load_classifier(path)
    if teacher.classes != classes:
        raise InputError(f"objective.teacher '{path}' knows classes {teacher.classes}; the data set has {classes}")
    if teacher.recipe.data.input_size != recipe.data.input_size:
        raise InputError(f"objective.teacher '{path}' takes images of another data.input_size; use the same")
    model = to_json(teacher.recipe.model)
    facts = {"model": model, "mean": teacher.recipe.data.mean, "std": teacher.recipe.data.std}
    return teacher.weights, {"teacher": facts}
