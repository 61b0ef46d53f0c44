"""The temperature of a run and the thresholds of its classes: chosen on its validation split, and stored with it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax.runs.calibration import Calibration, calibration, fit_temperature
from cifar_jax.runs.evaluate import at_temperature, evaluate_and_predict
from cifar_jax.runs.thresholds import Threshold, choose_value
from cifar_jax.runs.workdir import Run, locked, read_predictions, read_record, update_record
from cifar_jax.training.metrics import SplitPredictions


def calibrate(
    run: Run, *, data_dir: str | Path | None = None, data: Mapping[str, Any] | None = None, progress: bool = True
) -> tuple[Calibration, Calibration]:
    """Fits the temperature on the validation split; its figures there before and after. `data` is as for `fit`.

    A run with a workdir keeps the temperature in run.json, and `load_classifier` applies it to probabilities. Another
    temperature than before removes the run's thresholds, which were chosen at the old one, with a warning. Raises
    InputError where the run has no validation split.
    """
    predictions = _validation(run, data_dir, data, progress)
    temperature = fit_temperature(predictions.probabilities, predictions.labels)
    changed = abs(temperature - run.temperature) > 1e-3 * temperature  # the fit ends within its own tolerance
    if changed and run.thresholds:
        names = ", ".join(run.thresholds)
        warnings.warn(f"the thresholds of {names} were chosen at another temperature; choose them again", stacklevel=2)
    if changed:
        run.use(temperature, {})
        if run.workdir:
            with locked(run.workdir):
                update_record(run.workdir, temperature=temperature, thresholds={})
    figures = lambda at: calibration(predictions.probabilities, predictions.labels, at)
    return figures(1.0), figures(run.temperature)


def choose_threshold(
    run: Run,
    class_name: str,
    *,
    recall: float | None = None,
    precision: float | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Threshold:
    """The probability from which an image is taken for a class, for a wanted recall or precision on validation.

    It is chosen at the run's temperature, kept in run.json, and used by everything that names the class of an image
    (`Classifier.predict`); probabilities stay as they are. Errors as for `thresholds.choose_value`.
    """
    predictions = at_temperature(run, _validation(run, data_dir, data, progress))
    given = (predictions.probabilities, predictions.labels, run.classes, class_name)
    threshold = choose_value(*given, recall=recall, precision=precision)
    run.use(run.temperature, {**run.thresholds, class_name: threshold})
    if run.workdir:
        with locked(run.workdir):
            stored = (read_record(run.workdir) or {}).get("thresholds", {})
            update_record(run.workdir, thresholds={**stored, class_name: threshold.to_json()})
    return threshold


def _validation(run: Run, data_dir: Any, data: Any, progress: bool) -> SplitPredictions:
    stored = read_predictions(run.workdir, "validation") if run.workdir else None
    if stored is not None:
        return stored
    return evaluate_and_predict(run, "validation", data_dir=data_dir, data=data, progress=progress)[1]
