"""The temperature of a run: fitted on its validation split, and stored with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax.runs.calibration import Calibration, calibration, fit_temperature
from cifar_jax.runs.evaluate import evaluate_and_predict
from cifar_jax.runs.workdir import Run, locked, read_predictions, update_record


def calibrate(
    run: Run, *, data_dir: str | Path | None = None, data: Mapping[str, Any] | None = None, progress: bool = True
) -> tuple[Calibration, Calibration]:
    """Fits the temperature on the validation split; its figures there before and after. `data` is as for `fit`.

    A run with a workdir keeps the temperature in run.json, and `load_classifier` applies it to probabilities. Raises
    InputError where the run has no validation split.
    """
    predictions = read_predictions(run.workdir, "validation") if run.workdir else None
    if predictions is None:
        predictions = evaluate_and_predict(run, "validation", data_dir=data_dir, data=data, progress=progress)[1]
    temperature = fit_temperature(predictions.probabilities, predictions.labels)
    if run.workdir:
        with locked(run.workdir):
            update_record(run.workdir, temperature=temperature)
    figures = lambda at: calibration(predictions.probabilities, predictions.labels, at)
    return figures(1.0), figures(temperature)
