import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustkit

ROOT = Path(robustkit.__file__).resolve().parent
LAYERS: list[set[str]] = [
    {"errors", "threat", "margins", "verdict", "results", "files", "progress", "config", "data", "models", "bounds"}
    | {"vnnlib", "workers", "world"},
    {"attacks"},
    {"training", "verifiers", "reports"},
    {"runs", "networks", "evaluation", "experiment", "variations", "pipeline", "summary", "catalogue"}
    | {"handbook", "mixing", "board", "vnncomp", "checking", "store", "minimal", "figures"},
    {"cli", "terminal", "asked"},
]
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
OUTSIDE = {"__init__", "__main__", "_process", "presets"}
NO_SIBLINGS = LAYERS[2]
ALLOWED = {
    "auto_LiRPA": {"bounds/_repairs.py"},
    "torchattacks": {"attacks/torch_attacks.py"},
    "click": {"cli.py", "terminal.py"},
    "onnx": {"models/onnx.py"},
    "onnx2torch": {"models/conversion.py"},
    "onnxruntime": {"models/onnx.py"},
    "vnnlib": {"vnnlib/version2.py"},
}


def sources() -> dict[str, str]:
    """Every module of the package, those behind the symbolic links included, by its path below the package."""
    folders = [ROOT, *(one for one in ROOT.iterdir() if one.is_dir() and not one.name.startswith("_"))]
    folders += [one for folder in folders[1:] for one in folder.rglob("*") if one.is_dir() and "__" not in one.name]
    files = [file for folder in folders for file in folder.glob("*.py")]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def imported(tree: ast.AST) -> list[str]:
    """Every module that a file imports, in functions and for type checkers too."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            module = node.module or ""
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "robustkit" else [module]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                names.append(str(node.args[0].value))
    return names


def violations(path: str, source: str) -> list[str]:
    """Say in words what a file of the package imports or does that its place does not allow."""
    tree, own = ast.parse(source), path.removesuffix(".py").split("/")[0]
    found = []
    for name in imported(tree):
        top, *rest = name.split(".")
        if top in ALLOWED and path not in ALLOWED[top]:
            found.append(f"{path} imports {top}")
        if own == "reports" and (top in {"torch", "torchvision"} or rest[:1] == ["models"]):
            found.append(f"{path} imports {name}")
        if top != "robustkit" or not rest or rest[0] in {own, "__version__", "_process"}:
            continue
        other = rest[0]
        if LAYER[other] > LAYER[own]:
            found.append(f"{path} imports {name} from above")
        if {own, other} <= NO_SIBLINGS:
            found.append(f"{path} imports its sibling {other}")
    if path not in ALLOWED["click"]:
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        found += [f"{path} prints" for one in calls if isinstance(one, ast.Name) and one.id == "print"]
    return found


def test_every_module_has_its_layer() -> None:
    modules = {path.removesuffix(".py").split("/")[0] for path in sources()}
    assert modules - OUTSIDE == set(LAYER)


@pytest.mark.parametrize("path", [path for path in sources() if path.split("/")[0].removesuffix(".py") not in OUTSIDE])
def test_imports_point_down_only(path: str) -> None:
    assert violations(path, sources()[path]) == []


def test_the_package_itself_imports_only_what_sets_up_the_process() -> None:
    found = {path: imported(ast.parse(text)) for path, text in sources().items()}
    assert {name for name in found["__init__.py"] if name.startswith("robustkit")} == {"robustkit._process"}
    assert not [name for name in found["_process.py"] if name.startswith("robustkit")]
    assert found["presets/__init__.py"] == []


@pytest.mark.parametrize("library", ["auto_LiRPA", "torchattacks", "onnx", "onnx2torch", "onnxruntime"])
def test_one_file_knows_each_engine(library: str) -> None:
    found = {
        path for path, text in sources().items() if any(n.split(".")[0] == library for n in imported(ast.parse(text)))
    }
    assert found == ALLOWED[library]


@pytest.mark.parametrize(
    ("path", "source", "violation"),
    [
        ("margins.py", "from robustkit.attacks import PGD", "margins.py imports robustkit.attacks from above"),
        ("data/own.py", "import robustkit.cli", "data/own.py imports robustkit.cli from above"),
        ("attacks/pgd.py", "from robustkit import training", "attacks/pgd.py imports robustkit.training from above"),
        (
            "config.py",
            "def late():\n    from robustkit.runs import Run",
            "config.py imports robustkit.runs from above",
        ),
        ("verifiers/bound.py", "from robustkit.training import IBP", "verifiers/bound.py imports its sibling training"),
        ("reports/tables.py", "from torch import Tensor", "reports/tables.py imports torch"),
        ("reports/tables.py", "import robustkit.models.checkpoints", "reports/tables.py imports robustkit.models"),
        ("bounds/method.py", "import auto_LiRPA.operators", "bounds/method.py imports auto_LiRPA"),
        ("bounds/method.py", "importlib.import_module('auto_LiRPA')", "bounds/method.py imports auto_LiRPA"),
        ("attacks/base.py", "import torchattacks", "attacks/base.py imports torchattacks"),
        ("runs.py", "import click", "runs.py imports click"),
        ("runs.py", "print('done')", "runs.py prints"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str, violation: str) -> None:
    (found,) = violations(path, source)
    assert found.startswith(violation)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/loop.py", "from robustkit.attacks import PGD\nfrom robustkit.training.method import Moment"),
        ("cli.py", "import click\nfrom robustkit import __version__\nprint('done')"),
        ("bounds/_repairs.py", "importlib.import_module('auto_LiRPA')"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("robustkit", {"torch", "numpy", "pandas", "click"}),
        ("robustkit.cli", {"torch", "pandas", "matplotlib", "auto_LiRPA", "torchattacks", "onnx", "onnxruntime"}),
        ("robustkit.networks", {"onnx", "onnx2torch", "onnxruntime"}),
        ("robustkit.reports", {"torch", "auto_LiRPA"}),
    ],
)
def test_what_an_import_does_not_load(module: str, unwanted: set[str]) -> None:
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert unwanted & set(done.stdout.split()) == set()
