import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from torch.testing import assert_close

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions, precision_of, relative_projection, to_working

examples = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**16)
widths = st.integers(2, 12)


def gaussian(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def isometry(seed, d_from, d_to):
    """A `(d_from, d_to)` matrix with orthonormal rows: `x @ it` keeps every length and angle."""
    return torch.linalg.qr(gaussian(seed, d_to, d_from)).Q.T


def test_coordinates_are_cosines_seen_from_the_mean_of_the_anchors():
    x, anchors = gaussian(0, 7, 5) + 3, gaussian(1, 11, 5) + 3
    centre = anchors.mean(0)
    assert_close(
        relative_projection(x, anchors=anchors),
        torch.from_numpy(cosine_similarity(x - centre, anchors - centre)),
        rtol=0,
        atol=1e-14,
    )


def test_coordinates_of_a_hand_worked_latent():
    anchors = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double() + 10
    latent = torch.tensor([[13.0, 14]]).double()
    assert_close(relative_projection(latent, anchors=anchors), torch.tensor([[0.6, -0.6, 0.8, -0.8]]).double())


@examples
@given(seed=seeds, d=widths, wider=st.integers(0, 4))
def test_an_isometry_of_the_space_changes_nothing(seed, d, wider):
    x, anchors = gaussian(seed, 6, d), gaussian(seed + 1, 15, d)
    q = isometry(seed + 2, d, d + wider)
    assert_close(
        relative_projection(x @ q, anchors=anchors @ q),
        relative_projection(x, anchors=anchors),
        rtol=0,
        atol=1e-12,
    )


@examples
@given(seed=seeds, d=widths, scale=st.floats(1e-6, 1e6))
def test_a_positive_scale_of_the_space_changes_nothing(seed, d, scale):
    x, anchors = gaussian(seed, 6, d), gaussian(seed + 1, 15, d)
    assert_close(
        relative_projection(scale * x, anchors=scale * anchors),
        relative_projection(x, anchors=anchors),
        rtol=0,
        atol=1e-12,
    )


@examples
@given(seed=seeds, d=widths, shift=st.floats(-100, 100))
def test_a_shift_of_the_space_changes_nothing(seed, d, shift):
    x, anchors = gaussian(seed, 6, d), gaussian(seed + 1, 15, d)
    offset = shift * gaussian(seed + 2, d)
    assert_close(
        relative_projection(x + offset, anchors=anchors + offset),
        relative_projection(x, anchors=anchors),
        rtol=0,
        atol=1e-10,
    )


def test_an_anisotropic_scaling_changes_the_coordinates():
    x, anchors = gaussian(0, 6, 4), gaussian(1, 15, 4)
    stretch = torch.tensor([1.0, 1, 1, 5]).double()
    difference = relative_projection(x * stretch, anchors=anchors * stretch) - relative_projection(x, anchors=anchors)
    assert difference.abs().max() > 0.1


def test_a_shift_of_the_latents_without_the_anchors_changes_the_coordinates():
    x, anchors = gaussian(0, 6, 4), gaussian(1, 15, 4)
    difference = relative_projection(x + 1, anchors=anchors) - relative_projection(x, anchors=anchors)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_latents_give_the_float64_result_rounded_once(dtype):
    x, anchors = gaussian(0, 9, 64).to(dtype), gaussian(1, 200, 64).to(dtype)
    centre = anchors.double().mean(0)
    exact = torch.from_numpy(cosine_similarity(x.double() - centre, anchors.double() - centre))
    relative = relative_projection(x, anchors=anchors)
    assert_close(relative, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_coordinates_have_the_dtype_of_the_latents_not_of_the_anchors():
    relative = relative_projection(gaussian(0, 3, 4).half(), anchors=gaussian(1, 8, 4))
    assert relative.dtype == torch.float16


def test_coordinates_keep_no_gradient():
    x, anchors = gaussian(0, 3, 4).requires_grad_(), gaussian(1, 8, 4).requires_grad_()
    assert not relative_projection(x, anchors=anchors).requires_grad


def test_latents_and_anchors_of_different_widths_are_refused(shapes_unchecked):
    with pytest.raises(StitchError, match=r"latents are 3 wide and anchors 4: .* same encoder .* same pooling"):
        relative_projection(gaussian(0, 2, 3), anchors=gaussian(1, 5, 4))


def test_shapes_are_checked_in_this_test_run():
    with pytest.raises(jaxtyping.TypeCheckError, match="relative_projection"):
        relative_projection(gaussian(0, 2, 3), anchors=gaussian(1, 5, 4))


def test_directions_have_length_one():
    lengths = torch.linalg.vector_norm(directions(gaussian(0, 9, 5) + 4, centre=gaussian(1, 5)), dim=-1)
    assert_close(lengths, torch.ones(9).double())


def test_a_latent_at_the_centre_has_no_direction():
    centre = gaussian(0, 5)
    assert torch.equal(directions(centre[None], centre=centre), torch.zeros(1, 5).double())


def test_working_latents_are_float64_without_a_gradient():
    working = to_working(gaussian(0, 2, 3).float().requires_grad_())
    assert (working.dtype, working.requires_grad) == (torch.float64, False)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float64, 2**-52), (torch.float32, 2**-23), (torch.float16, 2**-23), (torch.bfloat16, 2**-23)],
)
def test_latents_below_float64_are_precise_to_float32(dtype, precision):
    assert precision_of(torch.zeros(1, 1, dtype=dtype)) == precision
