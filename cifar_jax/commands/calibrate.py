"""Fit the temperature of a run on its validation split, and choose thresholds of classes. Both are stored with it."""

import argparse

import cifar_jax as cj


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--class_name", metavar="NAME", help="also choose the threshold of this class")
    parser.add_argument("--recall", type=float, metavar="R", help="that the threshold has to reach, 0 to 1")
    parser.add_argument("--precision", type=float, metavar="P", help="that it has to reach, in place of a recall")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.errors import InputError
    from cifar_jax.runs.thresholds import check_wanted

    if options.class_name is None and (options.recall is not None or options.precision is not None):
        raise InputError("--recall and --precision belong to a class; name it with --class_name")
    trained = cj.load_run(options.workdir)
    wanted = {"recall": options.recall, "precision": options.precision}
    if options.class_name is not None:
        check_wanted(trained.classes, options.class_name, **wanted)  # before the temperature is stored
    found = cj.calibrate(trained, data_dir=options.data_dir)
    print("on validation   temperature    loss   Brier  calibration error")
    for name, figures in zip(("before", "after"), found, strict=True):
        scores = f"{figures.loss:6.4f}  {figures.brier_score:6.4f}  {figures.expected_calibration_error:17.2%}"
        print(f"{name:14}  {figures.temperature:11.3f}  {scores}")
    if options.class_name is not None:
        print(cj.choose_threshold(trained, options.class_name, **wanted, data_dir=options.data_dir))
    return 0
