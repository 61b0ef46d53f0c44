"""Two functions with one fingerprint do the same, whatever kind they are of; a difference is named."""

import dataclasses
import enum
import functools
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cifar_jax.errors import InputError
from cifar_jax.models.cnn import CNN
from cifar_jax.runs.fingerprint import data_digest, differences, fingerprint

ROOT = Path(__file__).parent.parent.parent


def changes(old: Any, new: Any) -> list[str]:
    """What `differences` says of two values; it says something where, and only where, the digests differ."""
    before, after = fingerprint(old), fingerprint(new)
    json.dumps([before, after])
    assert None not in (before["digest"], after["digest"]), (before, after)
    found = differences({"it": before}, {"it": after})
    assert bool(found) == (before["digest"] != after["digest"])
    return found


def alike(value: Any) -> Any:
    """The same function with another of what it calls, so that only closures differ."""

    def inner(x):
        return x * value

    return inner


class Layer(nn.Module):
    act: str = "relu"
    width: int = 3
    inner: Any = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


@dataclasses.dataclass
class Loss:
    alpha: float = 0.1

    def __call__(self, logits, targets):
        return self.alpha * logits


class Pair(NamedTuple):
    left: Any
    right: Any = 2


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Slots:
    __slots__ = ("alpha",)

    def __init__(self, alpha):
        self.alpha = alpha


def loss(logits, targets, alpha=0.1, *, beta=0.2):
    return alpha * logits


