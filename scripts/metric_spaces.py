"""Make a Space of each metric: python scripts/metric_spaces.py OUT [--push NAMESPACE]

Each folder holds the metric's script, which `evaluate.load(NAMESPACE/NAME)` takes, a page to try it on, a card and its
requirements, laid out as by `evaluate-cli create`. All text comes from the metric's own description.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import evaluate
from huggingface_hub import HfApi, metadata_save

from hf_relstitch import metrics

# evaluate's own launch_gradio_widget needs gradio 3, which does not go together with transformers 5.
APP = '''"""A page to try the metric on."""

import json
from pathlib import Path

import evaluate
import gradio as gr
from evaluate.utils.gradio import parse_readme

FOLDER = Path(__file__).parent
EXAMPLE = {example}
metric = evaluate.load(str(FOLDER / "{name}.py"))


def compute(*columns):
    """Return the scores of columns that are written as JSON lists."""
    try:
        values = [json.loads(column) for column in columns]
        return metric.compute(**dict(zip(metric.features, values, strict=True)))
    except Exception as error:
        raise gr.Error(str(error)) from error


page = gr.Interface(
    compute,
    [gr.Textbox(json.dumps(EXAMPLE[column]), label=f"{{column}}, a JSON list") for column in metric.features],
    gr.JSON(label=metric.name),
    title="{title}",
    description=metric.info.description,
    article=parse_readme(FOLDER / "README.md"),
    api_name="compute",
)

if __name__ == "__main__":
    page.launch()
'''
CARD = """# Metric card for {title}

## Metric description

{description}

## How to use

`pip install evaluate hf-relstitch`, then

```python
import evaluate

metric = evaluate.load("{repo}")
metric.compute({arguments})
```

gives

```python
{scores}
```

It is also `hf_relstitch.metrics.{kind}()`, which needs no network.

### Inputs

{inputs}

## Citation

```bibtex
{citation}
```
"""
ROWS = {
    "classes": [[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]],
    "latents": [[[1.0, 0.2], [-1.0, 0.1], [0.1, 2.0], [0.2, -1.8]], [[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]],
    "probabilities": [[[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]],
}
"""Example values of each kind of column, in the order of a metric's columns."""


def example(metric: evaluate.Metric) -> dict[str, list]:
    """Return four rows for a metric."""
    kinds = dict(re.findall(r"(\w+): (\w+), one", metric.inputs_description))
    left = {kind: list(rows) for kind, rows in ROWS.items()}
    return {column: left[kind].pop(0) for column, kind in kinds.items()}


def make_space(kind: str, out: Path, *, namespace: str = "NAMESPACE") -> Path:
    """Write the Space of a metric class into a folder of `out`, and return that folder."""
    metric = getattr(metrics, kind)()
    script = next(file for file in Path(metrics.__file__).parent.glob("*.py") if f"\nclass {kind}(" in file.read_text())
    name, title, rows = script.stem, script.stem.replace("_", " "), example(metric)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(script, folder)
    description = " ".join(metric.description.split())
    card = CARD.format(
        title=title,
        description=description,
        repo=f"{namespace}/{name}",
        arguments=", ".join(f"{column}={values}" for column, values in rows.items()),
        scores=metric.compute(**rows),
        kind=kind,
        inputs=re.sub(r"^Takes:\n", "", metric.inputs_description.strip()).replace("    ", "- "),
        citation=metric.citation,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    header = {"title": title, "tags": ["evaluate", "metric"], "description": description, "sdk": "gradio"}
    metadata_save(folder / "README.md", header | {"app_file": "app.py", "license": "apache-2.0", "pinned": False})
    (folder / "app.py").write_text(APP.format(example=json.dumps(rows), name=name, title=title), encoding="utf-8")
    (folder / "requirements.txt").write_text("evaluate\nhf-relstitch\n")  # the Space brings gradio
    return folder


def main() -> None:
    """Read the arguments, and make all Spaces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--push", metavar="NAMESPACE", help="push each to the Hub as NAMESPACE/NAME")
    options = parser.parse_args()
    for kind in sorted(set(metrics.__all__) - {"script"}):
        folder = make_space(kind, options.out, namespace=options.push or "NAMESPACE")
        print(folder)
        if options.push:
            repo = f"{options.push}/{folder.name}"
            HfApi().create_repo(repo, repo_type="space", space_sdk="gradio", exist_ok=True)
            print(HfApi().upload_folder(repo_id=repo, repo_type="space", folder_path=folder))


if __name__ == "__main__":
    main()
