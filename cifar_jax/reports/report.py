"""report: one page of HTML for a run, or for several runs and studies, without outside resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cifar_jax
from cifar_jax.errors import InputError, nearest
from cifar_jax.reports import plots, search_part
from cifar_jax.reports.figures import svg
from cifar_jax.reports.run_report import EMBEDDINGS, Figure, RunReport, run_report
from cifar_jax.runs.files import write_bytes
from cifar_jax.runs.workdir import load_run
from cifar_jax.studies.compare import compare
from cifar_jax.studies.comparison import Comparison
from cifar_jax.studies.study_file import read_study
from cifar_jax.studies.tables import Table
from cifar_jax.studies.tuned import Tuned, load_search
from cifar_jax.training.metrics import Evaluation

TEXTS = {
    "arms": "Points are runs, bars 95% intervals of the mean; the dashed line is the mean of the base.",
    "axis": "Points are runs, bars 95% intervals of the mean.",
    "differences": "Points are pairs of runs, bars 95% intervals of the difference; filled is significant (Holm).",
    "curves": "Mean of the runs; the band is their range.",
}


@dataclass
class StudyPart:
    """A comparison, or a search."""

    title: str
    tables: list[Table]
    sentences: list[str]
    figures: list[Figure]
    recipe: str = ""  # the file of the best recipe of a search; its docstring says how it is trained


def report(
    paths: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    metric: str = "validation_accuracy",
    embedding: str = "pca",
    figures: bool = False,
    progress: bool = True,
) -> Path:
    """Writes report.html for a run (its workdir), for several runs or studies, or for a search by `tune`, and returns
    its path.

    out: the folder of the page; that of the run or study if not given. data: as for `fit`, where the run had the
    caller's own. metric: what several runs are compared by. embedding: "pca", "tsne" or "none". figures: whether to
    write them as PNG and SVG too, into the folder `figures` beside the page.

    Raises InputError where a path holds no run, or a library is missing.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise InputError("there is nothing to report; give the folder of a run or a study")
    if embedding not in EMBEDDINGS:
        raise InputError(f"embedding is '{embedding}'{nearest(embedding, EMBEDDINGS)}")
    if out is None and len(given) > 1:
        raise InputError("a report of several runs needs a folder; give out='reports/NAME'")
    runs: list[RunReport] = []
    study = None
    if len(given) == 1 and not read_study(given[0]) and (given[0] / "run.json").exists():
        options: dict[str, Any] = {"data": data, "data_dir": data_dir, "embedding": embedding, "progress": progress}
        runs = [run_report(load_run(given[0]), **options)]
    elif len(given) == 1 and (given[0] / "tune.json").exists():
        study = search_report(load_search(given[0]))
    else:
        study = comparison_part(compare(given, metric=metric))
    path = Path(out or given[0]) / "report.html"
    if figures:
        every = [*(study.figures if study else []), *(figure for run in runs for figure in run.figures)]
        plots.write_figures(
            {title.lower().replace(" ", "_"): figure for title, figure, _ in every}, path.parent / "figures"
        )
    write_bytes(path, page(runs, study, " and ".join(map(str, given))).encode())
    return path


def search_report(found: Tuned) -> StudyPart:
    """All trials, figures, and the best recipe."""
    part = StudyPart(
        "Search", [found.table(len(found.trials))], search_part.sentences(found), search_part.figures(found)
    )
    if (best := found.folder / "best.py").exists():
        part.recipe = best.read_text()
    return part


def comparison_part(comparison: Comparison) -> StudyPart:
    """Tables, conclusions and plots of `compare`."""
    names = {"arms": "Arms", "differences": "Differences from the base", "curves": "Learning curves"}
    figures = []
    for name, figure in plots.figures(comparison).items():
        title, text = names.get(name, name.removeprefix("axis_")), TEXTS.get(name, TEXTS["axis"])
        figures.append((title, figure, text))
    return StudyPart("Comparison", comparison.tables(), comparison.sentences(), figures)


def drawn(figures: Sequence[Figure]) -> list[Figure]:
    """The figures as elements of a page."""
    return [(title, svg(figure, f"{title}. {text}"), text) for title, figure, text in figures]


def class_table(evaluation: Evaluation, has_thresholds: bool) -> Table:
    """Precision, recall and F1 of each class."""
    columns = zip(evaluation.precision, evaluation.recall, evaluation.f1, strict=True)
    figures = [tuple(f"{value:.2%}" for value in values) for values in columns]
    counts = [f"{count:,}" for count in evaluation.confusion_matrix.sum(1)]
    rows = [(name, *line, count) for name, line, count in zip(evaluation.classes, figures, counts, strict=True)]
    means = [f"{value:.2%}" for value in (evaluation.macro_precision, evaluation.macro_recall, evaluation.macro_f1)]
    by = ", by the thresholds" if has_thresholds else ""
    title = f"Each class on the {evaluation.split} split{by}: accuracy {evaluation.accuracy:.2%}"
    return Table(title, ("class", "precision", "recall", "F1", "images"),
                 (*rows, ("macro mean", *means, f"{evaluation.count:,}")))  # fmt: skip


def calibration_table(run: RunReport) -> Table:
    rows = [
        (name, f"{found.expected_calibration_error:.2%}", f"{found.loss:.4f}", f"{found.brier_score:.4f}")
        for name, found in run.calibration
    ]
    header = ("", "expected calibration error", "negative log-likelihood", "Brier score")
    return Table("Calibration, by a temperature that was fitted on the validation split", header, tuple(rows))


def threshold_table(run: RunReport, split: str) -> Table:
    rows = [
        (each.class_name, f"{each.value:.4f} ({each.interval[0]:.4f} to {each.interval[1]:.4f})",
         f"{each.wanted} of {100 * each.wanted_value:g}%", str(each.recall), str(each.precision))
        for each in run.thresholds
    ]  # fmt: skip
    header = ("class", "from a probability of", "chosen for a", "recall", "precision")
    return Table(f"Thresholds, chosen on the validation split, and what they give on the {split} split", header,
                 tuple(rows))  # fmt: skip


def render(name: str, **values: Any) -> str:
    """A page from a template. Raises InputError where Jinja2 is missing."""
    try:
        import jinja2
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[report]'"
        raise InputError(f"reports need Jinja2, which is not installed; {remedy}") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name).render(version=cifar_jax.__version__, **values)


def page(runs: Sequence[RunReport], study: StudyPart | None, title: str) -> str:
    """The page. Raises InputError where Jinja2 is missing."""
    shown = [
        {
            **vars(run),
            "figures": drawn(run.figures),
            "class_table": class_table(run.evaluation, bool(run.thresholds)) if run.evaluation else None,
            "calibration_table": calibration_table(run) if run.calibration else None,
            "threshold_table": threshold_table(run, run.evaluation.split)
            if run.thresholds and run.evaluation
            else None,
        }
        for run in runs
    ]
    contents = [("study", study.title)] if study else []
    contents += [(f"run{number}", run.name) for number, run in enumerate(runs, 1)]
    if study:
        study = replace(study, figures=drawn(study.figures))
    return render("report.html", title=title, runs=shown, study=study, contents=contents)
