"""The command line: commands, flags, messages, the quickstart."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax import cli, process
from cifar_jax.commands import train
from cifar_jax.data.load import load_split
from cifar_jax.runs import devices
from tests import made

ROOT = Path(__file__).parent.parent
LISTING = cli.load("list")


def test_no_arguments_train_the_quickstart():
    options = cli.parse([])
    assert (options.command, options.config, options.changes) == ("train", "configs/quickstart.py", {})
    assert train.workdir_of(options) == Path("runs/quickstart")
    assert cli.parse(["--config=configs/cnn.py"]).command == "train"


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


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_and_version_import_no_jax(arguments):
    """Each command's module is imported only where it is called, and what it computes with only where it runs."""
    code = f"import sys; sys.argv = ['cifar-jax', *{arguments}]; from cifar_jax import cli\n"
    code += "try: cli.start()\nexcept SystemExit as stop: assert not stop.code\nassert 'jax' not in sys.modules\n"
    code += "commands = [name for name in cli.COMMANDS if f'cifar_jax.commands.{name}' in sys.modules]\n"
    code += f"assert len(commands) == {len(arguments) - 1}, commands"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS) if arguments == ["--help"] else done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_what_it_needs(command):
    module = cli.load(command)
    assert module.__doc__
    assert callable(module.add_arguments)
    assert callable(module.run)


@pytest.fixture
def optimised(monkeypatch):
    """Programs of a test that trains for longer than the others: 14 s of the processor for 24 (see conftest.py)."""
    monkeypatch.setattr(devices, "CPU_OPTIONS", {**devices.CPU_OPTIONS, "xla_backend_optimization_level": 1})
    devices.compiler_options.cache_clear()
    yield
    devices.compiler_options.cache_clear()


@pytest.mark.usefixtures("optimised")
def test_the_quickstart_learns_and_names_the_next_commands(tmp_path, capsys):
    """The README's first command, to its promise: at least 97% on the 360 test images."""
    arguments = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["accuracy"] >= 0.97
    assert evaluation["count"] == 360
    assert "macro mean" in output
    assert process.command_line("train", "--config=configs/cnn.py") in output

    assert cli.main(arguments) == 0
    assert "is complete; nothing to train" in capsys.readouterr().out

    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--split=validation"]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == evaluation

    file = tmp_path / "predictions.npz"
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--save_predictions={file}"]) == 0
    with np.load(file) as arrays:
        assert set(arrays.files) == {"labels", "probabilities", "indices", "embeddings"}
        assert (arrays["probabilities"].argmax(-1) == arrays["labels"]).mean() == evaluation["accuracy"]
        probabilities = arrays["probabilities"]
    for split, source in (("test", "test"), ("validation", "train")):
        file = tmp_path / f"{split}.csv"
        given = [f"--split={split}", f"--save_predictions={file}"]
        assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", *given]) == 0
        rows = list(csv.DictReader(file.open()))
        held = load_split(cj.load_run(tmp_path / "run").recipe.data, source)
        assert all(row["image"].split()[0] == source for row in rows)
        assert all(held.classes[held.labels[int(row["image"].split()[1])]] == row["label"] for row in rows)
        if split == "test":
            known = [[float(row[f"probability_{name}"]) for name in held.classes] for row in rows]
            np.testing.assert_array_equal(np.array(known, np.float32), probabilities)
            right = sum(row["outcome"] == "correct" for row in rows) / len(rows)
            assert right == evaluation["accuracy"]
    assert cli.main(["report", str(tmp_path / "run"), f"--out={tmp_path / 'page'}", "--embedding=none"]) == 0
    assert "Reliability" in (tmp_path / "page" / "report.html").read_text()


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
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert sum(map(sum, evaluation["confusion_matrix"])) == evaluation["count"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--evaluate=validation"], {"evaluate": "validation"}),
        (["--evaluate=none"], {"evaluate": None}),
        (["--resume"], {"resume": True}),
    ],
)
def test_flags_reach_fit_only_where_they_are_given(flags, expected, tmp_path, monkeypatch):
    given = {}

    def fit(recipe, workdir, data_dir, callbacks, **options):
        given.update(options)
        return cj.Run(recipe, None, (), [], workdir, None, {})

    monkeypatch.setattr(cj, "fit", fit)
    assert cli.main(["train", f"--workdir={tmp_path}", *flags]) == 0
    assert given == expected


