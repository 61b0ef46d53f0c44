"""Bad input: one sentence that quotes it, exit code 2, nothing written."""

import shutil
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax
import pytest

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.data import store as datasets
from tests import made


def refused(arguments, capsys):
    """The one line on stderr of a command that must end with code 2."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # the parser's own way out
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ") or "Traceback" in line]
    assert code == 2
    assert len(lines) == 1
    return lines[0]


QUICK = ["train", "--config=configs/quickstart.py"]
FAULTS = {
    "unknown field": (
        ["--config.optimiser.learning_rate=1"],
        "'optimiser.learning_rate' is unknown; did you mean 'optimizer'",
    ),
    "unknown field in a closed section": (
        ["--config.augment.flop=1"],
        "'augment.flop' is unknown; did you mean 'augment.flip'",
    ),
    "unknown parameter": (
        ["--config.optimizer.learning_rat=1"],
        "'optimizer.learning_rat' is unknown to optimizer 'adam'; did you mean 'optimizer.learning_rate'",
    ),
    "the name of another library": (
        ["--config.optimizer.lr=1"],
        "'optimizer.lr' is unknown to optimizer 'adam'; did you mean 'optimizer.learning_rate'",
    ),
    "a field of a section": (
        ["--config.learning_rate=1"],
        "'learning_rate' is unknown; did you mean 'optimizer.learning_rate'",
    ),
    "a mean of two channels": (["--config.data.mean=(0.5,0.5)"], "'data.mean' is (0.5, 0.5); it takes one number, or"),
    "a deviation of nothing": (["--config.data.std=0"], "'data.std' is (0,); it takes one number, or"),
    "wrong type": (["--config.epochs=many"], "'epochs' is 'many', a str; it takes an int"),
    "wrong type of a parameter": (["--config.model.width=1.5"], "'model.width' is 1.5, a float; it takes an int"),
    "a section is not a value": (
        ["--config.augment=3"],
        "'augment' is 3; it is a section of fields: alternating_flip, brightness",
    ),
    "unknown model": (
        ["--config.model.name=resnet81"],
        "model 'resnet81' is unknown; did you mean 'resnet18'? Known: cnn",
    ),
    "unknown optimizer": (["--config.optimizer.name=sdg"], "optimizer 'sdg' is unknown; did you mean 'sgd'"),
    "an optimizer without its rate": (["--config.optimizer.name=sgd"], "needs a value for 'optimizer.learning_rate'"),
    "unknown activation": (["--config.model.activation=rellu"], "activation 'rellu' is unknown; did you mean 'relu'"),
    "unknown data set": (["--config.data.name=cifar11"], "'cifar11'"),
    "unknown dtype": (["--config.dtype=float31"], "dtype 'float31' is unknown"),
    "unknown views": (["--config.evaluation.views=miror"], "views 'miror' are unknown; did you mean 'mirror'"),
    "unknown metric": (["--config.early_stopping.metric=f2"], "early_stopping.metric is 'f2'"),
    "batch larger than the data": (
        ["--config.batch_size=2000"],
        "batch_size=2000 is larger than the training set of 1293 images",
    ),
    "validation larger than train": (["--config.data.validation=1437"], "data.validation=1437"),
    "patience without validation": (
        ["--config.data.validation=0", "--config.early_stopping.patience=2"],
        "needs a validation split",
    ),
    "negative": (["--config.epochs=-1"], "'epochs' is -1; it must be at least 1"),
    "out of range": (["--config.model.dropout=1.5"], "'model.dropout' is 1.5; it must be between 0 and 1"),
    "unknown flag": (["--worksdir=x"], "--worksdir=x"),
    "no value": (["--config.epochs"], "'--config.epochs' is not of the form --config.FIELD=VALUE"),
    "no recipe": (
        ["--config=configs/nosuch.py"],
        "recipe 'configs/nosuch.py' is not a file; known recipes: configs/",
    ),
    "a number for a name": (["--config.model.name=3"], "'model.name' is 3; it takes the name of a model"),
    "a word for a number": (["--config.data.std=('a',)"], "'data.std' is ('a',)"),
    "not a number": (["--config.optimizer.learning_rate=1e400-1e400"], "'optimizer.learning_rate'"),
    "no size": (["--config.model.width=0"], "'model.width' is 0; it must be at least 1"),
    "a milestone that is none": (
        ["--config.schedule.name=step", "--config.schedule.milestones=('x',)"],
        "cannot be built",
    ),
    "a seed of the split": (["--config.data.seed=-1"], "'data.seed' is -1"),
    "a field without its value": (["--config.epochs", "3"], "'--config.epochs' is not of the form"),
    "a word for weights": (
        ["--config.loss.class_weights=balance"],
        "'loss.class_weights' is 'balance'; the only word that it takes is 'balanced'",
    ),
    "no run to start from": (["--config.init_from=nowhere"], "'nowhere' does not exist"),
}


@pytest.mark.parametrize(("arguments", "expected"), FAULTS.values(), ids=FAULTS)
def test_one_sentence_and_nothing_written(arguments, expected, tmp_path, capsys):
    line = refused([*QUICK, f"--workdir={tmp_path / 'run'}", *arguments], capsys)
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused([*QUICK, f"--workdir={tmp_path / 'file' / 'run'}"], capsys)
    assert f"folder '{tmp_path / 'file' / 'run'}' cannot be written" in line


def test_evaluate_without_a_run(tmp_path, capsys):
    assert "holds no run" in refused(["evaluate", f"--workdir={tmp_path}"], capsys)


def test_evaluate_with_a_folder_of_runs(tmp_path, capsys):
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path / "one", data=DATA, progress=False)
    answer = refused(["evaluate", f"--workdir={tmp_path}"], capsys)
    assert f"'{tmp_path}' holds no run itself; name one of the 1 in it, such as {tmp_path / 'one'}" in answer


def test_offline_and_unprepared_answers_at_once(tmp_path, capsys, monkeypatch):
    import dataclasses

    unreachable = dataclasses.replace(datasets.DATASETS["cifar10"], url="http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setitem(datasets.DATASETS, "cifar10", unreachable)
    began = time.monotonic()
    arguments = ["train", "--config=configs/cnn.py", f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"]
    line = refused(arguments, capsys)
    assert time.monotonic() - began < 2
    assert "data set 'cifar10' is not prepared" in line
    assert "TFDS_DATA_DIR" in line
    assert not (tmp_path / "run").exists()


def test_a_damaged_shard_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = datasets.prepare("digits", tmp_path, progress=False)
    shard = next(path for path in folder.iterdir() if "train.array_record" in path.name)
    shard.write_bytes(shard.read_bytes()[:-70000])
    line = refused([*QUICK, f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"], capsys)
    assert shard.name in line
    assert not (tmp_path / "run").exists()


DATA = {"train": made.split(96, classes=4, size=8, seed=0), "test": made.split(40, classes=4, size=8, seed=1)}


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """It says the step and the learning rate, and keeps the last good checkpoint."""

    def explode_late(epoch, epochs):
        import jax.numpy as jnp

        return jnp.where(epoch < 2, 1e-3, 1e30)

    recipe = made.recipe(epochs=5, batch_size=16, **{"optimizer.learning_rate": 1.0})
    with pytest.raises(cj.InputError, match=r"not finite at step 1[2-7] \(epoch 3, learning rate 1e\+30\)"):
        cj.fit(recipe, tmp_path, data=DATA, schedule=explode_late, progress=False)
    run = cj.load_run(tmp_path, schedule=explode_late)
    assert run.state.step == 12
    assert all(np.isfinite(leaf).all() for leaf in run.state.params["head"].values())
    assert [line["epoch"] for line in run.history] == [1, 2]
    assert not (tmp_path / "evaluation.json").exists()


def test_a_changed_recipe_json_is_told(tmp_path):
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path, data=DATA, progress=False)
    recipe = (tmp_path / "recipe.json").read_text()
    (tmp_path / "recipe.json").write_text(recipe.replace('"width": 4', '"width": 6'))
    with pytest.raises(cj.InputError, match=r"recipe\.json is damaged, or was changed"):
        cj.load_run(tmp_path)
    assert not (tmp_path / "quarantine").exists()


def test_a_damaged_recipe_json_is_named(tmp_path):
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path, data=DATA, progress=False)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(cj.InputError, match=r"recipe\.json is damaged"):
        cj.load_run(tmp_path)


def test_a_run_whose_checkpoints_are_gone(tmp_path):
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path, data=DATA, progress=False)
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "manifests")
    with pytest.raises(cj.InputError, match="no whole checkpoint"):
        cj.load_run(tmp_path)


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cj.load_recipe("configs/cnn.py").model.name == "cnn"
    Path("mine.py").write_text("x = 1")
    with pytest.raises(cj.InputError, match="get_config"):
        cj.load_recipe("mine.py")


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]"])
def test_a_damaged_evaluation_is_written_anew(content, tmp_path):
    """The model is intact: reading it warns, and the same call completes the run again."""
    run = cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path, data=DATA, progress=False)
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.warns(UserWarning, match="evaluation.json is damaged"):
        assert cj.load_run(tmp_path).evaluation is None
    with pytest.warns(UserWarning, match="evaluation.json is damaged"):
        again = cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path, data=DATA, progress=False)
    assert again.evaluation.to_json() == run.evaluation.to_json()
    assert cj.load_run(tmp_path).evaluation.accuracy == run.evaluation.accuracy


@pytest.mark.parametrize("content", ["{}", "[]", "3"])
def test_what_is_json_but_no_recipe(content, tmp_path):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(cj.InputError, match=r"recipe\.json is not a recipe, or is damaged"):
        cj.load_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("line", ["garbage", "3", '{"epoch": null}', "[]"])
def test_a_damaged_line_of_metrics_hides_no_other(line, tmp_path):
    cj.fit(made.recipe(epochs=4, batch_size=16), tmp_path, data=DATA, progress=False)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl is damaged, or was changed"):
        assert [line["epoch"] for line in cj.load_run(tmp_path).history] == [1, 3, 4]


def test_a_resumed_run_tells_of_lines_that_are_lost(tmp_path):
    recipe, options = made.recipe(epochs=4, batch_size=16), {"data": DATA, "progress": False}
    cj.fit(recipe, tmp_path, callbacks=[lambda event: event.step == 12], stoppable=True, **options)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], "garbage"]) + "\n")
    with pytest.warns(UserWarning, match="lacks 1 of 2 epochs"):
        assert cj.fit(recipe, tmp_path, resume=True, **options).reason == "finished"


def test_a_damaged_test_shard_shows_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = datasets.prepare("digits", tmp_path, progress=False)
    shard = next(path for path in folder.iterdir() if "test.array_record" in path.name)
    shard.write_bytes(shard.read_bytes()[:-70000])
    line = refused([*QUICK, f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"], capsys)
    assert shard.name in line
    assert not (tmp_path / "run").exists()


def test_splits_must_go_together(tmp_path):
    recipe = made.recipe(epochs=1, batch_size=16)
    with pytest.raises(cj.InputError, match="data has no split 'test' to evaluate; it has 'train'"):
        cj.fit(recipe, tmp_path / "run", data={"train": DATA["train"]}, progress=False)
    other = {**DATA, "test": made.split(40, classes=4, size=9, seed=1)}
    with pytest.raises(cj.InputError, match="do not go together"):
        cj.fit(recipe, tmp_path / "run", data=other, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("validation", [0, 32])
def test_weights_that_the_last_step_spoilt_are_not_saved(validation, tmp_path):
    """One step an epoch: the loss is taken before the step, so only the weights after it tell."""
    recipe = made.recipe(epochs=1, batch_size=64, **{"data.validation": validation, "optimizer.learning_rate": 1e25})
    with pytest.raises(cj.InputError, match="not finite at step 0"):
        cj.fit(recipe, tmp_path, data=DATA, progress=False)
    assert not (tmp_path / "evaluation.json").exists()
    with pytest.raises(cj.InputError, match="no whole checkpoint"):
        cj.load_run(tmp_path)


def test_a_complete_run_needs_no_data(tmp_path):
    """Nor the run that it started from."""
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path / "first", data=DATA, progress=False)
    recipe = made.recipe(epochs=1, batch_size=16, init_from=str(tmp_path / "first"), **{"data.name": "made"})
    run = cj.fit(recipe, tmp_path / "run", data=DATA, progress=False)
    shutil.rmtree(tmp_path / "first")
    assert cj.fit(recipe, tmp_path / "run", progress=False).evaluation.to_json() == run.evaluation.to_json()


def test_init_from_that_does_not_fit_writes_nothing(tmp_path):
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path / "first", data=DATA, progress=False)
    recipe = made.recipe(epochs=1, batch_size=16, init_from=str(tmp_path / "first"), **{"model.width": 6})
    with pytest.raises(cj.InputError, match="does not fit"):
        cj.fit(recipe, tmp_path / "run", data=DATA, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    from cifar_jax.runs.log import MetricsFile

    with pytest.raises(cj.InputError, match=r"/dev/full cannot be written \(No space left on device\)"):
        MetricsFile(Path("/dev/full")).append([{"epoch": 1}])


def test_validation_of_other_data_is_refused(tmp_path):
    recipe = made.recipe(epochs=1, batch_size=16, **{"data.validation": 32})
    run = cj.fit(recipe, tmp_path, data=DATA, progress=False)
    other = {**DATA, "train": made.split(96, classes=4, size=8, seed=7)}
    with pytest.raises(cj.InputError, match=r"the train images of .* are not those of the run"):
        cj.evaluate(run, "validation", data=other)


def test_a_recipe_of_the_users_own_stands_on_the_shipped_base(tmp_path, monkeypatch):
    """Not on a configs/base.py that happens to lie in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/base.py").write_text("def get_config():\n    return {'lr': 1}\n")
    Path("mine.py").write_text("def get_config():\n    return {'epochs': 3}\n")
    assert cj.load_recipe("mine.py").epochs == 3
    Path("mine.py").write_text("def get_config(:\n")
    with pytest.raises(cj.InputError, match=r"mine\.py' cannot be read"):
        cj.load_recipe("mine.py")


