"""Angles and CKA against their definitions, and the laws that both keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relstitch.core.measures import angle_correlation, linear_cka

examples = settings(deadline=None, max_examples=25, derandomize=True)

seeds = st.integers(0, 2**16)


def latents(seed: int, rows: int = 30, width: int = 6) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@examples
@given(seeds)
def test_isometry_scale_and_shift_change_neither(seed: int) -> None:
    x, y = latents(seed), latents(seed + 1, width=9)
    turned = torch.linalg.qr(latents(seed + 2, rows=6))[0]
    for measure in (angle_correlation, linear_cka):
        assert measure(x, 3 * x @ turned + 5) == pytest.approx(1)
        assert measure(2 * x @ turned - 7, y) == pytest.approx(measure(x, y))
        assert measure(x, y) == pytest.approx(measure(y, x))
        assert measure(x, x * torch.arange(1, 7)) < 0.99


@examples
@given(seeds)
def test_angle_correlation_is_pearsons_over_all_pairs(seed: int) -> None:
    x, y = latents(seed), latents(seed, width=4) + 0.5
    cosines = []
    for each in (x, y):
        unit = torch.nn.functional.normalize(each - each.mean(0), dim=-1)
        cosines.append((unit @ unit.T)[torch.ones(30, 30).triu(1).bool()])
    expected = float(torch.corrcoef(torch.stack(cosines))[0, 1])
    assert angle_correlation(x, y) == pytest.approx(expected, abs=1e-9)


def test_cka_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0], [0.0], [0.0]], dtype=torch.float64)
    assert linear_cka(x, y) == pytest.approx(4 / (8**0.5 * 2))  # XᵀY = (2, 0), XᵀX = 2I, YᵀY = 2


def test_cka_is_that_of_the_centred_grams() -> None:
    x, y = latents(0) + 3, latents(1, width=4) * 2
    centring = torch.eye(30, dtype=torch.float64) - 1 / 30
    grams = [centring @ each @ each.T @ centring for each in (x, y)]
    expected = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert linear_cka(x, y) == pytest.approx(float(expected))


def test_equal_angles_everywhere_correlate_with_nothing() -> None:
    simplex = torch.eye(4, dtype=torch.float64)
    assert angle_correlation(simplex, latents(0, rows=4)) != angle_correlation(simplex, latents(0, rows=4))
