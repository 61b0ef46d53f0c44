"""Write a trained model for other programs: archive, StableHLO, ONNX, torchvision's names, and a model card."""

import argparse

import cifar_jax as cj


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--out", required=True, help="folder to write, which does not exist yet")
    parser.add_argument(
        "--formats",
        help="beside the archive: some of stablehlo,onnx,torchvision, separated by commas; those that the model has",
    )
    parser.add_argument("--force", action="store_true", help="replace an export that is there")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.inference.export import check

    formats = None if options.formats is None else [name for name in options.formats.split(",") if name]
    check(options.out, formats, options.force)  # before the run is loaded
    print(cj.export(cj.load_run(options.workdir), options.out, formats=formats, force=options.force))
    return 0