def test_a_run_that_a_callback_stopped_goes_on_with_resume(tmp_path, capsys):
    arguments = ["train", f"--workdir={tmp_path / 'run'}", "--config.epochs=3", "--config.model.width=4"]
    options = cli.parse(arguments)
    recipe = cj.load_recipe(options.config, options.changes)
    stop = cj.fit(recipe, options.workdir, callbacks=[lambda event: event.step > 0], stoppable=True, progress=False)
    assert stop.reason == "stopped"
    assert cli.main(arguments) == 0
    assert "is complete; nothing to train" in capsys.readouterr().out
    assert cli.main([*arguments, "--resume"]) == 0
    assert "is complete" not in capsys.readouterr().out
    assert cj.load_run(tmp_path / "run").history[-1]["epoch"] == 3


# --- list and describe ---


def listed(capsys, *arguments):
    """The lines that `list` prints, each split where two spaces or more stand."""
    assert cli.main(["list", *arguments]) == 0
    return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("kind", LISTING.KINDS[:-1])
def test_list_describes_everything_in_one_line(kind, capsys):
    rows = listed(capsys, kind)
    names, texts = zip(*rows, strict=True)
    if kind == "recipes":
        assert set(names) == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} - {"configs/base.py"}
    else:
        assert list(names) == list(LISTING.table(kind))
    for text in texts:  # whole sentences: no bracket or quotation is cut open
        assert len(text) > 10
        assert text.count("(") == text.count(")")
        assert text.count('"') % 2 == text.count("`") % 2 == 0


def test_list_runs_names_many_differences_in_one_cell(tmp_path, capsys):
    data = {"train": made.split(32), "test": made.split(16, seed=1)}
    changes = {"epochs": 2, "seed": 3, "augment.flip": 0.5, "augment.crop": 1, "model.dropout": 0.1, "batch_size": 8}
    for name, own in {"seed2": {}, "seed3": {}, "seed10": changes | {"optimizer.learning_rate": 0.01}}.items():
        cj.fit(made.recipe({"epochs": 1, "batch_size": 16} | own), tmp_path / name, data=data, progress=False)
    assert cli.main(["list", "runs", str(tmp_path)]) == 0
    heading, first, _, last = capsys.readouterr().out.splitlines()
    assert heading.endswith("differs from most in")
    assert first.split()[:2] == ["seed2", "finished"]
    assert last.split()[:2] == ["seed10", "finished"]
    assert "augment.crop=1, augment.flip=0.5, batch_size=8, epochs=2" in last
    assert "=" not in first


