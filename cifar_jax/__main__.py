"""python -m cifar_jax: the command line."""

import sys

from cifar_jax.cli import start

sys.exit(start())
