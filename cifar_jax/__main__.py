"""`python -m cifar_jax` is the command `cifar-jax`."""

from cifar_jax.cli import start

if __name__ == "__main__":
    start()
