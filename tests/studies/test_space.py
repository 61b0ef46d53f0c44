"""Search spaces: what they draw, and what is refused."""

import pytest

import cifar_jax as cj
from cifar_jax.runs.recipes import shipped_recipes
from cifar_jax.studies.space import (
    alternatives,
    by_field,
    check_space,
    choice,
    describe,
    examples,
    integer,
    load_space,
    log_uniform,
    searched_fields,
    suggest,
    uniform,
)
from tests import made

RECIPE = cj.override(made.recipe(), {"data.validation": 8})
SPACE = {
    "epochs": integer(2, 5),
    "model.dropout": uniform(0, 0.5),
    "data.mean": choice((0.4,), (0.5,)),
    "optimizer": alternatives(
        {"name": "sgd", "learning_rate": log_uniform(1e-3, 1e-1), "momentum": choice(0.5, 0.9)},
        {"name": "adamw", "learning_rate": log_uniform(1e-4, 1e-2), "beta1": 0.8},
    ),
}


class Drawing:
    """A trial that draws the last value of everything, and checks that a name keeps its values."""

    def __init__(self, pick):
        self.pick, self.drawn = pick, {}

    def suggest_categorical(self, name, choices):
        return self.drawn.setdefault(name, choices[self.pick])

    def suggest_float(self, name, low, high, step=None, log=False):
        return self.drawn.setdefault(name, (low, high)[self.pick])

    def suggest_int(self, name, low, high, step=1, log=False):
        assert isinstance(low, int)
        return self.drawn.setdefault(name, (low, high)[self.pick])


def test_alternatives_draw_the_fields_of_one_section():
    first, last = Drawing(0), Drawing(-1)
    assert suggest(SPACE, first) == {
        "epochs": 2, "model.dropout": 0, "data.mean": (0.4,), "optimizer.name": "sgd",
        "optimizer.learning_rate": 1e-3, "optimizer.momentum": 0.5,
    }  # fmt: skip
    assert suggest(SPACE, last) == {
        "epochs": 5, "model.dropout": 0.5, "data.mean": (0.5,), "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-2, "optimizer.beta1": 0.8,
    }  # fmt: skip
    # Each alternative has parameters of its own: their ranges differ. What is no scalar is drawn by its text.
    assert sorted(last.drawn) == [
        "data.mean", "epochs", "model.dropout", "optimizer.adamw.learning_rate", "optimizer.name"
    ]  # fmt: skip
    assert last.drawn["data.mean"] == "(0.5,)"


def test_parameters_of_alternatives_are_shown_by_field():
    drawn = Drawing(-1)
    suggest(SPACE, drawn)
    assert by_field(SPACE, drawn.drawn) == {
        "epochs": 5, "model.dropout": 0.5, "data.mean": "(0.5,)", "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-2,
    }  # fmt: skip


def test_examples_hold_every_choice_and_both_ends_of_every_range():
    found = examples(SPACE)
    for path, values in {"epochs": {2, 5}, "model.dropout": {0, 0.5}, "data.mean": {(0.4,), (0.5,)}}.items():
        assert {each[path] for each in found} == values
    by_name = {name: [each for each in found if each["optimizer.name"] == name] for name in ("sgd", "adamw")}
    assert {each["optimizer.learning_rate"] for each in by_name["sgd"]} == {1e-3, 1e-1}
    assert {each["optimizer.learning_rate"] for each in by_name["adamw"]} == {1e-4, 1e-2}
    assert all("optimizer.momentum" not in each and each["optimizer.beta1"] == 0.8 for each in by_name["adamw"])
    for each in found:
        cj.override(RECIPE, each)


