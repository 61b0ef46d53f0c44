"""What an installed package holds: a wheel is built from a copy of the checkout, and its names are read."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("cifar_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run([sys.executable, "-c", BUILD, target], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(*target.glob("*.whl")) as file:
        yield file


def test_a_wheel_holds_every_module_and_recipe(wheel):
    """No package can be forgotten: the modules are those of the checkout, with configs/ as cifar_jax/configs/."""
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "cifar_jax").rglob("*.py")}
    expected |= {f"cifar_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == expected


def test_a_wheel_has_the_command_and_the_licence(wheel):
    def text(name):
        (found,) = (each for each in wheel.namelist() if each.endswith(name))
        return wheel.read(found).decode()

    assert "cifar-jax = cifar_jax.cli:start" in text("entry_points.txt")
    assert "License-Expression: Apache-2.0" in text("METADATA")
    assert "Copyright 2026 The cifar_jax authors" in text("LICENSE")
