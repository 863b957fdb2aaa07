"""The snippets of the README and the docs: they compile, and every name and option in them is there."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import hf_relstitch
from hf_relstitch.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLASSES = {name: getattr(hf_relstitch, name) for name in hf_relstitch.__all__ if name[0].isupper()}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_name_what_is_there(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_relstitch"):
                exec(ast.unparse(node), {})  # no name that is not there
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in CLASSES:
                assert hasattr(CLASSES[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_snippets_name_commands_and_options_that_are_there(page: Path) -> None:
    commands = typer.main.get_group(app).commands
    for code in [*blocks(page, "bash"), *re.findall(r"`(hf-relstitch [^`]*)`", page.read_text())]:
        for line in code.splitlines():
            if line.startswith("hf-relstitch "):
                words = shlex.split(line, comments=True)
                options = {name for each in commands[words[1]].params for name in each.opts} | {"--help"}
                given = {word for word in words[2:] if re.fullmatch(r"--?[a-z-]+", word)}
                assert given <= options, f"{words[1]} has no {given - options}"


def test_the_map_of_the_code_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text)
    assert len(files) >= 20
    assert not [file for file in files if not any((ROOT / top / file).is_file() for top in ("", "hf_relstitch"))]


def test_the_one_path_names_functions_of_these_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    steps = re.findall(r"^\| [^|]+ \| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(steps) >= 10
    for functions, files in steps:
        code = "".join((ROOT / "hf_relstitch" / file).read_text() for file in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"\w+", functions):
            assert f"def {name}(" in code, f"{files} has no {name}"


def test_the_pages_have_snippets() -> None:
    """What would make the two above pass on nothing."""
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 6
    assert len(blocks(ROOT / "README.md", "bash")) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        place = re.sub(r"^https://github\.com/OWNER/hf-relstitch/(blob|tree)/main/", f"{ROOT}/", link)
        if not place.startswith("http"):
            assert (page.parent / place).exists(), link


@pytest.mark.slow
def test_the_page_of_messages_is_what_is_said(tmp_path: Path) -> None:
    code = "import make_message_table as table; from pathlib import Path; Path('page.md').write_text(table.page())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "messages.md").read_text()
    assert (tmp_path / "page.md").read_text() == page, "write it again: python scripts/make_message_table.py"
    assert page.count("\n| ") > 60


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", ROOT / "mkdocs.yml", "-d", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        place = tmp_path / "site" / ("" if page.stem == "index" else page.stem) / "index.html"
        assert place.is_file(), f"{page.name} is not in the navigation"
    assert "RelativeStitcher.from_parts" in (tmp_path / "site" / "api" / "index.html").read_text()
