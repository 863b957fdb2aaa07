"""Execute the notebooks in examples/notebooks/, keep their outputs: python tests/helpers/make_notebooks.py [NAME …]"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
QUIET = {"PYTHONWARNINGS": "ignore:IProgress", "OMP_NUM_THREADS": "1"}  # tqdm's bars are text without ipywidgets


def executed(file: Path, folder: Path) -> NotebookNode:
    """A notebook with new outputs; its cells run in a folder, without those that install."""
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(folder), env=os.environ | QUIET)
    return notebook


if __name__ == "__main__":
    for file in NOTEBOOKS:
        if not sys.argv[1:] or file.stem in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(executed(file, Path(folder)), file)
            print(file)
