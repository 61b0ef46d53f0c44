"""Runs of an older version, whose recipes have fewer fields, are the runs that they were."""

import json
from pathlib import Path

import pytest

import cifar_jax as cj
from cifar_jax.commands.list import list_runs
from cifar_jax.recipe import BUILT, flatten, override
from cifar_jax.runs import identity
from cifar_jax.runs.files import digest_of_file, read_json, unsealed, write_json, write_sealed
from cifar_jax.runs.identity import FREE_FIELDS, LATER_FIELDS
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.studies.study import Options, Study
from cifar_jax.studies.study_file import read_study, write_study
from tests import made

DATA = {"train": made.split(96, seed=0), "test": made.split(40, seed=1)}
RECIPE = made.recipe({"epochs": 3, "batch_size": 16, "data.validation": 32})


def without_later_fields(path):
    """The recipe in a JSON file as an older version wrote it."""
    recipe = read_json(path)
    for field in LATER_FIELDS:
        section, _, name = field.partition(".")
        recipe[section].pop(name, None)
    write_json(path, recipe)


def older_run(folder, monkeypatch, **options):
    """A run whose recipe, and the digest of it in the checkpoints, are those of an older version."""
    with monkeypatch.context() as patch:
        patch.setattr(identity, "LATER_FIELDS", {"data.image_size": 32})  # digests are of other fields than now
        cj.fit(RECIPE, folder, data=DATA, progress=False, **options)
    without_later_fields(folder / "recipe.json")
    record = unsealed(read_json(folder / "run.json"))
    record["files"]["recipe.json"] = digest_of_file(folder / "recipe.json")
    write_sealed(folder / "run.json", record)


def test_a_new_field_says_which_value_does_what_was_done_before():
    """tests/runs/archive was written before the fields that are not in it came."""
    recipe = json.loads((Path(__file__).parent / "archive" / "model.json").read_text())["recipe"]
    sections = lambda fields: {field for field in fields if field.partition(".")[0] not in BUILT}
    now, then = flatten(load_recipe("configs/base.py")), flatten(recipe)
    assert sections(now) - sections(then) - set(FREE_FIELDS) <= LATER_FIELDS.keys() <= now.keys()
    assert {field: now[field] for field in LATER_FIELDS} == LATER_FIELDS  # else the recipes of users change


def test_an_older_run_resumes_exactly(tmp_path, monkeypatch):
    stop = lambda event: event.step == 4
    older_run(tmp_path / "older", monkeypatch, callbacks=[stop], stoppable=True, evaluate=None)
    resumed = cj.fit(RECIPE, tmp_path / "older", data=DATA, resume=True, progress=False)
    made.assert_same(resumed.state, cj.fit(RECIPE, tmp_path / "new", data=DATA, progress=False).state)
    made.assert_same(cj.load_run(tmp_path / "older").state, resumed.state)
    repeated = cj.fit(cj.load_run(tmp_path / "older").recipe, data=DATA, progress=False)
    made.assert_same(repeated.state, resumed.state)
    other = override(RECIPE, {"augment.vertical_flip": 0.5})
    with pytest.raises(cj.InputError, match=r"another recipe \(augment.vertical_flip: absent -> 0.5\)"):
        cj.fit(other, tmp_path / "older", data=DATA, progress=False)


def test_an_older_complete_run_is_found_and_compared_as_the_same(tmp_path, monkeypatch):
    older_run(tmp_path / "older", monkeypatch)
    again = cj.fit(RECIPE, tmp_path / "older", data=DATA, progress=False)
    made.assert_same(again.state, cj.fit(RECIPE, data=DATA, progress=False).state)
    for name, changes in (("new", {"seed": 1}), ("other", {"augment.vertical_flip": 0.5})):
        cj.fit(override(RECIPE, changes), tmp_path / name, data=DATA, progress=False)
    rows = cj.compare(*(tmp_path / name for name in ("older", "new", "other"))).rows
    assert [len(row.folders) for row in rows] == [2, 1]
    heading, *lines = list_runs(tmp_path)
    assert heading[3:] == ["augment.vertical_flip", "seed"]
    assert sorted(line[3] for line in lines) == ["0.0", "0.0", "0.5"]


def test_an_older_study_goes_on(tmp_path):
    recipe = override(RECIPE, {"epochs": 1})
    cj.ablate(recipe, folder=tmp_path, data=DATA, seeds=1, progress=False)
    study = read_study(tmp_path)
    for field in LATER_FIELDS:
        section, _, name = field.partition(".")
        study["recipe"][section].pop(name, None)
    write_study(tmp_path, study)
    assert Study.from_folder(tmp_path, Options(data=DATA)).recipe.augment.vertical_flip == 0.0  # as a worker reads it
    assert len(cj.ablate(recipe, folder=tmp_path, data=DATA, seeds=2, progress=False).rows[0].folders) == 2
