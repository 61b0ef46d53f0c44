"""Groups of parameters with learning rates, weight decays and durations of their own; groups that are frozen."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from cifar_jax.errors import InputError


@dataclass(frozen=True)
class ParameterGroup:
    """The parameters whose whole path, such as "Convolution_0/kernel", matches a regular expression."""

    pattern: str
    learning_rate_factor: float  # 0 freezes
    weight_decay_factor: float
    epochs: float = 0.0  # the schedule ends there, and the group is frozen from then on; 0 stands for those of the run


def parameter_groups(groups: Any, field: str = "groups") -> list[ParameterGroup]:
    """Those of a recipe field, which holds tuples (pattern, learning-rate factor, weight-decay factor[, epochs]).

    Raises InputError, with the name of the field, where a tuple has another form.
    """
    for group in groups:
        if not (isinstance(group, tuple) and [type(part) for part in group[:1]] == [str] and len(group) in (3, 4)):
            form = "(pattern, learning-rate factor, weight-decay factor) or the same and epochs"
            raise InputError(f"{field} holds {group!r}; a group is {form}")
        if not all(isinstance(number, int | float) and number >= 0 for number in group[1:]):
            raise InputError(f"{field} holds {group!r}; its factors and epochs must be numbers of at least 0")
        try:
            re.compile(group[0])
        except re.error as error:
            raise InputError(
                f"{field} holds the pattern '{group[0]}', which is no regular expression: {error}"
            ) from None
    return [ParameterGroup(*group) for group in groups]


def grouped(
    groups: Any, make: Callable[[ParameterGroup], optax.GradientTransformation], field: str = "groups"
) -> optax.GradientTransformation:
    """The transformations of all groups together; `field` is the recipe's name of the groups.

    Raises InputError where a parameter matches no pattern or two, or a pattern no parameter.
    """
    if not groups:
        return make(ParameterGroup(".*", 1.0, 1.0))
    chosen = parameter_groups(groups, field)

    def labels(params: Any) -> Any:
        paths = _paths(params)
        for group in chosen:
            if not any(re.fullmatch(group.pattern, path) for path in jax.tree.leaves(paths)):
                known = ", ".join(jax.tree.leaves(paths))
                raise InputError(f"{field}: pattern '{group.pattern}' matches no parameter; there are {known}")
        return jax.tree.map(label, paths)

    def label(path: str) -> str:
        fitting = [str(number) for number, group in enumerate(chosen) if re.fullmatch(group.pattern, path)]
        if len(fitting) != 1:
            patterns = ", ".join(f"'{group.pattern}'" for group in chosen)
            raise InputError(f"{field}: parameter '{path}' matches {len(fitting)} of {patterns}; it must match one")
        return fitting[0]

    own = lambda group: make(group) if group.learning_rate_factor else optax.set_to_zero()
    return optax.partition({str(number): own(group) for number, group in enumerate(chosen)}, labels)


def frozen_patterns(groups: Any, epoch: float) -> tuple[str, ...]:
    """The patterns of the groups that do not train from `epoch` on: their factor is 0, or their epochs are over."""
    over = lambda group: 0 < group.epochs <= epoch
    return tuple(group.pattern for group in parameter_groups(groups) if not group.learning_rate_factor or over(group))


def stop_gradients(params: Any, patterns: tuple[str, ...]) -> Any:
    """The parameters, those whose path matches a pattern as constants: what only their gradients need falls away."""
    stop = lambda leaf, path: jax.lax.stop_gradient(leaf) if any(re.fullmatch(p, path) for p in patterns) else leaf
    return jax.tree.map(stop, params, _paths(params)) if patterns else params


def _paths(params: Any) -> Any:
    """The tree with each leaf's path, such as "Convolution_0/kernel", in its place."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(str(part.key) for part in path), params)
