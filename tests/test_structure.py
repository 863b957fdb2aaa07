"""The house: what each module may import, and what importing the package does."""

import ast
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import hf_relstitch

PACKAGE = Path(hf_relstitch.__file__).parent
ROOMS = [
    *("version", "registration", "core", "data", "layers", "metrics", "hub"),
    *("encoders", "configuration_relative_stitcher", "heads", "model", "bulk", "benchmarks", "cli"),
]
"""From the bottom up: each imports from those before it only."""


def imports(file: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_down_only(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    below = ROOMS if room in ("__init__", "registration") else ROOMS[: ROOMS.index(room) + 1]
    imported = {module.split(".")[1] for module in imports(file) if module.startswith("hf_relstitch.")}
    assert imported <= set(below), f"{file.name} imports {imported - set(below)}"


def test_core_imports_torch_and_the_standard_library_only() -> None:
    for file in (PACKAGE / "core").glob("*.py"):
        others = {module.split(".")[0] for module in imports(file)} - set(sys.stdlib_module_names)
        assert others <= {"torch", "jaxtyping", "hf_relstitch"}, file.name


def test_no_pickle_and_no_eval() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not imports(file) & {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}, file.name
        called = {node.func.id for node in ast.walk(ast.parse(file.read_text())) if _is_named_call(node)}
        assert not called & {"eval", "exec", "compile", "__import__"}, file.name


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_importing_only_registers() -> None:
    """Neither torch nor transformers is loaded, and the environment is left alone."""
    script = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "import hf_relstitch\n"
        "assert before == dict(os.environ)\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "assert set(hf_relstitch.__all__) <= set(dir(hf_relstitch))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


USES = {
    "the Auto class, imported after": "import hf_relstitch\nfrom transformers import AutoModelForImageClassification",
    "the Auto class, imported before": "from transformers import AutoModelForImageClassification\nimport hf_relstitch",
    "the config alone": "import hf_relstitch\nfrom transformers import AutoConfig",
    "an inner module": "import hf_relstitch.model.anchors",
}


@pytest.mark.parametrize("use", USES)
def test_the_auto_classes_know_the_model_however_they_are_imported(use: str) -> None:
    script = (
        f"{USES[use]}\n"
        "from transformers import AutoConfig, AutoModelForSequenceClassification as Model\n"
        "config = type(AutoConfig.for_model('relative_stitcher'))\n"
        "assert Model._model_mapping[config].__name__ == 'RelativeStitcher'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_and_typos_are_answered_without_torch() -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from hf_relstitch.cli import app\n"
        "for arguments in (['--help'], ['stitch', '--help'], ['--version'], ['stich']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_wheel_holds_all_that_the_package_needs(tmp_path: Path) -> None:
    project = PACKAGE.parent
    if not (project / "pyproject.toml").is_file():
        pytest.skip("the package is installed without its project folder: run the tests from a clone")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(project)], check=True)
    from zipfile import ZipFile

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"hf_relstitch-{hf_relstitch.__version__}-")
    names = set(ZipFile(wheel).namelist())
    assert {str(file.relative_to(project)) for file in PACKAGE.rglob("*.py")} <= names
    templates = {f"hf_relstitch/hub/templates/{name}.md" for name in ("model_card", "anchor_card", "encoder_card")}
    suites = {str(file.relative_to(project)) for file in PACKAGE.glob("benchmarks/suites/*.yaml")}
    assert {"hf_relstitch/py.typed", *templates, *suites} <= names
    assert not any(name.startswith("tests/") for name in names)


def test_extras_are_not_dependencies() -> None:
    declared = [requirement for requirement in requires("hf-relstitch") if "extra ==" not in requirement]
    assert any(requirement.startswith("torch") for requirement in declared)
    assert not any(requirement.startswith(("matplotlib", "scikit-learn")) for requirement in declared)


@pytest.mark.slow
def test_each_module_can_be_imported_first() -> None:
    """Registering imports our config as soon as transformers' Auto classes load, wherever that happens."""
    script = "import sys, hf_relstitch\n__import__(sys.argv[1])"
    for module in ("hub.repo", "hub.cards", "cli.describe", "cli.push_pull", "data.latents", "encoders.encoder"):
        command = [sys.executable, "-c", script, f"hf_relstitch.{module}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
