"""cifar_jax: image classification on CIFAR-10 in JAX and Flax. The API of a research script:

import cifar_jax as cj
cj.prepare_process()  # optional: the allocator and the compilation cache, before jax is imported
recipe = cj.load_recipe("configs/resnet18.py", {"optimizer.learning_rate": 0.1})
run = cj.fit(recipe, workdir="runs/r18")
result = cj.evaluate(run, split="test")
classifier = cj.load_run("runs/r18")

A name is imported when it is first used (PEP 562), so that `prepare_process` can run before jax is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_jax.errors import InputError
    from cifar_jax.process import prepare_process
    from cifar_jax.recipe import override
    from cifar_jax.runs.fit import evaluate, fit, load_recipe
    from cifar_jax.runs.workdir import Run, load_run

__version__ = "0.1.0"
__all__ = ["InputError", "Run", "evaluate", "fit", "load_recipe", "load_run", "override", "prepare_process"]

# Where each public name is defined; the imports above tell type checkers the same.
_MODULES = {
    "InputError": "errors",
    "Run": "runs.workdir",
    "evaluate": "runs.fit",
    "fit": "runs.fit",
    "load_recipe": "runs.fit",
    "load_run": "runs.workdir",
    "override": "recipe",
    "prepare_process": "process",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