# One entry a kind: how to make it of a value; two values; what is said of their difference, in whole lines ("it: ...")
# or in parts of lines.
ARRAY = np.arange(3.0)
KINDS = {
    "field of a module": (lambda v: Layer(act=v), ("relu", "tanh"), ["it: field act: 'relu' -> 'tanh'"]),
    "field of a shipped module": (lambda v: CNN(num_classes=4, width=v), (2, 3), ["it: field width: 2 -> 3"]),
    "module in a module": (
        lambda v: Layer(inner=Layer(width=v)),
        (2, 3),
        ["it: field inner: field width: 2 -> 3"],
    ),
    "name of an inner module": (
        lambda v: Layer(inner=Layer(name=v)),
        ("a", "b"),
        ["it: field inner: field name: 'a' -> 'b'"],
    ),
    "modules in a list": (lambda v: nn.Sequential([Layer(), Layer(width=v)]), (2, 3), ["field width: 2 -> 3"]),
    "function in a field": (lambda v: Layer(inner=v), (nn.relu, nn.tanh), ["functions.relu -> "]),
    "closure: number": (alike, (0.1, 0.2), ["it: closure value value: 0.1 -> 0.2"]),
    "closure: int or float": (alike, (1, 1.0), ["it: closure value value: 1 -> 1.0"]),
    "closure: sign of zero": (alike, (0.0, -0.0), ["it: closure value value: 0.0 -> -0.0"]),
    "closure: text": (alike, ("a", "b"), ["it: closure value value: 'a' -> 'b'"]),
    "closure: long text": (alike, ("a" * 99, "a" * 98 + "b"), ["it: closure value value changed"]),
    "closure: tuple": (alike, ((1, 2), (1, (2,))), ["it: closure value value: (1, 2) -> (1, (2,))"]),
    "closure: dict": (alike, ({"a": 1}, {"a": 2}), ["it: closure value value: {'a': 1} -> {'a': 2}"]),
    "closure: set": (alike, ({1, 2}, {1, 3}), ["it: closure value value: set(1, 2) -> set(1, 3)"]),
    "closure: dict of arrays": (
        lambda v: alike({"a": np.zeros(2), "b": v}),
        (ARRAY, ARRAY + 1),
        ["it: closure value value: item 'b' changed"],
    ),
    "closure: bytes of an array": (alike, (ARRAY, ARRAY + 1), ["it: closure value value changed"]),
    "closure: shape of an array": (alike, (ARRAY, ARRAY[None]), ["it: closure value value changed"]),
    "closure: type of an array": (alike, (np.zeros(2, "i4"), np.zeros(2, "f4")), ["it: closure value value changed"]),
    "closure: jax array": (alike, (jnp.zeros(2), jnp.ones(2)), ["it: closure value value changed"]),
    "closure: bfloat16": (alike, (jnp.zeros(2, "bfloat16"), jnp.ones(2, "bfloat16")), ["value changed"]),
    "closure: key": (lambda v: alike(jax.random.key(v)), (0, 1), ["it: closure value value changed"]),
    "closure: dtype": (alike, (np.dtype("int8"), np.dtype("int16")), ["dtype int8 -> dtype int16"]),
    "closure: function": (lambda v: alike(alike(v)), (1, 2), ["it: closure value value: closure value value: 1 -> 2"]),
    "closure: library function": (alike, (jnp.sin, jnp.cos), ["sin -> "]),
    "closure: builtin": (alike, (math.sin, math.cos), ["it: closure value value: math.sin -> math.cos"]),
    "closure: ufunc": (alike, (np.sin, np.cos), ["it: closure value value: numpy.sin -> numpy.cos"]),
    "closure: class": (alike, (Layer, Loss), ["Layer -> "]),
    "closure: module": (alike, (np, jnp), ["it: closure value value: module numpy -> module jax.numpy"]),
    "closure: enum": (alike, (Colour.RED, Colour.BLUE), ["member: RED = 1 -> BLUE = 2"]),
    "closure: named tuple": (lambda v: alike(Pair(alike(v))), (1, 2), ["field left: closure value value: 1 -> 2"]),
    "closure: generator of numbers": (lambda v: alike(np.random.default_rng(v)), (0, 1), ["field state"]),
    "closure: recipe": (lambda v: alike(ConfigDict({"width": v})), (1, 2), ["{'width': 1} -> {'width': 2}"]),
    "partial: argument": (lambda v: functools.partial(loss, v), (1, 2), ["it: argument 0: 1 -> 2"]),
    "partial: keyword": (lambda v: functools.partial(CNN, width=v), (1, 2), ["it: argument width: 1 -> 2"]),
    "partial: function": (
        lambda v: functools.partial(alike(v), 3),
        (1, 2),
        ["it: function: closure value value: 1 -> 2"],
    ),
    "bound method": (lambda v: Loss(v).__call__, (0.1, 0.2), ["it: object: field alpha: 0.1 -> 0.2"]),
    "method of a list": (lambda v: [v].index, (1, 2), ["it: object: [1] -> [2]"]),
    "callable instance": (Loss, (0.1, 0.2), ["it: field alpha: 0.1 -> 0.2"]),
    "instance with slots": (Slots, (0.1, 0.2), ["it: field alpha: 0.1 -> 0.2"]),
    "jitted": (lambda v: jax.jit(alike(v)), (1, 2), ["it: function: closure value value: 1 -> 2"]),
    "cached": (lambda v: functools.cache(alike(v)), (1, 2), ["it: function: closure value value: 1 -> 2"]),
    "mapped": (lambda v: jax.vmap(alike(v)), (1, 2), ["closure value value: 1 -> 2"]),
    "axes of a mapped function": (lambda v: jax.vmap(loss, in_axes=v), (0, 1), ["closure value in_axes: 0 -> 1"]),
    "custom gradient": (lambda v: jax.custom_jvp(alike(v)), (1, 2), ["field fun: closure value value: 1 -> 2"]),
    "optimiser": (optax.adam, (0.1, 0.2), ["closure value step_size: -0.1 -> -0.2"]),
    "b1 of an optimiser": (lambda v: optax.adam(1e-3, b1=v), (0.8, 0.9), ["closure value b1: 0.8 -> 0.9"]),
    "mask of an optimiser": (
        lambda v: optax.adamw(1e-3, mask=alike(v)),
        (1, 2),
        ["closure value value: 1 -> 2"],
    ),
    "schedule of an optimiser": (
        lambda v: optax.sgd(optax.cosine_decay_schedule(0.1, v)),
        (10, 20),
        ["closure value decay_steps: 10 -> 20"],
    ),
    "initialiser": (
        lambda v: nn.Dense(3, kernel_init=nn.initializers.truncated_normal(v)),
        (0.1, 0.2),
        ["it: field kernel_init: closure value stddev: 0.1 -> 0.2"],
    ),
}


