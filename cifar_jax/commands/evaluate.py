"""Evaluate a trained run on one split of its data set, of another one, under corruptions, and against other images."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cifar_jax as cj


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--split", default="test", help="test, validation or train")
    parser.add_argument("--data", metavar="NAME", help="another data set, or a folder of images: classes match by name")
    parser.add_argument(
        "--corruptions", action="store_true", help="the split corrupted as in CIFAR-10-C, at five severities"
    )
    parser.add_argument(
        "--out_of_distribution",
        action="append",
        default=[],
        metavar="NAME",
        help="tell the split from a data set, a folder of images, or noise; may be repeated",
    )
    parser.add_argument("--views", help="one, mirror, flips or mirror_shift; the recipe's if not given")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument(
        "--save_predictions",
        nargs="?",
        const="predictions.npz",
        metavar="FILE",
        help="write labels, probabilities, embeddings and indices of the images there, or a line for each image where"
        " FILE ends in .csv; predictions.npz",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the result; table")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.runs.calibration import calibration
    from cifar_jax.runs.evaluate import at_thresholds, by_thresholds, evaluate_and_predict

    trained = cj.load_run(options.workdir)
    chosen = {"views": options.views, "data_dir": options.data_dir, "data": options.data}
    path = Path(options.save_predictions) if options.save_predictions else None
    check_names(options, path)
    embeddings = path is not None and path.suffix != ".csv"
    result, found = evaluate_and_predict(trained, options.split, embeddings=embeddings, **chosen)
    if path is not None:
        save(path, trained, found, options)
    figures = result.to_json()
    shown = [str(result)]
    if trained.temperature != 1.0:
        scaled = calibration(found.probabilities, found.labels, trained.temperature)
        figures["at_temperature"] = asdict(scaled)
        shown[0] += f"\nat the run's temperature of {scaled.temperature:.3f}: loss {scaled.loss:.4f}, "
        shown[0] += f"calibration error {scaled.expected_calibration_error:.2%}"
    if trained.thresholds:
        reached = at_thresholds(trained, found)
        figures["thresholds"] = [threshold.to_json() for threshold in reached]
        decided = by_thresholds(trained, found, result)
        figures["by_thresholds"] = decided.to_json()
        heading = f"by the thresholds of {', '.join(trained.thresholds)}, as predict names the classes"
        shown += [f"{heading}: accuracy {decided.accuracy:.2%}\n{decided.table()}", *map(str, reached)]
    if options.corruptions or options.out_of_distribution:
        wanted = {"corruptions": options.corruptions, "out_of_distribution": options.out_of_distribution}
        robustness = cj.robustness(trained, options.split, **wanted, **chosen)
        figures["robustness"] = robustness.to_json()
        at = f"at the run's temperature of {trained.temperature:.3f}:\n" if trained.temperature != 1.0 else ""
        shown.append(f"{at}{robustness}")
    print(json.dumps(figures, indent=2) if options.format == "json" else "\n\n".join(shown))
    return 0


def check_names(options: argparse.Namespace, path: Path | None) -> None:
    """Raises InputError where a CSV file would have no names of its images."""
    if path is not None and path.suffix == ".csv" and options.data and Path(options.data).exists():
        remedy = f"`predict {options.data} --workdir={options.workdir} --out={path}` does"
        raise cj.InputError(f"evaluate does not name the files of another data set, '{options.data}'; {remedy}")


def save(path: Path, run: "cj.Run", found: Any, options: argparse.Namespace) -> None:
    """The predictions as arrays, or as a line for each image where the file is a CSV."""
    from cifar_jax.runs.evaluate import at_temperature, image_names, predictions_csv
    from cifar_jax.runs.files import write_arrays, write_bytes

    scaled = at_temperature(run, found)
    if path.suffix == ".csv":
        assert scaled.indices is not None
        names = image_names(run, options.split, scaled.indices, data=options.data, data_dir=options.data_dir)
        write_bytes(path, predictions_csv(run, found, names).encode())
    else:
        write_arrays(path, scaled.arrays())
    print(f"wrote {path}", file=sys.stderr)
