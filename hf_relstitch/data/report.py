"""What is known of a stitched model or a translation: plain values that print themselves."""

from collections.abc import Mapping
from html import escape
from typing import Any


class Report(dict[str, Any]):
    """Hold the fields of a report: a dict whose items are attributes too, which prints as a table.

    The verdict comes last, and a field without a value is not shown. A notebook shows an HTML table.

    Example:
        >>> report = Report(agreement=0.9, verdict={"grade": "good", "reason": "it agrees"})
        >>> report.agreement, report.verdict.grade
        (0.9, 'good')
        >>> report
        agreement  0.9
        verdict    good
        reason     it agrees
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return Report(self[name]) if isinstance(self[name], dict) else self[name]
        raise AttributeError(f"the report has no {name!r}: its fields are {', '.join(self) or 'none'}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict."""
        return dict(self)

    def lines(self) -> dict[str, str]:
        """Return each field as a line of text: an agreement with its interval, and the verdict last."""
        fields = dict(self)
        verdict, anchors = fields.pop("verdict", None) or {}, fields.pop("num_anchors", None)
        of = fields.pop("agreement_of", "inputs")
        last: dict[str, Any] = {"anchors": anchors}
        for name, unit in {"agreement": f" of {of}", "values_explained": " of the variance"}.items():
            share, interval = fields.pop(name, None), fields.pop(f"{name}_interval", None)
            if share is not None and interval is not None:
                share, low, high = (f"{100 * value:.0f}" for value in (share, *interval))
                last[f"expected {name.replace('_', ' ')}"] = f"{share} % ({low}–{high} %){unit}"
            else:
                last[name] = share
        last |= {"verdict" if name == "grade" else name: value for name, value in verdict.items()}
        return {name: as_text(value) for name, value in (fields | last).items() if value not in (None, {})}

    def __repr__(self) -> str:
        return aligned(self.lines())

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(line)}</td></tr>" for name, line in self.lines().items())
        return f"<table>{''.join(rows)}</table>"


def aligned(lines: Mapping[str, str]) -> str:
    """Return names and texts as two columns."""
    width = max(map(len, lines), default=0)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


def as_text(value: Any) -> str:
    """Return a value as text, its numbers rounded to 4 digits."""
    if isinstance(value, dict):
        items = [(str(name), as_text(inner)) for name, inner in value.items() if inner is not None]
        if all(name.replace(".", "", 1).isdigit() for name, _ in items):  # numbers: in their order, apart from values
            return ", ".join(f"{name}: {inner}" for name, inner in sorted(items, key=lambda item: float(item[0])))
        return ", ".join(f"{name} {inner}" for name, inner in items)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_text, value)) + "]"
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
