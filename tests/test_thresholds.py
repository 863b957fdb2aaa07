"""The threshold of similarity that gives as many matches after a change of encoder."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hf_relstitch import StitchError
from hf_relstitch.bulk import match_threshold, translation_between


def at_angles(degrees: torch.Tensor) -> torch.Tensor:
    """Points of the unit circle."""
    return torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))], dim=1).float()


def on_circles() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries at angle 0 and documents at 0 to 180 degrees, which the new encoder halves."""
    angles = torch.arange(0, 180, 0.25, dtype=torch.float64)
    queries = at_angles(torch.zeros(4))
    return queries, at_angles(angles), queries, at_angles(angles / 2)


VALUES = {
    "cosine": (0.5, math.cos(math.radians(30))),  # of 60 degrees, and of 30
    "ip": (0.5, math.cos(math.radians(30))),
    "l2": (1.0, 2 * math.sin(math.radians(15))),  # the chords of these angles
}


@pytest.mark.parametrize("metric", VALUES)
def test_the_threshold_is_the_one_of_the_same_pairs(metric: Any) -> None:
    asked, documents, new_asked, new_documents = on_circles()
    if metric == "cosine":
        documents, new_asked = 3 * documents, 0.1 * new_asked
    before, after = VALUES[metric]
    found = match_threshold(before, old=(asked, documents), new=(new_asked, new_documents), metric=metric)
    assert found["threshold"] == pytest.approx(after, abs=2e-3)
    assert found["matches"] == pytest.approx(4 * 240, abs=4)
    assert found["held_out"] == (1, 1)
    assert found["kept"] == 1
    below = match_threshold(after, old=(new_asked, new_documents), new=(asked, documents), metric=metric)
    assert below["threshold"] == pytest.approx(before, abs=5e-3)


def test_as_many_match_as_before_and_others_are_told() -> None:
    """Counted one by one, where noise makes other pairs match."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(260, 8, generator=generator)
    new = old @ torch.randn(8, 12, generator=generator) + 0.8 * torch.randn(260, 12, generator=generator)
    sides = {"old": (old[:60].numpy(), old[60:].tolist()), "new": (new[:60], new[60:])}
    found = match_threshold(0.6, **sides)
    before = functional.normalize(old[:60], dim=1) @ functional.normalize(old[60:], dim=1).T >= 0.6
    similarities = functional.normalize(new[:60], dim=1) @ functional.normalize(new[60:], dim=1).T
    assert int((similarities >= found["threshold"]).sum()) == int(before.sum()) == found["matches"]
    even, odd = match_threshold(0.6, old=(old[:60:2], old[60:]), new=(new[:60:2], new[60:])), np.arange(60) % 2 == 1
    assert found["held_out"][1] == int((similarities[odd] >= even["threshold"]).sum()) / int(before[odd].sum())
    assert found["held_out"] != (1, 1)
    kept = (before & (similarities >= found["threshold"])).sum() / before.sum()
    assert found["kept"] == pytest.approx(float(kept), abs=0.05)
    assert 0.2 < found["kept"] < 0.9


def test_translated_documents_have_a_threshold_of_their_own() -> None:
    """Of fresh pairs: the translation was fitted to others."""
    generator = torch.Generator().manual_seed(0)
    old = functional.normalize(torch.randn(3000, 12, generator=generator), dim=1)
    new = functional.normalize(old @ torch.randn(12, 16, generator=generator) + 1.5, dim=1)
    to_new = translation_between(old[:400], new[:400])
    queries, some, others = slice(400, 500), slice(500, 1500), slice(1500, None)
    found = match_threshold(0.7, old=(old[queries], old[some]), new=(new[queries], to_new(old[some])))
    before, after = old[queries] @ old[others].T >= 0.7, new[queries] @ to_new(old[others]).T >= found["threshold"]
    assert float(after.sum() / before.sum()) == pytest.approx(1, abs=0.15)
    assert 0.8 < found["held_out"][0] < 1.25


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"old": (4, 700), "new": (4, 719)}, "old has 4 queries and 700 documents, and new has 4 and 719"),
        ({"threshold": 1.1}, "of 2880 pairs of a query and a document 0 match by the old threshold 1.1"),
        ({"threshold": -1.1}, "2880 match by the old threshold -1.1.* and not all"),
    ],
)
def test_what_gives_no_threshold_is_refused(sides: dict[str, Any], message: str) -> None:
    asked, documents, new_asked, new_documents = on_circles()
    old, new = sides.get("old", (4, 720)), sides.get("new", (4, 720))
    with pytest.raises(StitchError, match=message):
        match_threshold(
            sides.get("threshold", 0.5),
            old=(asked[: old[0]], documents[: old[1]]),
            new=(new_asked[: new[0]], new_documents[: new[1]]),
        )
    with pytest.raises(StitchError, match=r"the new queries and documents have shapes \(4, 3\) and \(720, 2\)"):
        match_threshold(0.5, old=(asked, documents), new=(torch.ones(4, 3), new_documents))
