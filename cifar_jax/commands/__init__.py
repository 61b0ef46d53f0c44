"""The commands of the command line, one module each; `cifar_jax.cli.COMMANDS` lists them. Read train.py first.

A command module has a docstring, which its --help shows, and two functions:
    add_arguments(parser)    adds its arguments to an argparse.ArgumentParser
    run(options) -> int      does the work and returns the exit code; options.changes holds {recipe field: value}
"""
