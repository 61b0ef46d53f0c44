"""The page about a hyper-parameter search, and a search that is read from its folder."""

import json
import shutil

import pytest

pytest.importorskip("optuna")

import cifar_jax as cj
from cifar_jax.recipe import to_json
from cifar_jax.studies.space import alternatives, choice, log_uniform, uniform
from tests import made
from tests.reports.test_report import Page

DATA = {"train": made.split(96, seed=0)}
SPACE = {
    "model.dropout": uniform(0.0, 0.5),
    "batch_size": choice(16, 32),
    "optimizer": alternatives(
        {"name": "sgd", "learning_rate": log_uniform(1e-3, 1e-1), "momentum": 0.9},
        {"name": "adamw", "learning_rate": log_uniform(1e-4, 1e-2)},
    ),
}
RECIPE = cj.override(made.recipe(), {"epochs": 3, "batch_size": 16, "data.validation": 32})


def tune(folder, **options):
    return cj.tune(RECIPE, SPACE, folder=folder, **{"data": DATA, "progress": False, "trials": 7, **options})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return tune(tmp_path_factory.mktemp("search") / "small-tune", pruner="median")


def test_a_search_is_read_from_its_folder_without_its_data(found):
    again = cj.load_search(found.folder)
    assert again.trials == found.trials
    assert again.best == found.best
    assert to_json(again.best_recipe) == to_json(found.best_recipe)
    assert str(again) == str(found)
    assert again.to_csv() == (found.folder / "trials.csv").read_text()


def test_the_page_has_every_trial_and_the_best_recipe(found, tmp_path):
    page = Page(cj.report(found.folder, tmp_path, figures=True).read_text())
    for part in (found.counts(), "History", "Learning curves of the trials", "Slices", "Importance of the parameters",
                 f"Trial {found.best.number} is the best", found.shown(found.best.value)):  # fmt: skip
        assert part in page.text, part
    assert (found.folder / "best.py").read_text() in page.text
    assert f"cj.fit(cj.load_recipe({str(found.folder / 'best.py')!r}), data=...)" in page.text
    assert len([tag for tag, _ in page.elements if tag == "tr"]) == 1 + len(found.trials)
    for name in ("model.dropout", "batch_size", "optimizer.name", "optimizer.sgd.learning_rate"):
        assert f">{name}</text>" in (tmp_path / "report.html").read_text(), name
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {
        "history", "learning_curves_of_the_trials", "slices", "importance_of_the_parameters",
    }  # fmt: skip
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_curves_are_what_the_runs_measured(found):
    for number, values in found.curves().items():
        lines = map(json.loads, (found.folder / f"trials/{number}/seed0/metrics.jsonl").read_text().splitlines())
        assert values == {line["epoch"]: line["validation_accuracy"] for line in lines}


def test_a_search_without_a_finished_trial_has_a_page(tmp_path):
    tune(tmp_path / "search", trials=1, max_hours=1e-9)
    text = Page(cj.report(tmp_path / "search").read_text()).text
    assert "No trial is finished yet" in text
    assert "History" not in text


def test_a_loss_and_several_seeds(tmp_path):
    found = tune(tmp_path / "search", trials=2, metric="validation_loss", seeds=2)
    text = Page(cj.report(tmp_path / "search").read_text()).text
    assert "mean of 2 seeds" in text
    assert found.shown(found.best.value) in text
    assert "Learning curves" not in text  # what such a trial reports is the value of a seed


def test_what_is_no_search_is_refused(found, tmp_path):
    with pytest.raises(cj.InputError, match=r"holds no search .no tune.json.; tune begins one"):
        cj.load_search(tmp_path)
    shutil.copytree(found.folder, tmp_path / "small-tune")
    (tmp_path / "small-tune" / "trials.db").unlink()
    with pytest.raises(cj.InputError, match=r"the trials of '.*small-tune' are not there .*trials.db.; restore that"):
        cj.report(tmp_path / "small-tune")
    assert not (tmp_path / "small-tune" / "trials.db").exists()
    with pytest.raises(cj.InputError, match=r"is a search by tune, whose trials are no repeated runs: trials.csv has"):
        cj.compare(found.folder)