@pytest.mark.parametrize(("make", "values", "expected"), KINDS.values(), ids=KINDS)
def test_every_kind_of_value_is_told_apart(make, values, expected):
    assert changes(make(values[0]), make(values[0])) == []
    found = changes(make(values[0]), make(values[1]))
    for line in expected:
        assert line in found if line.startswith("it: ") else any(line in other for other in found), found


def test_a_set_a_dictionary_and_a_cycle_have_one_fingerprint():
    assert changes(alike({"a": 1, "b": 2}), alike({"b": 2, "a": 1})) == []

    def cyclic():
        def even(n):
            return n == 0 or odd(n - 1)

        def odd(n):
            return n != 0 and even(n - 1)

        return even

    assert changes(cyclic(), cyclic()) == []


def test_lambdas_of_one_line_are_told_apart():
    # fmt: off
    first, second, third = lambda x: x + 1, lambda x: x + 2, lambda x: lambda y: x + 1
    # fmt: on
    assert changes(first, second) == ["it: source of <lambda> changed"]
    assert changes(first, third) == ["it: source of <lambda> changed"]
    assert changes(third(1), third(2)) == ["it: closure value x: 1 -> 2"]


def test_functions_without_a_file_are_told_apart_by_their_code():
    def made(text):
        names: dict[str, Any] = {"__name__": "typed"}
        exec(text, names)
        return names["f"]

    assert changes(made("f = lambda x: x + 1"), made("\n\nf = lambda x:   x + 1")) == []
    assert changes(made("def f(x): return x + 1"), made("def f(x): return x + 2")) == ["it: source of f changed"]
    assert changes(made("def f(x): return x in {1, 2}"), made("def f(x): return x in {1, 3}"))
    assert changes(made("def f(x):\n def g(): return 1\n return g"), made("def f(x):\n def g(): return 2\n return g"))
    assert changes(made("def f(x): return x.sin()"), made("def f(x): return x.cos()"))


# Files of a user's own


