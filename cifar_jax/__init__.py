"""cifar_jax: image classification on CIFAR-10 in JAX and Flax. The API of a research script:

import cifar_jax as cj
recipe = cj.load_recipe("configs/resnet18.py", {"optimizer.learning_rate": 0.1})
run = cj.fit(recipe, workdir="runs/r18")
result = cj.evaluate(run, split="test")
classifier = cj.load_run("runs/r18")
"""

from cifar_jax.errors import InputError
from cifar_jax.recipe import override
from cifar_jax.runs.fit import evaluate, fit, load_recipe
from cifar_jax.runs.workdir import Run, load_run

__all__ = ["InputError", "Run", "evaluate", "fit", "load_recipe", "load_run", "override"]
