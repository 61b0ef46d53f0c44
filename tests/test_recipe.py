"""A recipe is data that nothing changes by accident, and every mistake is answered in one sentence."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cifar_jax import training
from cifar_jax.errors import OTHER_NAMES, InputError
from cifar_jax.models import MODELS
from cifar_jax.models.cnn import CNN
from cifar_jax.recipe import (
    build,
    differences,
    flatten,
    freeze,
    from_json,
    override,
    parameters,
    to_json,
    without_facts,
)
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training.check import check
from cifar_jax.training.losses import LOSSES
from cifar_jax.training.optimizers import OPTIMIZERS
from cifar_jax.training.schedules import SCHEDULES
from tests import made


@pytest.fixture
def base():
    return load_recipe("configs/base.py")


def section(**fields):
    return ConfigDict(fields)


# override


@pytest.mark.parametrize("changes", [{"optimizer.momentum": 0.5}, {"optimizer": {"momentum": 0.5}}])
def test_override_changes_what_is_named_and_nothing_else(base, changes):
    before = base.to_json()
    changed = override(base, changes)
    assert differences(base, changed) == ["optimizer.momentum: 0.9 -> 0.5"]
    assert base.to_json() == before


def test_override_takes_dotted_and_nested_together_and_frozen_recipes(base):
    changed = override(freeze(base), {"epochs": 3, "data": {"seed": 4}, "data.validation": 0, "augment.flip": 0.5})
    assert (changed.epochs, changed.data.seed, changed.data.validation, changed.augment.flip) == (3, 4, 0, 0.5)
    assert len(differences(base, changed)) == 4


@pytest.mark.parametrize(
    ("field", "value", "answer"),
    [
        ("epoch", 3, "recipe field 'epoch' is unknown; did you mean 'epochs'?"),
        ("data.validaton", 3, "recipe field 'data.validaton' is unknown; did you mean 'data.validation'?"),
        ("dato.validation", 3, "recipe field 'dato.validation' is unknown; did you mean 'data'?"),
        ("augment.flop", 0.5, "recipe field 'augment.flop' is unknown; did you mean 'augment.flip'?"),
        ("seed.value", 3, "recipe field 'seed.value' is unknown"),
        ("zzz", 3, "recipe field 'zzz' is unknown. Known: augment, average"),
        ("epochs", "ten", "recipe field 'epochs' is 'ten', a str; it takes an int, such as 30"),
        ("epochs", 2.5, "recipe field 'epochs' is 2.5, a float; it takes an int"),
        ("epochs", True, "recipe field 'epochs' is True, a bool; it takes an int"),
        ("epochs", None, "recipe field 'epochs' is None, a NoneType; it takes an int"),
        ("optimizer.nesterov", 1, "recipe field 'optimizer.nesterov' is 1 ... it takes a bool"),
        ("optimizer.momentum", True, "recipe field 'optimizer.momentum' is True, a bool; it takes a float"),
        ("optimizer.momentum", "0.9", "recipe field 'optimizer.momentum' is '0.9', a str; it takes a float"),
        ("dtype", 32, "recipe field 'dtype' is 32 ... it takes a str"),
        ("data.mean", "half", "recipe field 'data.mean' is 'half', a str; it takes a tuple, such as (0.4914"),
        ("data.mean", True, "recipe field 'data.mean' is True, a bool; it takes a tuple"),
        ("groups", 0.5, "recipe field 'groups' is 0.5, a float; it takes a tuple"),
        (
            "learning_rate",
            0.1,
            "recipe field 'learning_rate' is unknown; did you mean 'optimizer.learning_rate'? Known: a",
        ),
        ("lr", 0.1, "recipe field 'lr' is unknown; did you mean 'optimizer.learning_rate'?"),
        ("momentun", 0.1, "recipe field 'momentun' is unknown; did you mean 'optimizer.momentum'?"),
        ("train.learning_rate", 0.1, "'train.learning_rate' is unknown; did you mean 'optimizer.learning_rate'?"),
        (
            "data.batch_size",
            8,
            "'data.batch_size' is unknown; did you mean 'batch_size'? Known: data.image_size, data.input_size",
        ),
        ("bs", 8, "did you mean 'batch_size'?"),
        ("num_epochs", 8, "did you mean 'epochs'?"),
        ("n_epochs", 8, "did you mean 'epochs'?"),
        ("arch", "vgg16", "did you mean 'model.name'?"),
        ("architecture", "vgg16", "did you mean 'model.name'?"),
        ("network.width", 3, "did you mean 'model'?"),
        ("modle", "vgg16", "did you mean 'model.name'?"),
        ("dataset", "digits", "did you mean 'data.name'?"),
        ("opt", "adam", "did you mean 'optimizer.name'?"),
        ("opt.lr", 0.1, "recipe field 'opt.lr' is unknown; did you mean 'optimizer'?"),
        ("scheduler", "step", "did you mean 'schedule.name'?"),
        ("lr_schedule", "step", "did you mean 'schedule.name'?"),
        ("aug", 1, "recipe field 'aug' is unknown; did you mean 'augment'?"),
        ("smoothing", 0.1, "did you mean 'loss.label_smoothing'?"),
        ("wd", 0.1, "did you mean 'optimizer.weight_decay'?"),
        ("ema", 0.9, "did you mean 'average.decay'?"),
        ("augment.qqq", 1, "recipe field 'augment.qqq' is unknown. Known: augment.alternating_flip"),
        ("optimizer.name", 3, "recipe field 'optimizer.name' is 3; it takes the name of an optimizer, or a function"),
        ("loss.name", 3, "recipe field 'loss.name' is 3; it takes the name of a loss, or a function"),
        ("model", "resnet18", "recipe field 'model' is 'resnet18'; it is a section of fields: name"),
        ("model", 5, "recipe field 'model' is 5; it is a section of fields: name"),
        ("average", 0.5, "recipe field 'average' is 0.5; it is a section of fields: decay"),
    ],
)
def test_override_answers_a_mistake_with_the_field_and_what_is_allowed(base, field, value, answer):
    with pytest.raises(InputError) as error:
        override(base, {field: value})
    assert all(part in str(error.value) for part in answer.split(" ... ")), error.value


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("optimizer.momentum", 1, 1.0),
        ("epochs", 3.0, 3),
        ("data.mean", [0.5], (0.5,)),
        ("data.mean", 0.5, (0.5,)),
        ("data.std", 1, (1,)),
        ("data.std", np.float32(0.5), (0.5,)),
        ("optimizer.learning_rate", np.linspace(0, 1, 3)[1], 0.5),
        ("epochs", np.arange(4)[3], 3),
        ("optimizer.learning_rate", np.float32(0.5), 0.5),
    ],
)
def test_override_converts_what_loses_nothing(base, field, value, kept):
    found = flatten(override(base, {field: value}))[field]
    assert found == kept
    assert type(found) is type(kept)


def test_another_name_drops_the_parameters_of_the_old_one(base):
    changed = override(base, {"optimizer.name": "adam", "optimizer.learning_rate": 0.001})
    assert changed.optimizer.to_dict() == {"name": "adam", "learning_rate": 0.001}
    changed = override(base, {"schedule.name": "step", "schedule.milestones": [3.0]})
    assert changed.schedule.to_dict() == {"name": "step", "milestones": (3.0,)}


def test_the_same_name_by_itself_keeps_the_parameters(base):
    assert override(base, {"optimizer.name": "sgd"}) == base


def test_a_section_given_whole_replaces_and_one_without_a_name_adds(base):
    whole = override(base, {"optimizer": {"name": "sgd", "learning_rate": 0.5}})
    assert whole.optimizer.to_dict() == {"name": "sgd", "learning_rate": 0.5}
    part = override(base, {"optimizer": {"learning_rate": 0.5}})
    assert part.optimizer.to_dict() == {**base.optimizer.to_dict(), "learning_rate": 0.5}


def test_an_optimiser_without_learning_rate_is_told_so():
    with pytest.raises(InputError, match=r"optimizer\.learning_rate"):
        check(made.recipe({"optimizer.name": "adam"}))


def test_a_tracer_may_stand_for_a_number(base):
    def rate(value):
        return override(base, {"optimizer.learning_rate": value, "seed": jnp.int32(3)}).optimizer.learning_rate

    assert float(jax.jit(rate)(0.25)) == 0.25
    np.testing.assert_array_equal(jax.vmap(rate)(jnp.array([0.5, 1.0])), [0.5, 1.0])


# build


def scaled(size: int, factor: float = 2.0, *, name="", flags: tuple[int, ...] = (1, 2)):
    return size, factor, flags


TABLE = {"scaled": scaled, "twice": functools.partial(scaled, 3)}


def test_build_calls_the_named_function_with_the_sections_parameters():
    assert build(TABLE, section(name="scaled", size=3), "kind") == (3, 2.0, (1, 2))
    assert build(TABLE, section(name="scaled", size=3, factor=1, flags=(4,)), "kind") == (3, 1.0, (4,))
    assert build(TABLE, section(name="twice", factor=5.0), "kind") == (3, 5.0, (1, 2))
    assert build(TABLE, section(name="scaled", factor=5.0), "kind", size=7, unused=1) == (7, 5.0, (1, 2))


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"name": "scalled", "size": 3}, "kind 'scalled' is unknown; did you mean 'scaled'? Known: scaled, twice"),
        ({"name": "some.function"}, "kind 'some.function' is no part of cifar_jax; pass the function itself"),
        (
            {"name": "scaled", "size": 3, "facter": 1.0},
            "'kind.facter' is unknown to kind 'scaled'; did you mean 'kind.factor'? Known: kind.factor, kind.flags",
        ),
        ({"name": "scaled", "size": 2.5}, "recipe field 'kind.size' is 2.5, a float; it takes an int"),
        ({"name": "scaled", "size": 3, "factor": "2"}, "recipe field 'kind.factor' is '2', a str; it takes a float"),
        ({"name": "scaled", "size": True}, "recipe field 'kind.size' is True, a bool; it takes an int"),
        ({"name": "scaled"}, "kind 'scaled' needs a value for 'kind.size'; set it in the recipe"),
    ],
)
def test_build_answers_a_mistake_with_the_field_and_what_is_allowed(fields, answer):
    with pytest.raises(InputError) as error:
        build(TABLE, section(**fields), "kind")
    assert answer in str(error.value)


def test_a_number_serves_a_parameter_that_takes_a_tuple_of_numbers():
    assert build(TABLE, section(name="scaled", size=3, flags=4), "kind") == (3, 2.0, (4,))


@pytest.mark.parametrize(
    ("field", "meant"),
    [("lr", "learning_rate"), ("wd", "weight_decay"), ("b1", "beta1"), ("beta_2", "beta2"), ("eps", "epsilon")],
)
def test_the_names_of_other_libraries_lead_to_ours(field, meant):
    recipe = made.recipe({"optimizer": {"name": "adam", "learning_rate": 0.1, field: 0.5}})
    with pytest.raises(InputError, match=f"'optimizer.{field}' is unknown .*; did you mean 'optimizer.{meant}'?"):
        check(recipe)


def test_every_name_of_another_library_leads_to_a_name_of_ours(base):
    known = {name for path in flatten(base) for name in path.split(".")} | set(flatten(base))
    for table in (MODELS, OPTIMIZERS, SCHEDULES, LOSSES):
        known |= {name for function in table.values() for name in parameters(function)}
    assert {field for field in OTHER_NAMES.values() if field not in known} == set()
    assert {field for field in OTHER_NAMES if field in known} == set()


def test_an_optimizer_that_is_made_already_is_answered_with_the_remedy(base):
    with pytest.raises(InputError) as error:
        override(base, {"optimizer.name": optax.adam(1e-3)})
    assert str(error.value) == (
        "recipe field 'optimizer.name' is a GradientTransformationExtraArgs; pass the function that makes it, such as "
        "optax.adam, and set optimizer.learning_rate in the recipe"
    )


def test_what_is_given_is_no_parameter_of_the_recipe():
    with pytest.raises(InputError, match=r"'model\.num_classes' is unknown to model 'cnn'"):
        training.model(made.recipe({"model.num_classes": 3}))


def test_a_function_a_partial_or_a_module_may_stand_for_a_name():
    module = CNN(num_classes=4, width=2)
    given = {"num_classes": 4, "dtype": jnp.dtype("float32")}
    assert build(TABLE, section(name=scaled, size=4), "kind") == (4, 2.0, (1, 2))
    assert build(MODELS, section(name=CNN, width=3), "model", **given) == CNN(4, width=3)
    assert build(MODELS, section(name=functools.partial(CNN, width=3)), "model", **given) == CNN(4, width=3)
    assert build(MODELS, section(name=lambda num_classes: num_classes + 1), "model", **given) == 5
    assert build(MODELS, section(name=lambda **all_of_it: all_of_it), "model", **given) == given
    assert build(MODELS, section(name=module), "model", **given) is module


def test_parameters_are_those_that_a_recipe_may_set():
    assert parameters(scaled) == {"size": 0, "factor": 2.0, "flags": (1, 2)}
    assert {"width", "hidden", "activation"} <= parameters(CNN).keys()
    assert not {"name", "parent"} & parameters(nn.Dense).keys()


# freeze, json, differences


def test_a_frozen_recipe_cannot_be_changed(base):
    frozen = freeze(base)
    with pytest.raises(AttributeError):
        frozen.epochs = 3
    with pytest.raises(AttributeError):
        frozen.optimizer.learning_rate = 3.0
    base.epochs = 3
    assert frozen.epochs == 30


def test_functions_are_written_as_their_names_and_cannot_be_built_from_them():
    values = to_json(made.recipe({"model.name": scaled, "augment": scaled}))
    assert values["model"]["name"] == values["augment"] == "tests.test_recipe.scaled"
    json.dumps(values)
    assert to_json(made.recipe({"model.name": CNN(num_classes=4)}))["model"]["name"] == "cifar_jax.models.cnn.CNN"
    with pytest.raises(InputError, match="no part of cifar_jax"):
        training.model(from_json(values))


def test_differences_are_one_line_a_field(base):
    changed = override(base, {"optimizer.name": "adam", "optimizer.learning_rate": 0.1, "data.mean": (0.5,)})
    assert differences(base, base) == differences(base, freeze(base)) == []
    assert differences(base, changed) == [
        "data.mean: [0.4914, 0.4822, 0.4465] -> [0.5]",
        "optimizer.momentum: 0.9 -> absent",
        "optimizer.name: sgd -> adam",
        "optimizer.nesterov: True -> absent",
        "optimizer.weight_decay: 0.0005 -> absent",
    ]
    assert differences(changed, base)[1] == "optimizer.momentum: absent -> 0.9"


def test_flatten_keeps_dotted_keys():
    assert flatten({"a": {"b": 1, "c": {"d": (2,)}}, "e.f": 3}) == {"a.b": 1, "a.c.d": (2,), "e.f": 3}


def test_facts_are_taken_from_a_copy():
    recipe = override(made.recipe(), {})
    assert "image_shape" not in without_facts(recipe).data
    assert "image_shape" in recipe.data
