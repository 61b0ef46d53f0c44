"""Evaluate a trained run on one split of its data set."""

import argparse
import json
from pathlib import Path

import cifar_jax as cj


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--split", default="test", help="test, validation or train")
    parser.add_argument("--views", help="one, mirror or mirror_shift; the recipe's if not given")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument(
        "--save_predictions",
        nargs="?",
        const="predictions.npz",
        metavar="FILE",
        help="write labels, probabilities, embeddings and indices of the images there; predictions.npz",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the result; table")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.runs.evaluate import at_temperature, evaluate_and_predict
    from cifar_jax.runs.files import write_arrays

    trained = cj.load_run(options.workdir)
    chosen = {"views": options.views, "data_dir": options.data_dir, "embeddings": bool(options.save_predictions)}
    result, found = evaluate_and_predict(trained, options.split, **chosen)
    if options.save_predictions:
        write_arrays(Path(options.save_predictions), at_temperature(trained, found).arrays())
    print(json.dumps(result.to_json(), indent=2) if options.format == "json" else result)
    return 0
