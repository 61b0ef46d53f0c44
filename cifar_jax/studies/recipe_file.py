"""A recipe as a file that `load_recipe` reads: what differs from configs/base.py, in the form of the recipes there."""

from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.recipe import BUILT, SECTION, differences
from cifar_jax.runs.files import write_bytes
from cifar_jax.runs.recipes import load_recipe, shipped_recipes

WIDTH = 120


def write_recipe(path: Path, recipe: Any, docstring: str) -> None:
    """Writes the file and reads it back. Raises InputError where it would hold another recipe."""
    base = load_recipe(shipped_recipes() / "base.py")
    body = _literal(changed_fields(recipe, base), 8)
    quoted = docstring.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    head = f'"""{quoted}\n"""\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config() -> ConfigDict:\n'
    write_bytes(path, f"{head}    return ConfigDict(\n        {body}\n    )\n".encode())
    if wrong := differences(load_recipe(path), recipe):
        raise InputError(f"{path} does not hold the recipe that was found ({'; '.join(wrong)})")


def changed_fields(recipe: Any, base: Any) -> dict[str, Any]:
    """What a recipe file sets: the fields that differ from base.py, and each built section that differs, whole."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        if key in BUILT:
            if value != base[key]:
                found[key] = {"name": value.name, **{name: value[name] for name in value if name != "name"}}
        elif isinstance(value, SECTION):
            if inner := changed_fields(value, base[key]):
                found[key] = inner
        elif value != base[key]:
            found[key] = value
    return found


def _literal(value: Any, indent: int) -> str:
    """A dict as source, each key on a line of its own where it does not fit in one."""
    if not isinstance(value, dict):
        text = repr(value)
        simple = isinstance(value, str) and '"' not in text and "\\" not in text
        return f'"{value}"' if simple else text
    line = "{" + ", ".join(f'"{key}": {_literal(inner, 0)}' for key, inner in value.items()) + "}"
    if indent + len(line) < WIDTH and indent > 8:
        return line
    inside = " " * (indent + 4)
    lines = [f'{inside}"{key}": {_literal(inner, indent + 4)},' for key, inner in value.items()]
    return "\n".join(["{", *lines, " " * indent + "}"])
