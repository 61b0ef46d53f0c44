"""What identifies a function, class or Linen module that a caller passes to `fit`: another one does not resume its run.

`fingerprint` reads names, source, default arguments, closures, fields, and the global names that the source uses,
recursively. It says the same in every process. It does not see:
- comments, formatting and docstrings, which change nothing;
- the inside of installed libraries and of cifar_jax: their functions and classes count by name, and
  environment.json has the versions. What a library's function closes over counts (optax.adam(1e-3));
- names that the source looks up otherwise than as a global, or as an attribute of an imported module of the caller's
  (imports inside functions, getattr, files that are read).

What has a state that cannot be read (a lock, a generator, a function of another compiler) has no digest and a reason.
"""

import contextlib
import copyreg
import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.runs.source import digest, global_names, is_library_file, is_library_module, source

SHOWN = 80  # characters of a value that a fingerprint holds as text; of a longer one it holds the digest
MOST_PARTS = 10_000
BY_STATE = {*sys.stdlib_module_names, "numpy"}  # classes of these may say in their own way what their state is
OF_LINEN = ("parent", "name", "scope", "_state", "_parent_ref", "_compact_name_scope_methods")  # in every module class
SCALARS = (type(None), bool, int, float, complex, str, bytes, type(...), range)


class _Unreadable(Exception):
    """Why a value has no fingerprint."""


