"""The packages of a wheel; all else is in pyproject.toml, which cannot name a package outside the folder of its name.

The recipes in configs/ become cifar_jax.configs, where `load_recipe` finds them.
"""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    packages=[
        *find_packages(include=["cifar_jax*"]),
        "cifar_jax.configs",
        *(f"cifar_jax.configs.{name}" for name in find_namespace_packages("configs", exclude=["__pycache__"])),
    ],
    package_dir={"cifar_jax.configs": "configs"},
)
