"""The temperature and the thresholds of a run: chosen on its validation split, and stored with it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cifar_jax.runs.calibration import Calibration, calibration, choose_thresholds, fit_temperature, scale
from cifar_jax.runs.evaluate import evaluate_and_predict
from cifar_jax.runs.workdir import Run, locked, read_predictions, update_record


def calibrate(
    run: Run, *, data_dir: str | Path | None = None, data: Mapping[str, Any] | None = None, progress: bool = True
) -> tuple[Calibration, Calibration]:
    """Fits the temperature on the validation split; its figures there before and after. `data` is as for `fit`.

    A run with a workdir keeps the temperature in run.json, and `load_classifier` applies it to probabilities; it keeps
    the thresholds of `choose_thresholds` at that temperature too. Raises InputError where the run has no validation
    split.
    """
    predictions = read_predictions(run.workdir, "validation") if run.workdir else None
    if predictions is None:
        predictions = evaluate_and_predict(run, "validation", data_dir=data_dir, data=data, progress=progress)[1]
    temperature = fit_temperature(predictions.probabilities, predictions.labels)
    if run.workdir:
        thresholds = choose_thresholds(scale(predictions.probabilities, temperature), predictions.labels)
        with locked(run.workdir):
            update_record(run.workdir, temperature=temperature, thresholds=[asdict(each) for each in thresholds])
    figures = lambda at: calibration(predictions.probabilities, predictions.labels, at)
    return figures(1.0), figures(temperature)