def fingerprint(value: Any) -> dict[str, Any]:
    """{"name": "module.qualname", "digest": sha256 in hex, "parts": {"field act": "'relu'", ...}}, all of it JSON.

    Two values with one digest do the same, as far as can be read. `parts` are for people, and for `differences`. The
    digest of what cannot be read is None, and "reason" says why: it can be trained, and its run cannot be resumed.
    """
    reader = _Reader()
    name = _name_of(value)
    try:
        reader.read(value)
    except _Unreadable as error:
        return {"name": name, "digest": None, "parts": {}, "reason": str(error)}
    except RecursionError:
        reason = f"it is nested too deeply, or refers to more than {MOST_PARTS:,} values"
        return {"name": name, "digest": None, "parts": {}, "reason": reason}
    parts = dict(sorted(reader.parts.items()))
    return {"name": name, "digest": digest(repr((name, list(parts.items())))), "parts": parts}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line a difference between fingerprints by argument: "model: field act: 'relu' -> 'tanh'".

    Each mapping is {"model": fingerprint, ...}. An argument without a digest on either side differs.
    """
    lines = []
    for argument in sorted(old.keys() | new.keys()):
        if argument not in old or argument not in new:
            names = (prints[argument]["name"] if argument in prints else "absent" for prints in (old, new))
            lines.append(f"{argument}: {' -> '.join(names)}")
            continue
        before, after = old[argument], new[argument]
        unreadable = [found for found in (before, after) if found["digest"] is None]
        if unreadable:
            lines.append(f"{argument}: {unreadable[0]['name']} cannot be compared, {unreadable[0]['reason']}")
        elif before["digest"] != after["digest"]:
            lines += [f"{argument}: {line}" for line in _changes(before, after)]
    return lines


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    if before["name"] != after["name"]:
        return [f"{before['name']} -> {after['name']}"]
    lines = []
    for part in sorted(before["parts"].keys() | after["parts"].keys()):
        old, new = (found["parts"].get(part, "absent") for found in (before, after))
        if old != new:
            hashed = "sha256:" in old and "sha256:" in new
            lines.append(f"{part} changed" if hashed else f"{part}: {_short(old)} -> {_short(new)}")
    return lines or ["it changed"]


def _short(text: str) -> str:
    """Text with the first 8 digits of a digest."""
    before, mark, after = text.partition("sha256:")
    return before + mark + after[:8]


def data_digest(arrays: Any) -> str:
    """sha256 in hex over the paths, types, shapes and bytes of a tree of arrays, such as an objective's context.

    Raises InputError on a leaf that is no array of numbers.
    """
    lines = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        try:
            lines.append((jax.tree_util.keystr(path), _array(leaf)))
        except _Unreadable as error:
            at = jax.tree_util.keystr(path) or "it"
            raise InputError(f"the context of an objective takes arrays of numbers; {at} is {error}") from error
    return digest(repr(sorted(lines)))


def _array(value: Any) -> str:
    """ "float32[3, 4] sha256:..."."""
    if isinstance(value, jax.core.Tracer):
        raise _Unreadable("a tracer, which has no value yet")
    kind = ""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        kind, value = f"{value.dtype} ", jax.random.key_data(value)
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise _Unreadable(f"a {type(value).__name__}, no array of numbers")
    return f"{kind}{array.dtype}{list(array.shape)} sha256:{hashlib.sha256(array.tobytes()).hexdigest()}"


class _Reader:
    """Collects the parts of a value: {"closure value alpha": "0.1"}."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.seen: dict[int, tuple[str, Any]] = {}  # where an object was read; it is held, so that its id stays its own

    def put(self, path: str, text: str) -> None:
        if len(self.parts) >= MOST_PARTS:
            raise RecursionError
        self.parts[path or "value"] = text

    def read(self, value: Any, path: str = "") -> None:
        """Adds what there is to know of a value. Raises _Unreadable."""
        plain = _plain(value)
        if plain is not None:
            self.put(path, plain if len(plain) <= SHOWN else f"{len(plain)} characters sha256:{digest(plain)}")
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            with _located(path):
                self.put(path, _array(value))
        elif _is_library(value):
            self.put(path, _name_of(value))
        elif id(value) in self.seen:
            self.put(path, f"{_name_of(value)}, the same as {self.seen[id(value)][0] or 'the whole'}")
        else:
            self.seen[id(value)] = (path, value)
            self.composed(value, path)

    def composed(self, value: Any, path: str) -> None:
        if path:
            self.put(path, _name_of(value))
        if isinstance(value, type):
            self.of_class(value, path)
        elif isinstance(value, FunctionType):
            self.of_function(value, path)
        elif isinstance(value, MethodType):
            self.read(value.__self__, _join(path, "object"))
            self.read(value.__func__, _join(path, "method"))
        elif isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType):
            self.read(value.__self__, _join(path, "object"))
        elif isinstance(value, functools.partial):
            self.read(value.func, _join(path, "function"))
            self.items("argument", enumerate(value.args), path)
            self.items("argument", value.keywords.items(), path)
        elif functions := _functions(value):  # a property, a class method
            self.items("function", enumerate(functions), path)
        elif isinstance(value, enum.Enum):
            self.put(_join(path, "member"), f"{value.name} = {_plain(value.value)}")
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            self.items("field", zip(value._fields, value, strict=True), path)
        elif type(value) in (tuple, list):
            self.items("item", enumerate(value), path)
        elif isinstance(value, Mapping) and is_library_module(type(value).__module__):
            self.of_mapping(value, path)
        elif _top(type(value).__module__) in ("jaxlib", "functools") and hasattr(value, "__wrapped__"):  # jit, cache
            self.read(value.__wrapped__, _join(path, "function"))
        else:
            self.of_object(value, path)

    def items(self, kind: str, items: Any, path: str) -> None:
        for name, item in items:
            self.read(item, _join(path, f"{kind} {name}"))

    def of_mapping(self, value: Mapping[Any, Any], path: str) -> None:
        for key, item in value.items():
            text = _plain(key) or (_name_of(key) if _is_library(key) else None)
            if text is None:
                raise _Unreadable(f"{path or 'it'} has a key of type {type(key).__name__}")
            self.read(item, _join(path, f"item {text}"))

    def of_function(self, function: FunctionType, path: str) -> None:
        code = function.__code__
        wrapped = function.__dict__.get("__wrapped__") if is_library_file(code.co_filename) else None
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # assigned later
                self.put(_join(path, f"closure value {name}"), "empty")
                continue
            # What a library wraps is read in its place: Linen wraps each method.
            self.read(value, path if wrapped is not None and value is wrapped else _join(path, f"closure value {name}"))
        if is_library_file(code.co_filename):
            return
        self.put(_join(path, f"source of {_local_name(function)}"), source(code))
        count, defaults = code.co_argcount, function.__defaults__ or ()
        self.items("default", zip(code.co_varnames[count - len(defaults) : count], defaults, strict=True), path)
        self.items("default", (function.__kwdefaults__ or {}).items(), path)
        self.items("attribute", ((k, v) for k, v in vars(function).items() if k != "__wrapped__"), path)
        for name, *attribute in global_names(code):
            if name in function.__globals__:
                self.of_global(function.__globals__[name], name, attribute, path)

    def of_global(self, value: Any, name: str, attribute: list[str], path: str) -> None:
        """A global that a function reads. An object whose state cannot be read, such as an open file, counts by its
        type."""
        for member in attribute:
            if isinstance(value, ModuleType) and not is_library_module(value.__name__) and hasattr(value, member):
                value, name = getattr(value, member), f"{name}.{member}"
        path, parts, seen = _join(path, f"global {name}"), len(self.parts), len(self.seen)
        try:
            self.read(value, path)
        except _Unreadable:
            if callable(value):
                raise
            for added in list(self.parts)[parts:]:
                del self.parts[added]
            for number in list(self.seen)[seen:]:
                del self.seen[number]
            self.put(path, _name_of(value))

    def of_class(self, cls: type, path: str) -> None:
        for base in cls.__bases__:
            self.read(base, _join(path, f"base {base.__name__}"))
        generates = dataclasses.is_dataclass(cls) or issubclass(cls, tuple)
        for name, member in sorted(vars(cls).items()):
            functions = _functions(member)
            for function in functions:
                if not (generates and inspect.unwrap(function).__code__.co_filename == "<string>"):
                    self.read(function, _join(path, f"method {name}"))
            if not functions and not _is_internal(cls, name, member):
                self.read(member, _join(path, f"attribute {name}"))
        if issubclass(cls, enum.Enum):
            self.items("member", ((member.name, member.value) for member in cls), path)
        for name, field in vars(cls).get("__dataclass_fields__", {}).items():
            if field.default_factory is not dataclasses.MISSING:
                self.read(field.default_factory, _join(path, f"default factory of {name}"))

    def of_object(self, value: Any, path: str) -> None:
        """An object by its class and what a copy of it would hold."""
        with _located(path):
            state = _state(value)
        self.items("field", state.items(), path)
        cls = type(value)
        if id(cls) in self.seen:
            self.put(_join(path, "class"), f"{_name_of(cls)}, the same as {self.seen[id(cls)][0] or 'the whole'}")
        elif not _is_library(cls):
            self.seen[id(cls)] = (path, cls)
            self.of_class(cls, path)