MODULE = '''
import functools
from typing import Any
import flax.linen as nn
import jax.numpy as jnp

RATE = 0.1
TABLE = {"a": (1, 2)}

def scale(x):
    return x * RATE

def loss(logits, targets, alpha=1.0, *, beta=2.0):
    """How far off."""
    # the usual
    return scale(logits) + alpha * beta

def unrelated(x):
    return x

class Base(nn.Module):
    width: int = 3

class Model(Base):
    act: str = "relu"
    table: Any = None

    def setup(self):
        self.dense = nn.Dense(self.width)

    @property
    def size(self):
        return 2 * TABLE["a"][0]

    def __call__(self, x):
        return self.dense(x) * self.size

augment = functools.partial(loss, alpha=3.0)
'''
EDITS = {  # what is replaced, by what, in which function; what is said
    "body": ("alpha * beta", "alpha - beta", "loss", ["it: source of loss changed"]),
    "default": ("alpha=1.0", "alpha=1.5", "loss", ["it: default alpha: 1.0 -> 1.5", "it: source of loss changed"]),
    "keyword default": ("beta=2.0", "beta=1", "loss", ["it: default beta: 2.0 -> 1", "it: source of loss changed"]),
    "helper": ("x * RATE", "x / RATE", "loss", ["it: global scale: source of scale changed"]),
    "constant": ("RATE = 0.1", "RATE = 0.2", "loss", ["it: global scale: global RATE: 0.1 -> 0.2"]),
    "the same by a partial": (
        "x * RATE",
        "x / RATE",
        "augment",
        ["it: function: global scale: source of scale changed"],
    ),
    "method": (
        "self.dense(x) *",
        "self.dense(x) +",
        "Model",
        ["it: method __call__: source of Model.__call__ changed"],
    ),
    "setup": ("nn.Dense(", "nn.DenseGeneral(", "Model", ["it: method setup: source of Model.setup changed"]),
    "property": ("return 2 *", "return 3 *", "Model", ["it: method size: source of Model.size changed"]),
    "constant of a property": (
        "(1, 2)",
        "(1, 3)",
        "Model",
        ["it: method size: global TABLE: {'a': (1, 2)} -> {'a': (1, 3)}"],
    ),
    "default of a field": ('"relu"', '"tanh"', "Model", ["it: attribute act: 'relu' -> 'tanh'"]),
    "base": ("width: int = 3", "width: int = 4", "Model", ["it: base Base: attribute width: 3 -> 4"]),
    "nothing": ("", "", "Model", []),
    "a comment": ("# the usual", "# the most\n    # usual", "loss", []),
    "a docstring": ("How far off.", "How near.", "loss", []),
    "format": ("alpha=1.0, *, ", "alpha = 1.0,\n    *,   ", "loss", []),
    "lines above": ("RATE = ", "\n\n\nRATE = ", "loss", []),
    "what it does not use": ("return x\n", "return -x\n", "loss", []),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(text) -> the module `mine` with this text, as if it were imported in a new process."""

    def module(text, name="mine"):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, made)
        exec(compile(text, str(path), "exec"), made.__dict__)  # not from a .pyc, which knows seconds only
        return made

    return module


@pytest.mark.parametrize(("old", "new", "name", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit_is_noticed_and_named(load, old, new, name, expected):
    before = fingerprint(getattr(load(MODULE), name))
    assert old in MODULE
    after = fingerprint(getattr(load(MODULE.replace(old, new, 1)), name))
    assert differences({"it": before}, {"it": after}) == expected
    assert (before == after) == (not expected)


def test_another_function_of_the_module_is_named(load):
    module = load(MODULE)
    assert changes(module.loss, module.unrelated) == ["it: mine.loss -> mine.unrelated"]


def test_a_helper_in_another_file_is_followed(load):
    load("def scale(x):\n    return x\n", "helpers")
    text = "import helpers\nimport mine\ndef loss(l, t):\n    return helpers.scale(l)\n"
    before = fingerprint(load(text).loss)
    load("def scale(x):\n    return -x\n", "helpers")
    after = fingerprint(load(text).loss)
    assert differences({"loss": before}, {"loss": after}) == [
        "loss: global helpers.scale: source of scale changed"
    ]  # fmt: skip


def test_a_file_that_was_edited_after_the_import_does_not_lend_its_new_text(load, tmp_path):
    module = load(MODULE)
    (tmp_path / "mine.py").write_text(MODULE.replace("alpha * beta", "alpha - beta"))
    edited = fingerprint(module.loss)["parts"]["source of loss"]
    assert edited.startswith("python 3.")
    assert edited != fingerprint(load(MODULE.replace("alpha * beta", "alpha + beta")).loss)["parts"]["source of loss"]


def test_a_wrapper_is_not_mistaken_for_what_it_wraps(load):
    text = """
    import functools
    def loss(l, t):
        return l
    @functools.wraps(loss)
    def wrapped(l, t):
        return 2 * loss(l, t)
    """
    module = load(textwrap.dedent(text))
    assert module.wrapped.__qualname__ == "loss"
    assert changes(module.loss, module.wrapped)


# What cannot be read


class Native:
    """An object that says in its own way what its state is, and leaves something out."""

    def __reduce__(self):
        return Native, ()

    def __call__(self, logits, targets):
        return logits


UNREADABLE = {
    "lock": (threading.Lock(), "it is a _thread.lock, whose state cannot be read"),
    "generator": ((n for n in "ab"), "it is a generator, whose state cannot be read"),
    "in a closure": (alike(threading.Lock()), "closure value value is a _thread.lock, whose state cannot be read"),
    "own state": (Native(), "Native, whose state cannot be read"),
    "array of objects": (alike(np.array([object()])), "closure value value is a ndarray, no array of numbers"),
    "without end": (functools.reduce(lambda f, _: alike(f), range(5000), loss), "nested too deeply"),
    "very large": (alike([object() for _ in range(10_001)]), "more than 10,000 values"),
}


@pytest.mark.parametrize(("value", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_has_no_digest_and_a_reason(value, reason):
    found = fingerprint(value)
    assert found["digest"] is None
    assert reason in found["reason"]
    assert [line.startswith("loss: ") and reason in line for line in differences({"loss": found}, {"loss": found})] == [
        True
    ]


def test_a_tracer_cannot_be_read():
    reasons = []
    jax.jit(lambda x: reasons.append(fingerprint(alike(x))) or x)(1.0)
    assert "tracer" in reasons[0]["reason"]


def test_a_global_object_that_cannot_be_read_counts_by_its_type(load):
    text = "import threading\nLOCK = threading.Lock()\ndef loss(l, t):\n    with LOCK:\n        return l\n"
    found = fingerprint(load(text).loss)
    assert found["parts"]["global LOCK"] == "_thread.lock"
    helper = (
        text
        + "def made(lock):\n    return lambda l, t: lock\nhelp = made(LOCK)\ndef other(l, t):\n    return help(l)\n"
    )
    assert "closure value lock is a _thread.lock" in fingerprint(load(helper).other)["reason"]


# Other processes


def test_every_process_says_the_same():
    program = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.runs.test_fingerprint import KINDS, Colour, Layer, Loss, alike, loss
from cifar_jax.runs.fingerprint import fingerprint
values = {{name: make(values[0]) for name, (make, values, _) in KINDS.items()}}
values |= {{"sets": alike({{"a", "b", "c", frozenset("xyz")}}), "class": Layer, "data class": Loss, "enum": Colour}}
values["typed"] = eval("lambda x: x in {{'a', 'b', 'c'}}")
print(json.dumps({{name: fingerprint(value) for name, value in values.items()}}))
"""
    said = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
        assert not re.search(r"0x[0-9a-f]{6}", done.stdout)
    assert said[0] == said[1]
    assert not [name for name, found in said[0].items() if found["digest"] is None]


# differences and data_digest


def test_differences_between_arguments():
    one, two = fingerprint(Layer()), fingerprint(loss)
    assert differences({"model": one}, {"model": one}) == differences({}, {}) == []
    assert differences({"model": one}, {}) == ["model: tests.runs.test_fingerprint.Layer -> absent"]
    assert differences({"model": one}, {"loss": two, "model": fingerprint(Layer(width=4))}) == [
        "loss: absent -> tests.runs.test_fingerprint.loss",
        "model: field width: 3 -> 4",
    ]


def test_data_digest_sees_paths_types_shapes_and_bytes():
    values = [
        {"a": np.arange(4, dtype="i4")},
        {"b": np.arange(4, dtype="i4")},
        {"a": np.arange(4, dtype="u4")},
        {"a": np.arange(4, dtype="i4").reshape(2, 2)},
        {"a": np.arange(1, 5, dtype="i4")},
        {"a": [np.arange(4, dtype="i4")]},
        {"a": np.arange(4, dtype="i4"), "b": np.zeros(0)},
        {},
        None,
    ]
    digests = [data_digest(value) for value in values]
    for (i, one), (j, two) in itertools.combinations(enumerate(digests), 2):
        assert one != two or (i, j) == (7, 8)
    assert digests[0] == data_digest({"a": jnp.arange(4)})
    assert digests[3] == data_digest({"a": np.arange(4, dtype="i4").reshape(2, 2).copy(order="F")})
    with pytest.raises(InputError, match=r"\['a'\] is a function, no array of numbers"):
        data_digest({"a": loss})
