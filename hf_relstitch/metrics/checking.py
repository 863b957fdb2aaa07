"""The shared part of all metrics here: the columns that they take, and the checks on these."""

from pathlib import Path
from typing import Any

import evaluate
import torch
from datasets import Features, Sequence, Value
from torch import Tensor

from hf_relstitch.core.errors import StitchError

KINDS = {"latents": Sequence(Value("float32")), "probabilities": Sequence(Value("float32")), "classes": Value("int64")}

CITATION = """@article{maiorca2024latent,
  title   = {Latent Space Translation via Inverse Relative Projection},
  author  = {Maiorca, Valentino and Moschella, Luca and Fumero, Marco and Locatello, Francesco and
             Rodol{\\`a}, Emanuele},
  journal = {arXiv preprint arXiv:2406.15057},
  year    = {2024}
}"""

SCIKIT_LEARN = """@article{pedregosa2011scikit,
  title   = {Scikit-learn: Machine Learning in {P}ython},
  author  = {Pedregosa, Fabian and others},
  journal = {Journal of Machine Learning Research},
  volume  = {12},
  pages   = {2825--2830},
  year    = {2011}
}"""

EXTRA = {"native", "probabilities"}
"""Columns beside evaluate's own two; `combine` hands them to all its metrics, and who does not take one leaves it."""


class CheckedMetric(evaluate.Metric):
    """Raise this package's errors in a metric: columns of unlike length, no rows, rows of unlike width.

    A metric script of `evaluate` is the first metric class that it names, so metrics import this class through its
    module.
    """

    filelocks: Any
    file_paths: Any

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add rows; every column has to have as many.

        Raises:
            StitchError: a column is missing, or has more rows or fewer.
        """
        given = {"predictions": predictions, "references": references, **kwargs}
        missing = [name for name in self._feature_names() if given.get(name) is None]
        if missing:
            raise StitchError(f"{self.name} needs {' and '.join(missing)}: it takes {', '.join(self._feature_names())}")
        counts = {name: len(given[name]) for name in self._feature_names()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise StitchError(f"{self.name} got {shown}: give one of each for every input")
        if min(counts.values()):
            columns = {name: _plain(given.pop(name)) for name in counts}
            super().add_batch(**columns | {name: value for name, value in given.items() if value is not None})

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Compute the metric over all rows added; a dict in the main process, None in the others.

        Raises:
            StitchError: there are no rows, or the metric cannot be computed on them.
        """
        given = {"predictions": predictions, "references": references, **kwargs}
        columns = {name: given[name] for name in self._feature_names() if given.get(name) is not None}
        if columns:
            self.add_batch(**columns)
        if self.writer is None:
            raise StitchError(f"{self.name} of no rows: add some, or give them to compute")
        try:
            return super().compute(**{name: value for name, value in kwargs.items() if name not in EXTRA})
        except Exception:
            self._forget()
            raise

    def _forget(self) -> None:
        """Remove the rows of a computation that failed, which evaluate leaves in its cache, and their locks."""
        self.data = None
        for lock, file in zip(self.filelocks or (), self.file_paths or (), strict=True):
            Path(file).unlink(missing_ok=True)
            lock.release()
        self.file_paths = self.filelocks = None


def information(description: str, *, citation: str = CITATION, **columns: str) -> evaluate.MetricInfo:
    """Describe a metric for evaluate; `columns` gives the kind of each column, by a name in KINDS."""
    features = Features({name: KINDS[kind] for name, kind in columns.items()})
    taken = "".join(f"\n    {name}: {kind}, one for each input" for name, kind in columns.items())
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=f"\nTakes:{taken}\n",
        features=features,
        format=None,
    )


def _plain(column: Any) -> Any:
    """A column as evaluate writes it: a tensor of any device and dtype becomes a numpy array."""
    if not isinstance(column, Tensor):
        return column
    values = column.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def matrix(rows: list[list[float]], *, name: str) -> Tensor:
    """Convert rows to a float64 tensor `(n, d)`.

    Raises:
        StitchError: the rows differ in width, or a value is not finite.
    """
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or not widths[0]:
        raise StitchError(f"{name} are {', '.join(map(str, widths))} wide: expected rows of one width, 1 or more")
    values = torch.tensor(rows, dtype=torch.float64)
    if not values.isfinite().all():
        row = int((~values.isfinite().all(-1)).nonzero()[0])
        raise StitchError(f"row {row} of {name} has a value that is not finite: look at what made it")
    return values


def classes(rows: list[int]) -> Tensor:
    """Convert class numbers to an int64 tensor `(n,)`."""
    return torch.tensor(rows, dtype=torch.int64)
