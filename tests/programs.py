"""The programs that our recipes compile to, in a normal form: what a change of structure must leave as it was.

python -m tests.programs            records tests/programs/jax-<version>.json, digests of every recipe's programs
python -m tests.programs cnn DIR    writes the programs of one recipe to a folder, to compare two versions with diff
"""

import functools
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax import training
from cifar_jax.runs import programs as compiled
from cifar_jax.training import evaluation
from tests import made
from tests.test_recipes import RECIPES, small

RECORDED = Path(__file__).parent / "programs" / f"jax-{jax.__version__}.json"


def programs(name: str) -> dict[str, str]:
    """{"epoch", "evaluation"}: the first epoch of a small copy of the recipe, and its evaluation on the test split."""
    chosen = small(name)
    batch_size = 8 * chosen.gradient_accumulation
    recipe = made.resolved(chosen, {"batch_size": batch_size, "data.train_count": 4 * batch_size})
    arrays = lambda number: (
        jax.ShapeDtypeStruct((number, *recipe.data.image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((number,), jnp.int32),
    )
    state, train_set = jax.eval_shape(lambda: training.init(recipe)), arrays(4 * batch_size)
    shared, values = compiled.shared(recipe), compiled.numbers(recipe)
    epoch = functools.partial(compiled.epochs, shared, compiled.phases(recipe, 0, 1), None)
    evaluate = lambda state, images, labels: evaluation.sums(
        recipe, training.evaluated_weights(state), images, labels, recipe.evaluation.views
    )
    return {
        "epoch": normal_form(epoch, values, state, train_set, arrays(12), None),
        "evaluation": normal_form(evaluate, state, *arrays(20)),
    }


def normal_form(function: Any, *arguments: Any) -> str:
    """The StableHLO of `function` for the CPU without locations and names of results; functions in the order of their
    first call, and arguments, values and functions numbered by first use."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
    text = re.sub(r'jax\.result_info = "[^"]*"', "", text)
    functions = dict(re.findall(r"^  func\.func \w+ @(\S+?)(\(.*?^  \})", text, re.DOTALL | re.MULTILINE))
    order = _called(functions, "main", [])
    numbers = {name: f"@f{number}" for number, name in enumerate(order)}
    parts = []
    for name in order:
        header, _, body = functions[name].partition("{\n    ")
        body = re.sub(r"@([\w.$-]+)", lambda match: numbers.get(match[1], match[0]), body)
        values: dict[str, str] = {}
        rename = lambda match, values=values: values.setdefault(match[0], f"%{len(values)}")
        body = re.sub(r"%[\w$]+", rename, body)
        header = re.sub(r"%[\w$]+", rename, header)
        parts.append(f"{numbers[name]} {header} {{\n    {body}")
    return "\n".join(parts)


def _called(functions: dict[str, str], name: str, order: list[str]) -> list[str]:
    """The functions reached from `name`, each once, in the order of their first call."""
    if name in functions and name not in order:
        order.append(name)
        for other in re.findall(r"@([\w.$-]+)", functions[name]):
            _called(functions, other, order)
    return order


def digests(name: str) -> dict[str, str]:
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in programs(name).items()}


def main(arguments: list[str]) -> None:
    if arguments:
        name, folder = arguments
        Path(folder).mkdir(parents=True, exist_ok=True)
        for part, text in programs(name).items():
            Path(folder, f"{name}-{part}.txt").write_text(text)
    else:
        RECORDED.parent.mkdir(exist_ok=True)
        recorded = {name: digests(name) for name in RECIPES}
        RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
