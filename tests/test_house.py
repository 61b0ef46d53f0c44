"""The house rules that a machine can read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cifar_jax"

# Imports point up this list only, within a group too: pure <- host <- drivers <- consumers.
ROOMS = [
    "recipe", "layers", "models", "counts", "policies", "augment", "losses", "optim", "metrics",
    "train", "check", "evaluation",  # pure
    "datasets", "data", "devices", "checkpoint", "log", "workdir", "pretrained",  # host
    "run",  # drivers
]  # fmt: skip
PURE = ROOMS[: ROOMS.index("datasets")]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names of everything a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def test_every_module_is_in_the_list():
    assert {room(path) for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path):
    for name in imports(path):
        if name.startswith("cifar_jax."):
            other = name.split(".")[1]
            assert ROOMS.index(other) < ROOMS.index(room(path)) or other == room(path) == "models", name


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in PURE], ids=lambda path: path.stem)
def test_pure_rooms_import_no_io(path):
    """`json` is allowed: it turns values into text, and touches nothing."""
    allowed = {"jax", "flax", "optax", "ml_collections", "numpy", "cifar_jax", "typing", "collections", "functools"}
    allowed |= {"dataclasses", "difflib", "inspect", "json", "math", "re"}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_reads_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 450


def test_no_utils():
    assert not [path for path in ROOT.rglob("util*.py") if ".venv" not in path.parts]


def test_no_pickle():
    for path in [*MODULES, ROOT / "launch.py"]:
        assert not re.search(r"\bpickle\.|allow_pickle=True|\bdill\b|joblib", path.read_text()), path


def test_every_default_has_a_comment():
    """Each field of configs/base.py is explained where it stands, or in the heading for the built sections."""
    lines = (ROOT / "configs" / "base.py").read_text().splitlines()
    fields = [line for line in lines if re.match(r'\s+"\w+": [^{]*,', line) and "{" not in line]
    bare = [line.strip() for line in fields if "#" not in line]
    assert bare == ['"name": "sgd",', '"momentum": 0.9,', '"nesterov": True,', '"weight_decay": 5e-4,']


def test_every_recipe_field_is_read():
    """An option that nothing reads is a lie: every leaf of base.py is named in the code."""
    source = "".join(path.read_text() for path in MODULES)
    tree = ast.parse((ROOT / "configs" / "base.py").read_text())
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    fields = {name for name in names if re.fullmatch(r"[a-z_]+", name)} - {"auto", "resnet18", "cosine", "one"}
    assert [name for name in sorted(fields) if not re.search(rf"\b{name}\b", source)] == []


def test_no_recipe_get():
    for path in MODULES:
        assert "recipe.get(" not in path.read_text(), path


def test_importing_the_package_is_light():
    """Data set and checkpoint libraries are imported where they are used."""
    for path in MODULES:
        top = ast.parse(path.read_text()).body
        names = [name for node in top for name in imports_of(node)]
        assert not [
            name
            for name in names
            if name.split(".")[0] in ("tensorflow_datasets", "orbax", "sklearn", "PIL", "safetensors")
        ]


def imports_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_the_readme_starts_with_two_commands():
    block = re.search(r"## Start\n.*?```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    assert len(block[1].strip().splitlines()) == 2