def test_a_compiler_option_that_this_jaxlib_does_not_know(monkeypatch):
    from cifar_jax.runs import devices

    monkeypatch.setattr(devices, "CPU_OPTIONS", {"xla_no_such_option": "1"})
    devices.compiler_options.cache_clear()
    with pytest.warns(UserWarning, match="does not take"):
        assert devices.compiler_options() == {}
    assert devices.jit(lambda x: x + 1)(1) == 2
    devices.compiler_options.cache_clear()


class Wrong(nn.Module):
    """A model that returns `made(logits [B, units])`."""

    made: Any
    units: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        return self.made(nn.Dense(self.units)(x.reshape(len(x), -1)))


WRONG_OUTPUTS = {
    "too many classes": (Wrong(lambda y: y, 7), "returns float32 [16, 7] for 16 images"),
    "one number": (Wrong(lambda y: y, 1), "returns float32 [16, 1] for 16 images"),
    "no batch": (Wrong(lambda y: y.mean(0)), "returns float32 [4] for 16 images"),
    "a map": (Wrong(lambda y: y[:, None]), "returns float32 [16, 1, 4] for 16 images"),
    "classes": (Wrong(lambda y: y.argmax(-1)), "returns int32 [16] for 16 images"),
    "a tuple": (Wrong(lambda y: (y, y)), "returns a tuple for 16 images"),
    "a dictionary": (Wrong(lambda y: {"logits": y}), "returns a dict for 16 images"),
}


@pytest.mark.parametrize(("model", "returned"), WRONG_OUTPUTS.values(), ids=WRONG_OUTPUTS)
def test_a_model_that_returns_no_logits_is_told_what_to_return(model, returned, tmp_path):
    with pytest.raises(cj.InputError) as error:
        cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path / "run", data=DATA, model=model, progress=False)
    assert str(error.value) == (
        f"model 'tests.test_faults.Wrong' {returned}; it must return logits, one float array [16, 4] with a column for "
        "each class"
    )
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_take_train_is_told_so(tmp_path):
    with pytest.raises(cj.InputError, match=r"unexpected keyword argument 'train'.*the functions that were passed"):
        cj.fit(made.recipe(epochs=1, batch_size=16), data=DATA, model=nn.Dense(4), progress=False)


def test_an_optimizer_that_is_made_already_is_told_the_remedy(tmp_path):
    with pytest.raises(cj.InputError, match=r"pass the function that makes it, such as optax\.adam"):
        cj.fit(made.recipe(epochs=1, batch_size=16), data=DATA, optimizer=optax.adam(1e-3), progress=False)