@contextlib.contextmanager
def _located(path: str) -> Iterator[None]:
    """Says in an _Unreadable where it arose."""
    try:
        yield
    except _Unreadable as error:
        raise _Unreadable(f"{path or 'it'} is {error}") from error


def _state(value: Any) -> dict[str, Any]:
    """The fields of an object by name. Raises _Unreadable where it has a state outside them."""
    cls = type(value)
    if isinstance(value, nn.Module):
        # Linen derives a submodule's parameters, and their first values, from the name that it is given.
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        return {name: value.__dict__.get(name) for name in names} | ({"name": value.name} if value.name else {})
    own = cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__
    if (own or cls in copyreg.dispatch_table) and _top(cls.__module__) not in BY_STATE:
        raise _Unreadable(f"a {_name_of(cls)}, whose state cannot be read")
    try:
        reduced = copyreg.dispatch_table[cls](value) if cls in copyreg.dispatch_table else value.__reduce_ex__(4)
    except Exception as error:
        raise _Unreadable(f"a {_name_of(cls)}, whose state cannot be read") from error
    if isinstance(reduced, str):
        raise _Unreadable(f"a {_name_of(cls)}, whose state cannot be read")
    _, arguments, state, items, pairs = (*reduced, None, None, None, None)[:5]
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    fields: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, dict):
            fields |= {
                str(name): field
                for name, field in part.items()
                if not str(name).startswith("__")  # a docstring
                and not isinstance(inspect.getattr_static(cls, str(name), None), functools.cached_property)
            }
        elif part is not None:
            fields["state"] = part
    arguments = [argument for argument in arguments if argument is not cls and argument is not object]
    fields |= {"arguments": tuple(arguments)} if arguments else {}
    fields |= {"items": list(items)} if items is not None else {}
    return fields | ({"pairs": list(pairs)} if pairs is not None else {})


