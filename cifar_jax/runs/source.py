"""The source of a function as text that comments, formatting and docstrings do not change.

The text belongs to the code that runs: the file is compiled again, and where it no longer holds that code (it was
edited after the import, or the function was made by `exec`) the bytecode stands in for the text.
"""

import ast
import dis
import functools
import hashlib
import linecache
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source(code: CodeType) -> str:
    """ "sha256:..." of the source text; "python 3.12 sha256:..." of the bytecode where there is no such text."""
    text = _text(code)
    if text is not None:
        return f"sha256:{digest(text)}"
    return f"python {sys.version_info.major}.{sys.version_info.minor} sha256:{digest(_bytecode(code))}"


@functools.cache
def is_library_file(name: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to cifar_jax."""
    if name.startswith("<frozen "):
        return True
    folders = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent.parent)]
    return any(Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder)) for folder in folders)


def is_library_module(name: str) -> bool:
    if name == "__main__" or name not in sys.modules:
        return False
    file = getattr(sys.modules[name], "__file__", None)
    return is_library_file(file) if file else name.partition(".")[0] in sys.stdlib_module_names


def global_names(code: CodeType) -> list[tuple[str, ...]]:
    """The global names that the code reads, also in functions inside it: ("scale",), or ("layers", "scale") where an
    attribute of the global is read at once. Sorted, each once."""
    found = set()
    for part in _nested(code):
        instructions = list(dis.get_instructions(part))
        for instruction, after in zip(instructions, [*instructions[1:], None], strict=True):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                attribute = after is not None and after.opname in ("LOAD_ATTR", "LOAD_METHOD")
                found.add((instruction.argval, after.argval) if after and attribute else (instruction.argval,))
    return sorted(found)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _text(code: CodeType) -> str | None:
    linecache.checkcache(code.co_filename)
    nodes, codes = _parsed("".join(linecache.getlines(code.co_filename)))
    if code not in codes:
        return None
    if code.co_name == "<lambda>":
        lambdas = [node for node in nodes if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno]
        found: list[ast.AST] = [*(lambdas if len(lambdas) < 2 else _around(lambdas, code))]
    else:
        found = [node for node in nodes if _first_line(node) == (code.co_name, code.co_firstlineno)]
    return ast.unparse(found[-1]) if found else None


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> tuple[list[ast.AST], frozenset[CodeType]]:
    """The nodes of a file without docstrings, and its code objects; nothing where it is not Python."""
    try:
        tree = ast.parse(text)
        codes = frozenset(_nested(compile(text, "<file>", "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return [], frozenset()
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node, False):
            node.body = node.body[1:] or [ast.Pass()]
    return nodes, codes


def _first_line(node: ast.AST) -> tuple[str, int] | None:
    """The name of a function and the line where its code begins, which is that of its first decorator."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _around(lambdas: list[ast.Lambda], code: CodeType) -> list[ast.Lambda]:
    """Those of the lambdas of one line whose body holds every instruction of the code, the innermost last."""
    spans = []
    for line, last_line, column, last_column in code.co_positions():
        if line is None or last_line is None or column is None or last_column is None:
            return []  # python -X no_debug_ranges keeps no columns
        if (line, column) != (last_line, last_column):  # an instruction of no width starts the function
            spans.append(((line, column), (last_line, last_column)))
    inside = []
    for node in lambdas:
        body = node.body
        start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
        if all(start <= first and last <= end for first, last in spans):
            inside.append((start, node))
    return [node for _, node in sorted(inside, key=lambda pair: pair[0])]


def _bytecode(code: CodeType) -> str:
    """Everything that decides what the code does, without names of files and numbers of lines."""

    def constant(value: object) -> str:
        if isinstance(value, CodeType):
            return _bytecode(value)
        if isinstance(value, tuple):
            return f"({', '.join(map(constant, value))})"
        if isinstance(value, frozenset):  # in the order of hashes, which changes between processes
            return f"{{{', '.join(sorted(map(constant, value)))}}}"
        return f"{type(value).__name__} {value!r}"

    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return f"{code.co_code.hex()} {counts} {names} {constant(code.co_consts)} {code.co_exceptiontable.hex()}"
