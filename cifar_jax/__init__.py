"""cifar_jax: image classification on CIFAR-10 in JAX and Flax. The API of a research script:

import cifar_jax as cj
cj.prepare_process()  # optional: the allocator and the compilation cache, before jax is imported
recipe = cj.load_recipe("configs/resnet18.py", {"optimizer.learning_rate": 0.1})
run = cj.fit(recipe, workdir="runs/r18")
result = cj.evaluate(run, split="test")
classifier = cj.load_classifier("runs/r18")

A name is imported when it is first used (PEP 562), so that `prepare_process` can run before jax is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_jax.data.arrays import Split, dataset
    from cifar_jax.errors import InputError
    from cifar_jax.inference.export import export
    from cifar_jax.inference.index_files import load_index
    from cifar_jax.inference.similar import build_index, find_similar
    from cifar_jax.models.kernels import forward_mode
    from cifar_jax.process import prepare_process
    from cifar_jax.recipe import override
    from cifar_jax.reports.audit import audit
    from cifar_jax.reports.report import report
    from cifar_jax.runs.calibrate import calibrate, choose_threshold
    from cifar_jax.runs.classifier import Classifier
    from cifar_jax.runs.evaluate import evaluate, predictions
    from cifar_jax.runs.events import Event
    from cifar_jax.runs.fit import fit
    from cifar_jax.runs.recipes import load_recipe
    from cifar_jax.runs.robustness import robustness
    from cifar_jax.runs.workdir import Run, load_classifier, load_run
    from cifar_jax.studies.compare import compare
    from cifar_jax.studies.sweep import ablate, sweep
    from cifar_jax.studies.tune import tune
    from cifar_jax.studies.tuned import load_search
    from cifar_jax.training.objectives import Batch, Objective

__version__ = "0.1.0"

# Where each public name is defined; the imports above tell type checkers the same.
MODULES = {
    "Batch": "training.objectives",
    "Classifier": "runs.classifier",
    "Event": "runs.events",
    "InputError": "errors",
    "Objective": "training.objectives",
    "Run": "runs.workdir",
    "Split": "data.arrays",
    "ablate": "studies.sweep",
    "audit": "reports.audit",
    "build_index": "inference.similar",
    "calibrate": "runs.calibrate",
    "choose_threshold": "runs.calibrate",
    "compare": "studies.compare",
    "dataset": "data.arrays",
    "evaluate": "runs.evaluate",
    "export": "inference.export",
    "find_similar": "inference.similar",
    "fit": "runs.fit",
    "forward_mode": "models.kernels",
    "load_classifier": "runs.workdir",
    "load_index": "inference.index_files",
    "load_recipe": "runs.recipes",
    "load_run": "runs.workdir",
    "load_search": "studies.tuned",
    "override": "recipe",
    "predictions": "runs.evaluate",
    "prepare_process": "process",
    "report": "reports.report",
    "robustness": "runs.robustness",
    "sweep": "studies.sweep",
    "tune": "studies.tune",
}

__all__ = [
    "Batch",
    "Classifier",
    "Event",
    "InputError",
    "Objective",
    "Run",
    "Split",
    "ablate",
    "audit",
    "build_index",
    "calibrate",
    "choose_threshold",
    "compare",
    "dataset",
    "evaluate",
    "export",
    "find_similar",
    "fit",
    "forward_mode",
    "load_classifier",
    "load_index",
    "load_recipe",
    "load_run",
    "load_search",
    "override",
    "predictions",
    "prepare_process",
    "report",
    "robustness",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'cifar_jax' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"cifar_jax.{MODULES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
