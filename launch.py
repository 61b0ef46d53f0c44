"""cifar_jax on the command line: see `python launch.py --help`. Without arguments it trains the quickstart."""

import sys

from cifar_jax.cli import start

if __name__ == "__main__":
    sys.exit(start())
