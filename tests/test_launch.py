"""The launcher: flags, messages, the quickstart."""

import json

import pytest

from cifar_jax import cli


def test_no_arguments_train_the_quickstart():
    options, changes = cli.parse([])
    assert (options.command, options.config, options.workdir) == ("train", "configs/quickstart.py", "runs/quickstart")
    assert changes == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("3", 3),
        ("true", True),
        ("false", False),
        ("False", False),
        ("cnn", "cnn"),
        ("(1, 2)", (1, 2)),
        ("", ""),
        ("runs/a=b", "runs/a=b"),
    ],
)
def test_fields_keep_their_type(text, value):
    parsed = cli.parse_field(f"--config.a.b={text}")
    assert parsed == ("a.b", value)
    assert type(parsed[1]) is type(value)


def test_the_quickstart_learns_and_names_the_next_commands(tmp_path, capsys):
    """The README's first command, to its promise: at least 97% on the 360 test images."""
    arguments = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["accuracy"] >= 0.97
    assert evaluation["count"] == 360
    assert "macro mean" in output
    assert "train --config=configs/cnn.py" in output

    assert cli.main(arguments) == 0
    assert "is complete; nothing to train" in capsys.readouterr().out

    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--split=validation"]) == 0
    assert "validation accuracy" in capsys.readouterr().out


def test_metrics_lines_have_every_field(tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ["train", f"--workdir={workdir}", "--config.epochs=2", "--config.model.width=4"]
    assert cli.main(arguments) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]
    assert [line.split()[1] for line in told] == ["1/2", "2/2"]  # in a file: a line an epoch, no bar
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert list(lines[0]) == [
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        "seconds",
        "images_per_second",
    ]
    environment = json.loads((workdir / "environment.json").read_text())
    assert {"packages", "devices", "classes"} <= environment.keys()
    record = json.loads((workdir / "run.json").read_text())
    assert (record["complete"], record["reason"], record["step"]) == (True, "finished", lines[-1]["step"])
    assert record["data"].keys() == {"train", "test"}
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert sum(map(sum, evaluation["confusion_matrix"])) == evaluation["count"]
