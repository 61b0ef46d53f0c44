"""Groups of parameters with learning rates, weight decays and durations of their own; groups that are frozen."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from cifar_jax.errors import InputError

Groups = tuple[tuple[Any, ...], ...]


def grouped(
    groups: Groups, make: Callable[[float, float, float], optax.GradientTransformation], field: str = "groups"
) -> optax.GradientTransformation:
    """make(learning-rate factor, weight-decay factor, epochs) for each group (pattern, *those); a learning rate of 0
    freezes. A group need not name its epochs: then they are 0, which stands for those of the run.

    A pattern is a regular expression that matches a parameter's whole path, such as "Convolution_0/kernel"; `field` is
    the recipe's name of the groups.

    Raises InputError where a parameter matches no pattern or two, or a pattern no parameter.
    """
    if not groups:
        return make(1.0, 1.0, 0.0)
    _check(groups, field)

    def labels(params: Any) -> Any:
        paths = _paths(params)
        for pattern, *_ in groups:
            if not any(re.fullmatch(pattern, path) for path in jax.tree.leaves(paths)):
                known = ", ".join(jax.tree.leaves(paths))
                raise InputError(f"{field}: pattern '{pattern}' matches no parameter; there are {known}")
        return jax.tree.map(label, paths)

    def label(path: str) -> str:
        fitting = [str(number) for number, (pattern, *_) in enumerate(groups) if re.fullmatch(pattern, path)]
        if len(fitting) != 1:
            patterns = ", ".join(f"'{pattern}'" for pattern, *_ in groups)
            raise InputError(f"{field}: parameter '{path}' matches {len(fitting)} of {patterns}; it must match one")
        return fitting[0]

    def own(rate: float, decay: float, epochs: float = 0.0) -> optax.GradientTransformation:
        return make(rate, decay, epochs) if rate else optax.set_to_zero()

    return optax.partition({str(number): own(*rest) for number, (_, *rest) in enumerate(groups)}, labels)


def frozen_groups(groups: Groups, epoch: float) -> tuple[str, ...]:
    """The patterns of the groups that do not train from `epoch` on: their factor is 0, or their epochs are over."""
    _check(groups)
    over = lambda epochs: bool(epochs) and 0 < epochs[0] <= epoch
    return tuple(pattern for pattern, rate, _, *epochs in groups if not rate or over(epochs))


def stop_gradients(params: Any, patterns: tuple[str, ...]) -> Any:
    """The parameters, those whose path matches a pattern as constants: what only their gradients need falls away."""
    stop = lambda leaf, path: jax.lax.stop_gradient(leaf) if any(re.fullmatch(p, path) for p in patterns) else leaf
    return jax.tree.map(stop, params, _paths(params)) if patterns else params


def _check(groups: Groups, field: str = "groups") -> None:
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


def _paths(params: Any) -> Any:
    """The tree with each leaf's path, such as "Convolution_0/kernel", in its place."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(str(part.key) for part in path), params)