def _plain(value: Any) -> str | None:
    """Numbers, text and containers of these as text, sets and dictionaries in order; None for anything else."""
    kind = type(value)
    if kind in SCALARS:
        return repr(value)
    if kind in (tuple, list, set, frozenset):
        items = [_plain(item) for item in value]
        texts = [text for text in items if text is not None]
        if len(texts) < len(items):
            return None
        if kind in (tuple, list):
            return f"[{', '.join(texts)}]" if kind is list else f"({', '.join(texts)}{',' * (len(texts) == 1)})"
        return f"{kind.__name__}({', '.join(sorted(texts))})"
    if kind is dict:
        pairs = [(_plain(key), _plain(item)) for key, item in value.items()]
        if all(key is not None and item is not None for key, item in pairs):
            return f"{{{', '.join(sorted(f'{key}: {item}' for key, item in pairs))}}}"
    return f"dtype {value}" if isinstance(value, np.dtype) else None


def _functions(member: Any) -> list[FunctionType]:
    """The functions of a method, a property, or what else a class makes of them."""
    if _top(type(member).__module__) == "flax":  # Linen wraps properties too
        member = getattr(member, "wrapped", member)
    found = [member]
    if isinstance(member, staticmethod | classmethod):
        found = [member.__func__]
    elif isinstance(member, property):
        found = [member.fget, member.fset, member.fdel]
    elif isinstance(member, functools.cached_property):
        found = [member.func]
    return [function for function in found if isinstance(function, FunctionType)]


def _is_library(value: Any) -> bool:
    """Whether a value is a module, or what an installed library, or cifar_jax, has under its name."""
    if isinstance(value, ModuleType):
        return True
    module, name = getattr(value, "__module__", None), _qualified_name(value)
    if not isinstance(module, str) or name is None or not is_library_module(module):
        return False
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _is_internal(cls: type, name: str, member: Any) -> bool:
    """Whether a class has an attribute from Python or Linen, and not from its author."""
    internal = name.startswith("__") or name == "_abc_impl" or type(member).__name__ == "_tuplegetter"
    internal = internal or isinstance(member, GetSetDescriptorType | MemberDescriptorType)
    internal = internal or (issubclass(cls, nn.Module) and name in OF_LINEN)
    return internal or issubclass(cls, enum.Enum) or isinstance(member, property)


def _qualified_name(value: Any) -> str | None:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) else None


def _name_of(value: Any) -> str:
    """ "module.qualname" of a function or class, and of the class of anything else."""
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, functools.partial):
        return f"functools.partial({_name_of(value.func)})"
    named = value if _qualified_name(value) else type(value)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{module}.{_qualified_name(named)}".removeprefix("builtins.")


def _local_name(function: FunctionType) -> str:
    """The qualified name inside the function that it was made in."""
    return function.__qualname__.rpartition("<locals>.")[2]


def _top(module: str) -> str:
    return module.partition(".")[0]


def _join(path: str, part: str) -> str:
    return f"{path}: {part}" if path else part
