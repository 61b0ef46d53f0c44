"""The command line in a checkout: `python launch.py` is the command `cifar-jax`. See cifar_jax/cli.py."""

from cifar_jax.cli import start

if __name__ == "__main__":
    start()
