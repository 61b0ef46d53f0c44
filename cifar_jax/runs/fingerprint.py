"""What identifies a function, class or module that a caller passes to `fit`: a run is resumed only with the same one.

A fingerprint is {"name", "digest", "reason", "parts"}. The parts describe the value in lines that can be compared: its
source, its fields, what it closes over, and the functions and constants of the caller's own code that it refers to.
What comes from an installed library is identified by its name.
"""

import dataclasses
import functools
import hashlib
import inspect
import sys
import sysconfig
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

PLAIN = (bool, int, float, complex, str, bytes, type(None))
PACKAGE = str(Path(__file__).parent.parent)
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {PACKAGE})


class CannotCompare(ValueError):
    """The value has a state that cannot be read."""


def fingerprint(value: Any) -> dict[str, Any]:
    """{"name": "module.name", "digest": sha256, or None where `reason` says why, "parts": {path: description}}."""
    parts: dict[str, str] = {}
    try:
        _describe(value, "", parts, set())
    except CannotCompare as error:
        return {"name": name_of(value), "digest": None, "reason": str(error), "parts": {}}
    text = "\n".join(f"{path}: {part}" for path, part in sorted(parts.items()))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"name": name_of(value), "digest": digest, "reason": None, "parts": parts}


def changes(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints: "model: field act: 'relu' -> 'tanh'"."""
    before, after = old["parts"], new["parts"]
    found = []
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path, "absent"), after.get(path, "absent")
        if one != other:
            shown = f"{one} -> {other}" if max(len(one), len(other)) <= 60 else "changed"
            found.append(f"{kind}: {path.strip() or 'value'}: {shown}")
    return found or [f"{kind}: {old['name']} -> {new['name']}"]


def digest_of_arrays(tree: Any) -> str:
    """sha256 over the paths, dtypes, shapes and bytes of a tree of arrays."""
    state = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        state.update(f"{jax.tree_util.keystr(path)} {_array(leaf)}\n".encode())
    return state.hexdigest()


def name_of(value: Any) -> str:
    value = value.func if isinstance(value, functools.partial) else value
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"


def _describe(value: Any, path: str, parts: dict[str, str], seen: set[int]) -> None:
    """Adds lines about a value to `parts`; `seen` holds the functions and objects that are described already."""
    if isinstance(value, PLAIN):
        parts[path] = repr(value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        parts[path] = _array(value)
    elif isinstance(value, np.dtype) or value in (jax.numpy.float32, jax.numpy.bfloat16, jax.numpy.float16):
        parts[path] = str(np.dtype(value))
    elif id(value) in seen:
        parts[path] = f"{name_of(value)}, described elsewhere"
    else:
        seen.add(id(value))
        _describe_compound(value, path, parts, seen)


def _describe_compound(value: Any, path: str, parts: dict[str, str], seen: set[int]) -> None:
    each = lambda name, part: _describe(part, f"{path} {name}", parts, seen)
    if isinstance(value, types.ModuleType):
        parts[path] = f"module {value.__name__}"
    elif isinstance(value, Mapping):
        parts[path] = f"{len(value)} entries"
        for key in sorted(value, key=repr):
            each(f"[{key!r}]", value[key])
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        parts[path] = f"{len(value)} items"
        for index, item in enumerate(value):
            each(f"[{index}]", item)
    elif isinstance(value, set | frozenset):
        parts[path] = repr(sorted(map(repr, value)))
    elif isinstance(value, functools.partial):
        parts[path] = "partial"
        for name, part in (("function", value.func), ("arguments", value.args), ("keywords", value.keywords)):
            each(name, part)
    elif isinstance(value, types.MethodType):
        each("object", value.__self__)
        each("method", value.__func__)
    elif isinstance(value, types.FunctionType):
        _describe_function(value, path, parts, seen)
    elif callable(value) and hasattr(value, "__wrapped__"):  # jax.jit, functools.wraps
        each("wraps", value.__wrapped__)
    elif isinstance(value, type):
        _describe_class(value, path, parts, seen)
    elif callable(value) and not hasattr(value, "__dict__") and _is_library(type(value)):
        parts[path] = f"built-in {name_of(value)}"
    else:
        _describe_object(value, path, parts, seen)


def _describe_function(function: types.FunctionType, path: str, parts: dict[str, str], seen: set[int]) -> None:
    if _is_library(function) and function.__closure__ is None:
        parts[path] = f"library function {name_of(function)}"
        return
    parts[f"{path} source"] = _source(function)
    state: dict[str, Any] = {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__}
    variables = inspect.getclosurevars(function)
    state |= {f"closure {name}": part for name, part in variables.nonlocals.items()}
    if not _is_library(function):
        state |= {f"global {name}": part for name, part in variables.globals.items()}
    for name, part in state.items():
        _describe(part, f"{path} {name}", parts, seen)


def _describe_class(kind: type, path: str, parts: dict[str, str], seen: set[int]) -> None:
    if _is_library(kind):
        parts[path] = f"library class {name_of(kind)}"
        return
    parts[f"{path} source"] = _source(kind)
    for base in kind.__bases__:
        _describe(base, f"{path} base {base.__name__}", parts, seen)
    for name, member in sorted(vars(kind).items()):
        member = inspect.unwrap(member) if callable(member) else member
        if isinstance(member, types.FunctionType) and not _is_library(member):
            for other, part in inspect.getclosurevars(member).globals.items():
                _describe(part, f"{path} {name} global {other}", parts, seen)


def _describe_object(value: Any, path: str, parts: dict[str, str], seen: set[int]) -> None:
    _describe(type(value), f"{path} class", parts, seen)
    if dataclasses.is_dataclass(value):  # Linen modules too, whose parent and name say where they stand
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.name not in ("parent", "name")
        }
    elif hasattr(value, "_fields"):
        fields = {name: getattr(value, name) for name in value._fields}
    elif hasattr(value, "__dict__"):
        fields = {name: part for name, part in vars(value).items() if not name.startswith("__")}
    elif not _is_library(type(value)) and hasattr(type(value), "__slots__"):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        fields = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    else:
        raise CannotCompare(f"{path.strip() or 'it'} is a {name_of(type(value))}, whose state cannot be read")
    for name, part in fields.items():
        _describe(part, f"{path} field {name}", parts, seen)


def _array(value: Any) -> str:
    array = np.asarray(value)
    if array.dtype == object:
        raise CannotCompare("an array of objects cannot be compared")
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{list(array.shape)} {digest}"


def _is_library(value: Any) -> bool:
    """Whether it is defined in an installed package, in the standard library, or in cifar_jax."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return value.__module__ == "builtins" or bool(file and str(file).startswith(LIBRARIES))


def _source(value: Any) -> str:
    """The source text, or what stands in the compiled code where there is no text. Two lambdas may share a line of
    text, so the code of a lambda counts too."""
    try:
        text = textwrap.dedent(inspect.getsource(value)).strip()
        return f"{text} {_code(value.__code__)}" if value.__name__ == "<lambda>" else text
    except (OSError, TypeError) as error:
        if isinstance(value, types.FunctionType):
            return _code(value.__code__)
        raise CannotCompare(f"the source of {name_of(value)} cannot be read") from error


def _code(code: types.CodeType) -> str:
    constants = [_code(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