def test_a_space_is_described_as_it_is_written():
    assert describe(SPACE)["optimizer"].startswith("alternatives({name: sgd, learning_rate: log_uniform(0.001, 0.1), ")
    assert describe({"epochs": integer(1, 8, log=True)}) == {"epochs": "integer(1, 8, log=True)"}
    assert describe({"a": uniform(0, 1, step=0.25)}) == {"a": "uniform(0, 1, step=0.25)"}
    assert searched_fields(SPACE) == {
        "epochs", "model.dropout", "data.mean", "optimizer.name", "optimizer.learning_rate", "optimizer.momentum",
        "optimizer.beta1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("space", "answer"),
    [
        ({}, "the search space is {}; it is a dict of fields"),
        ([uniform(0, 1)], "it is a dict of fields"),
        ({"model.dropout": 0.5}, "the search space has 0.5 for 'model.dropout'; give choice(...)"),
        ({"lr": log_uniform(1e-3, 1)}, "recipe field 'lr' is unknown; did you mean 'optimizer.learning_rate'?"),
        ({"model.dropout": uniform(0.5, 0.5)}, "uniform(0.5, 0.5) for 'model.dropout' is empty: the first number must"),
        ({"model.dropout": uniform(0.5, 0.1)}, "is empty"),
        ({"model.dropout": uniform(0, float("inf"))}, "has an end that is no finite number"),
        ({"model.dropout": choice(0.1, float("nan"))}, "has a value that is not finite"),
        ({"model.dropout": choice()}, "choice() for 'model.dropout' has no values; give at least one"),
        ({"model.dropout": choice(0.1, 0.1)}, "has a value twice"),
        ({"optimizer.learning_rate": log_uniform(0, 1)}, "is logarithmic: its numbers must be above 0"),
        ({"epochs": integer(1, 4, step=5)}, "has a step that leaves one value or none"),
        ({"epochs": integer(1.5, 4)}, "has an end or a step that is no whole number"),
        ({"epochs": integer(1, 4, step=0.5)}, "has an end or a step that is no whole number"),
        (
            {"batch_size": uniform(32, 128)},
            "uniform(32, 128) for 'batch_size' has fractions, and the field takes",
        ),
        ({7: choice(1, 2)}, "the search space has 7 as a field; name a field of the recipe"),
        (
            {"optimizer": alternatives("sgd", "adam")},
            "alternatives of 'optimizer' are alternatives('sgd', 'adam'); give",
        ),
        (
            {
                "optimizer": alternatives(
                    {"name": "sgd", "x": alternatives({"name": "a"}, {"name": "b"})}, {"name": "adam"}
                )
            },
            "alternatives of 'optimizer' hold alternatives for 'x'; give each combination as a section of its own",
        ),
        ({"epochs": integer(1, 9, step=2, log=True)}, "where a step means nothing"),
        ({"epochs": uniform(1, 4.5)}, "recipe field 'epochs' is 4.5, a float; it takes an int"),
        ({"batch_size": choice(8, "16")}, "recipe field 'batch_size' is '16', a str; it takes an int"),
        ({"seed": integer(0, 9)}, "the search space has 'seed', and a seed is nothing to search; set it in the recipe"),
        ({"seeds.weights": choice(0, 1)}, "the search space has 'seeds.weights', and a seed is nothing to search"),
        ({"optimizer": {"learning_rate": 1}}, "has a dict for 'optimizer'; name the field: 'optimizer.learning_rate'"),
        ({"optimizer": choice({"name": "sgd"}, {"name": "adam"})}, "sections are given by alternatives(...)"),
        ({"epochs": integer(1, 4, step="a")}, "has a step that is no number"),
        ({"model.dropout": uniform(0, 0.5, step=0.2)}, "has steps that do not meet its end; end it at 0.4"),
        ({"epochs": integer(1, 4, step=2)}, "has steps that do not meet its end; end it at 3"),
        ({"batch_size": choice(64, 64.0)}, "has a value twice"),
        ({"data.validation": choice(8, 16)}, "'data.validation' decides which images a run is compared on"),
        ({"evaluation.batch_size": choice(8, 16)}, "changes no result"),
        ({"optimizer": alternatives({"name": "sgd"})}, "give two or more sections, each with another name"),
        ({"optimizer": alternatives({"name": "sgd"}, {"name": "sgd"})}, "each with another name"),
        ({"optimizer": alternatives({"name": "sgd"}, {"momentum": 0.9})}, "each with another name"),
        (
            {"optimizer": alternatives({"name": "sgd"}, {"name": "adam"}), "optimizer.learning_rate": uniform(0, 1)},
            "has 'optimizer' and 'optimizer.learning_rate'",
        ),
        (
            {"optimizer": alternatives({"name": "sgd", "learning_rate": uniform(1, 0)}, {"name": "adam"})},
            "for 'optimizer.learning_rate' is empty",
        ),
    ],
)
def test_bad_spaces_are_refused(space, answer):
    with pytest.raises(cj.InputError) as error:
        check_space(RECIPE, space)
    assert answer in str(error.value)


def test_space_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cj.InputError, match=r"search space 'none.py' is not a file; known spaces: configs/spaces/cnn"):
        load_space("none.py")
    for name, text, answer in (
        ("empty.py", "", r"defines no get_space\(\); see configs/spaces/cnn.py for the form"),
        ("space.json", "{}", r"is no .py file"),
        (
            "called.py",
            "def get_space(x):\n    return {}\n",
            r"get_space of search space '.*called.py' cannot be called: missing a req",
        ),
        ("imports.py", "import nothing_at_all\n", r"imports.py' cannot be read: No module named 'nothing_at_all'"),
        ("exits.py", "raise SystemExit(3)\n", r"exits.py' raised SystemExit at line 1: 3"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(cj.InputError, match=answer):
            load_space(tmp_path / name)
    for text, line in (("x = 1 / 0\n", 1), ("def get_space():\n    return {'a': 1 / 0}\n", 2)):
        (tmp_path / "raises.py").write_text(text)
        for path in (tmp_path / "raises.py", "raises.py"):
            with pytest.raises(
                cj.InputError, match=rf"raises.py' raised ZeroDivisionError at line {line}: division by"
            ):
                load_space(path)


@pytest.mark.parametrize("values", [uniform(0, 0.5, step=0.1), uniform(0.1, 0.7, step=0.2), integer(2, 8, step=3)])
def test_steps_that_meet_the_end_are_taken(values):
    check_space(RECIPE, {"model.dropout": values} if values.kind == "uniform" else {"epochs": values})


@pytest.mark.parametrize("path", sorted(shipped_recipes().glob("spaces/*.py")), ids=lambda path: path.stem)
def test_the_spaces_that_come_with_the_package_fit_their_recipes(path):
    recipe, space = cj.load_recipe(f"configs/{path.name}", {"data.validation": 8}), load_space(path)
    check_space(recipe, space)
    assert len({tuple(sorted(each.items())) for each in examples(space)}) == len(examples(space))
