"""The house rules that a machine can read."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cifar_jax"

# A module may import those above its own place: packages in this order, and modules in this order inside a package.
PACKAGES: dict[str, list[str]] = {
    "errors": [],
    "process": [],
    "recipe": [],
    "models": ["kernels", "layers", "embedding", "*", "counts"],  # * are the architectures, which may import each other
    "training": [
        "keys", "policies", "augment", "losses", "optimizers", "schedules", "parameter_groups", "update", "state",
        "gradients", "objectives", "selection", "averaging", "step", "corruptions", "metrics", "evaluation", "check",
    ],
    "data": [
        "source", "download", "cifar", "digits", "store", "check", "arrays", "duplicates", "decoding",
        "image_files", "image_folder", "load", "external",
    ],
    "runs": [
        "source", "files", "fingerprint", "events", "checkpoint", "devices", "recipes", "functions", "log", "programs",
        "stream", "identity",
        "describe", "history", "stopping", "calibration", "thresholds", "classifier", "archive", "environment",
        "workdir", "light", "evaluate", "calibrate", "robustness", "teacher", "pretrained", "loop", "fit",
    ],
    "inference": [
        "outputs", "sorting", "predict", "search", "index_files", "sheet", "similar", "program", "stablehlo",
        "onnx_fold", "onnx_graph", "onnx_operations", "onnx_convert", "torchvision_names", "model_card", "export",
        "batching", "service_images", "service_model", "service_uploads", "service_http", "service_openapi",
        "service_app", "serve",
    ],
    "studies": [
        "statistics", "study_file", "fields", "records", "tables", "comparison", "compare", "definition", "execution",
        "plan", "progress", "engines", "slurm", "engine_study", "engine_search", "options", "study", "sweep", "space",
        "storage", "trials", "hyperband", "pruning", "tune_file", "recipe_file", "tuned", "search", "tune",
        "worker",
    ],
    "reports": [
        "sinks", "figures", "plots", "gallery", "run_report", "search_part", "report", "audit_folds",
        "audit_accuracy", "audit_labels",
        "audit_models", "audit_result", "audit_tables", "audit_page", "audit",
    ],
    "commands": ["values", "studies", "*"],
    "cli": [],
    "__main__": [],
}  # fmt: skip
PURE = ("errors", "recipe", "models", "training")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def place(dotted: str) -> tuple[int, int]:
    """Where "models.layers" stands: the number of its package, and that of its module in it."""
    package, _, rest = dotted.partition(".")
    module, order = rest.partition(".")[0], PACKAGES[package]
    if module in order or not order or module in ("", "__init__"):
        return list(PACKAGES).index(package), order.index(module) if module in order else -1
    assert "*" in order, f"add '{module}' to the order of '{package}'"
    return list(PACKAGES).index(package), order.index("*")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def package(path: Path) -> str:
    return name_of(path).partition(".")[0]


def imports(path: Path) -> list[str]:
    """Dotted names of everything a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def test_every_package_is_in_the_list():
    assert {package(path) for path in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_up(path):
    own = name_of(path)
    modules = {name_of(module) for module in MODULES} | set(PACKAGES)
    for name in imports(path):
        other = name.removeprefix("cifar_jax.")
        if name.startswith("cifar_jax.") and not own.endswith("__init__"):
            other = other if other in modules else other.rpartition(".")[0]
            assert place(other) < place(own) or place(other) == place(own) == place("models.cnn"), name


@pytest.mark.parametrize("path", [path for path in MODULES if package(path) in PURE], ids=name_of)
def test_pure_packages_import_no_io(path):
    """`json` is allowed: it turns values into text, and touches nothing."""
    allowed = {
        "contextlib",
        "jax",
        "flax",
        "optax",
        "ml_collections",
        "numpy",
        "cifar_jax",
        "typing",
        "collections",
        "functools",
    }
    allowed |= {"dataclasses", "difflib", "enum", "inspect", "json", "math", "re"}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_reads_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_fits_a_screen(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lines.items() if length > 50} == {}


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
            if name.split(".")[0]
            in ("tensorflow_datasets", "orbax", "sklearn", "PIL", "safetensors", "onnx", "onnxruntime")
        ]


def imports_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_the_readme_starts_with_two_commands():
    block = re.search(r"## Start\n.*?```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    assert len(block[1].strip().splitlines()) == 2


def test_importing_the_package_imports_no_jax():
    """So that prepare_process() can make its settings before jax is imported."""
    code = (
        "import sys, cifar_jax as cj; assert 'jax' not in sys.modules; assert 'fit' in dir(cj); cj.prepare_process();"
        "import jax; assert jax.config.jax_compilation_cache_dir; assert callable(cj.fit)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