def test_list_runs_tells_status_accuracy_and_differences(tmp_path, capsys):
    train = ["train", "--config.epochs=1", "--config.model.width=4", "--config.batch_size=256"]
    assert cli.main([*train, f"--workdir={tmp_path / 'one'}"]) == 0
    assert cli.main([*train, f"--workdir={tmp_path / 'deep/two'}", "--config.seed=1", "--evaluate=none"]) == 0
    accuracy = json.loads((tmp_path / "one" / "evaluation.json").read_text())["accuracy"]
    capsys.readouterr()
    heading, two, one = listed(capsys, "runs", str(tmp_path))
    assert heading == ["run", "status", "accuracy", "seed"]
    assert one == ["one", "finished", f"test {accuracy:.2%}", "0"]
    assert two == ["deep/two", "finished", "1"]  # no accuracy
    (tmp_path / "one" / "run.json").write_text("{")
    with pytest.warns(UserWarning, match=r"one.run\.json is damaged"):
        assert [row[0] for row in listed(capsys, "runs", str(tmp_path))] == ["run", "deep/two"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "modles"], "'modles' cannot be listed; did you mean 'models'?"),
        (["list", "models", "runs"], "'list models' takes no folder, and 'runs' was given"),
        (["list", "runs", "nowhere"], "'nowhere' holds no runs; train one with --workdir=nowhere/NAME"),
        (["describe", "resnet81"], "'resnet81' is neither a recipe file nor a model; did you mean 'resnet18'?"),
        (["describe", "configs/resnet81.py"], "recipe 'configs/resnet81.py' is not a file"),
        (
            ["describe", "cnn", "--config.model.widht=3"],
            "recipe field 'model.widht' is unknown to model 'cnn'; did you mean 'model.width'",
        ),
        (["evaluate", "--workdir=x", "--config.seed=1"], "--config.seed=1 sets a recipe field, which only"),
        (["lsit"], "command 'lsit' is unknown; did you mean 'list'?"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(arguments, sentence, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert (code, line[: 7 + len(sentence)]) == (2, f"error: {sentence}")


@pytest.mark.parametrize(
    ("name", "parameters"), [("cnn", "579,402"), ("configs/cnn.py", "579,402"), ("resnet20", "269,722")]
)
def test_describe_counts_a_recipe_or_a_model(name, parameters, capsys):
    assert cli.main(["describe", name]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"^parameters +{parameters}$", output, re.M)
    assert re.search(r"^multiply-adds +[\d,]+ ", output, re.M)


def test_describe_takes_fields(capsys):
    assert cli.main(["describe", "cnn", "--config.model.width=4"]) == 0
    assert "579,402" not in capsys.readouterr().out


# --- commands that the user is told to run ---


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("launch.py", ["{python}", "launch.py"]),
        ("../a folder/launch.py", ["{python}", "../a folder/launch.py"]),
        ("/somewhere/cifar_jax/__main__.py", ["{python}", "-m", "cifar_jax"]),
        ("/somewhere/bin/cifar-jax", ["/somewhere/bin/cifar-jax"]),
    ],
)
def test_a_printed_command_can_be_pasted(started, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    for python, shown in (
        (tmp_path / ".venv/bin/python", ".venv/bin/python"),
        ("/usr/bin/python3", "/usr/bin/python3"),
    ):
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.chdir(tmp_path)
        command = process.command_line("evaluate", "--workdir=runs/with space")
        wanted = [part.format(python=shown) for part in expected]
        assert shlex.split(command) == [*wanted, "evaluate", "--workdir=runs/with space"]


def test_an_installed_command_on_the_path_is_named_by_its_name(tmp_path, monkeypatch):
    script = tmp_path / "cifar-jax"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert process.command_line("list", "models") == "cifar-jax list models"


def test_the_next_commands_are_commands(tmp_path, monkeypatch):
    """Each of them is parsed, with a folder whose name needs quotes."""
    workdir = tmp_path / "my runs" / "it's one"
    for command in train.next_commands(workdir, "digits"):
        parts = shlex.split(command, comments=True)
        arguments = parts[parts.index("cifar_jax") + 1 :]
        assert cli.parse(arguments).command == arguments[0]
    assert f"--workdir={workdir}" in shlex.split(train.next_commands(workdir, "digits")[1])


def test_every_command_in_the_readme_is_one():
    """Fields and flags as they are spelled there."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^\.venv/bin/python launch\.py (.*)", text, re.M)
    assert len(found) >= 3
    for line in found:
        arguments = shlex.split(line, comments=True)
        assert cli.parse(arguments).command == arguments[0]


# --- studies ---

STUDY = ["--config=configs/quickstart.py", "--config.epochs=1", "--config.model.width=4", "--seeds=2", "--light"]


def test_an_ablation_from_the_command_line(tmp_path, capsys):
    """Dry run, study, final, and its comparison in every form, with plots."""
    folder = tmp_path / "study"
    arguments = ["ablate", *STUDY, "--change=augment.crop=0,data.std=(0.4,)", f"--folder={folder}"]
    assert cli.main([*arguments, "--dry_run"]) == 0
    assert "4 runs, 2 programs to compile" in capsys.readouterr().out
    assert not folder.exists()
    assert cli.main(arguments) == 0
    told = capsys.readouterr()
    assert "crop=0, std=(0.4,)" in told.out
    assert [line.split(",")[0] for line in told.err.splitlines() if line.startswith("run ")] == [
        f"run {number}/4" for number in range(1, 5)
    ]
    assert not list(folder.glob("**/evaluation.json"))
    assert cli.main([*arguments, "--final=base"]) == 0
    assert "test_accuracy in percent" in (output := capsys.readouterr().out)
    assert "the test split was evaluated once" in " ".join(output.split())
    assert len(list(folder.glob("**/evaluation.json"))) == 2
    for form, sign in (("csv", "arm,is_base"), ("json", '"rows"'), ("markdown", "| arm |"), ("latex", r"\toprule")):
        assert cli.main(["compare", str(folder), f"--format={form}", "--detect=0.5"]) == 0
        assert sign in capsys.readouterr().out
    assert cli.main(["compare", str(folder), f"--plots={tmp_path / 'plots'}"]) == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {
        "arms.png",
        "arms.svg",
        "curves.png",
        "curves.svg",
    }


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["ablate", *STUDY, "--change=augment.crop"], "--change='augment.crop' is not of the form FIELD=VALUE"),
        (["ablate", *STUDY, "--change=augment.crop=1,augment.crop=2"], "sets 'augment.crop' twice"),
        (["ablate", *STUDY, "--change=augment.crpo=1"], "did you mean 'augment.crop'"),
        (["ablate", *STUDY, "--change=augment.crop=2"], "changes nothing in this recipe"),
        (["ablate", *STUDY, "--change=augment.crop=0", "--final"], "is not finished, 4 of 4 runs are missing"),
        (["ablate", *STUDY, "--change=augment.crop=0", "--max_runs=3"], "are 4 runs, and max_runs is 3"),
        (
            ["ablate", "--config.data.validation=0", "--change=augment.crop=0"],
            "for example --config.data.validation=5000",
        ),
        (["sweep", *STUDY], "the grid is empty"),
        (["sweep", *STUDY, "--grid=augment.crop"], "--grid='augment.crop' is not of the form FIELD=VALUE,VALUE"),
        (["sweep", *STUDY, "--grid=augment.crop="], "the grid has no values for 'augment.crop'"),
        (["sweep", *STUDY, "--grid=augment.crop=0", "--grid=augment.crop=1"], "--grid names 'augment.crop' twice"),
        (["sweep", *STUDY, "--grid=augment.crop=a,b"], "recipe field 'augment.crop' is 'a', a str; it takes an int"),
        (["compare", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_studied_is_told_in_one_sentence(arguments, answer, tmp_path, capsys, monkeypatch):
    folder = [] if arguments[0] == "compare" else [f"--folder={tmp_path / 'study'}"]
    assert cli.main([*arguments, *folder]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert answer in told[-1]
    assert told[-1].startswith("error: ")
    assert not (tmp_path / "study" / "study.json").exists()


def test_commas_in_brackets_and_quotes_do_not_split():
    from cifar_jax.commands.ablate import parse_change
    from cifar_jax.commands.sweep import parse_grid

    assert parse_change("model.widths=(16,32),augment.flip=0") == {"model.widths": (16, 32), "augment.flip": 0}
    assert parse_grid(["model.widths=(16,32),(8,)"]) == {"model.widths": [(16, 32), (8,)]}
    assert parse_grid(["model.name='a,b',c", "seed=1, 2"]) == {"model.name": ["a,b", "c"], "seed": [1, 2]}
    assert parse_grid(["augment.flip=true,None"]) == {"augment.flip": [True, None]}


def test_a_signal_leaves_a_study_that_continues(tmp_path):
    """Stopped after its first run; the same command trains only the others."""
    folder = tmp_path / "study"
    command = [sys.executable, "launch.py", "ablate", *STUDY, "--change=augment.crop=0", f"--folder={folder}"]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line.startswith("run 1/4"):
                break
        started.send_signal(signal.SIGTERM)
        _, told = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGTERM
    assert re.search(r"stopped; \d of 4 runs are done, and the same command continues", told)
    done = json.loads((folder / "study.json").read_text())["runs"]
    again = subprocess.run(command, **options)
    assert again.returncode == 0, again.stderr
    begun = [line for line in again.stderr.splitlines() if line.startswith("run ")]
    assert len(begun) == 4 - len(done)
