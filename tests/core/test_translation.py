from typing import get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import polar
from scipy.stats import entropy
from sklearn.linear_model import Ridge
from torch.testing import assert_close

from hf_relstitch.core.anchor_sampling import farthest_point_subsets
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions, relative_projection
from hf_relstitch.core.translation import (
    GivenSettings,
    Translation,
    TranslationSettings,
    compose,
    fit_translation,
    mean_norm,
)

examples = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**16)
alphas = st.floats(0, 1)
norms = pytest.mark.parametrize("norm", ["keep", "mean"])
float64_eps = torch.finfo(torch.float64).eps


def gaussian(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def isometry(seed, d_from, d_to):
    """A `(d_from, d_to)` matrix with orthonormal rows: `x @ it` keeps every length and angle."""
    return torch.linalg.qr(gaussian(seed, d_to, d_from)).Q.T


def unit_anchors(seed, k, d):
    anchors = gaussian(seed, k, d)
    return directions(anchors, centre=anchors.mean(0))


def frame(unit):
    return Frame.from_directions(unit, precision=float64_eps)


def family(source_unit, target_unit, **settings):
    return compose(frame(source_unit), frame(target_unit), settings=TranslationSettings(**settings))


def gram_power(unit, *, exponent, ridge):
    """`(XXᵀ + λI)^exponent` from the eigenvalues of the k × k matrix, λ = ridge · mean squared singular value."""
    unit = unit.numpy()
    mean_square = np.sum(unit**2) / np.linalg.matrix_rank(unit)
    values, vectors = np.linalg.eigh(unit @ unit.T + ridge * mean_square * np.eye(len(unit)))
    return torch.from_numpy(vectors * values**exponent @ vectors.T)


def literal_decoder(source_unit, target_unit, *, alpha, ridge):
    """What relative coordinates are multiplied by, `(k, d_target)`: no folding, no singular vectors."""
    source_power = gram_power(source_unit, exponent=-alpha, ridge=ridge)
    return source_power @ gram_power(target_unit, exponent=alpha - 1, ridge=ridge) @ target_unit


shapes = pytest.mark.parametrize(
    ("k", "d_source", "d_target"), [(30, 5, 7), (30, 7, 5), (6, 9, 8), (8, 12, 5), (8, 5, 12), (10, 10, 10)]
)


# The inversion family


@shapes
def test_alpha_zero_without_ridge_inverts_with_the_pseudo_inverse(k, d_source, d_target):
    x, y = unit_anchors(0, k, d_source), unit_anchors(1, k, d_target)
    expected = x.numpy().T @ np.linalg.pinv(y.numpy().T, rcond=1e-12)
    assert_close(family(x, y, alpha=0.0, ridge=0.0), torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


@shapes
def test_alpha_one_without_ridge_is_least_squares(k, d_source, d_target):
    x, y = unit_anchors(0, k, d_source), unit_anchors(1, k, d_target)
    expected = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=1e-12)[0]
    assert_close(family(x, y, alpha=1.0, ridge=0.0), torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


@shapes
@pytest.mark.parametrize("ridge", [0.01, 0.3, 4.0])
def test_alpha_one_is_ridge_regression(k, d_source, d_target, ridge):
    x, y = unit_anchors(0, k, d_source), unit_anchors(1, k, d_target)
    mean_square = (np.linalg.norm(x) ** 2) / np.linalg.matrix_rank(x)
    regression = Ridge(fit_intercept=False, alpha=ridge * mean_square, solver="cholesky").fit(x, y)
    assert_close(family(x, y, alpha=1.0, ridge=ridge), torch.from_numpy(regression.coef_.T), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("d_source", "d_target"), [(5, 7), (7, 5), (6, 6)])
def test_alpha_one_half_without_ridge_is_the_parseval_frame(d_source, d_target):
    x, y = unit_anchors(0, 30, d_source), unit_anchors(1, 30, d_target)
    source_polar, target_polar = polar(x.numpy())[0], polar(y.numpy())[0]  # U Vᵀ
    expected = torch.from_numpy(source_polar.T @ target_polar)
    assert_close(family(x, y, alpha=0.5, ridge=0.0), expected, rtol=0, atol=1e-12)


@examples
@given(
    seed=seeds,
    k=st.integers(3, 20),
    d_source=st.integers(2, 12),
    d_target=st.integers(2, 12),
    alpha=alphas,
    ridge=st.floats(1e-3, 10),
)
def test_the_family_equals_powers_of_the_gram_matrices(seed, k, d_source, d_target, alpha, ridge):
    x, y = unit_anchors(seed, k, d_source), unit_anchors(seed + 1, k, d_target)
    expected = x.T @ literal_decoder(x, y, alpha=alpha, ridge=ridge)
    assert_close(family(x, y, alpha=alpha, ridge=ridge), expected, rtol=1e-8, atol=1e-10)


@shapes
def test_each_side_can_have_its_own_exponent_and_ridge(k, d_source, d_target):
    x, y = unit_anchors(0, k, d_source), unit_anchors(1, k, d_target)
    powers = gram_power(x, exponent=-0.9, ridge=0.2), gram_power(y, exponent=-0.3, ridge=1.5)
    made = family(x, y, alpha=0.9, ridge=0.2, beta=0.3, target_ridge=1.5)
    assert_close(made, x.T @ powers[0] @ powers[1] @ y, rtol=1e-8, atol=1e-10)
    assert_close(family(x, y, alpha=0.9, ridge=0.2, beta=0.1, target_ridge=0.2), family(x, y, alpha=0.9, ridge=0.2))


def test_the_ridge_is_relative_to_the_size_of_the_anchors():
    x, y = unit_anchors(0, 30, 5), unit_anchors(1, 30, 7)
    small = family(x, y, alpha=0.5, ridge=0.3)
    assert_close(family(10 * x, 10 * y, alpha=0.5, ridge=0.3), small)


# Translating, folded or not


@norms
@pytest.mark.parametrize(
    "pruned", [{}, {"pruning": 0.7}, {"pruning": 0.7, "subspaces": 4, "seed": 3}], ids=["all", "pruned", "subspaces"]
)
@pytest.mark.parametrize(("alpha", "ridge"), [(0.0, 0.1), (0.7, 0.3), (1.0, 2.0)])
def test_the_composed_translation_equals_decoded_relative_coordinates(norm, pruned, alpha, ridge):
    x_anchors, y_anchors, x = gaussian(0, 30, 5) + 1, 3 * gaussian(1, 30, 7) - 2, gaussian(2, 9, 5)
    chosen = TranslationSettings(alpha=alpha, ridge=ridge, norm=norm, **pruned)
    x_centre, y_centre = x_anchors.mean(0), y_anchors.mean(0)
    x_unit = directions(x_anchors, centre=x_centre)
    y_unit = directions(y_anchors, centre=y_centre)
    subsets = [torch.arange(30)]
    if chosen.pruning:
        subsets = farthest_point_subsets(y_unit, threshold=chosen.pruning, subspaces=chosen.subspaces, seed=chosen.seed)

    def decoded(latents):
        relative = relative_projection(latents, anchors=x_anchors)
        total = sum(
            relative[:, rows] @ literal_decoder(x_unit[rows], y_unit[rows], alpha=alpha, ridge=ridge)
            for rows in subsets
        )
        norms = (latents - x_centre).norm(dim=-1, keepdim=True) if norm == "keep" else 1
        return total * norms

    constant = (y_anchors - y_centre).norm(dim=-1).mean() / decoded(x_anchors).norm(dim=-1).mean()
    expected = constant * decoded(x) + y_centre
    translation = fit_translation(x_anchors, y_anchors, settings=chosen)
    assert_close(translation(x), expected, rtol=0, atol=1e-10)


def test_pruning_changes_the_translation():
    x, y = gaussian(0, 30, 5), gaussian(1, 30, 7)
    whole = fit_translation(x, y, settings=TranslationSettings())
    pruned = fit_translation(x, y, settings=TranslationSettings(pruning=0.5))
    assert (whole.weight - pruned.weight).abs().max() > 0.01


def test_subspaces_follow_the_seed():
    x, y = gaussian(0, 30, 5), gaussian(1, 30, 7)
    weights = [
        fit_translation(x, y, settings=TranslationSettings(pruning=0.5, subspaces=3, seed=seed)).weight
        for seed in (0, 0, 1)
    ]
    assert [torch.equal(weights[0], weight) for weight in weights[1:]] == [True, False]


def test_the_order_of_the_pairs_does_not_matter():
    x, y = gaussian(0, 30, 5), gaussian(1, 30, 7)
    order = torch.arange(29, -1, -1)
    translations = [fit_translation(*pair, settings=TranslationSettings()) for pair in ((x, y), (x[order], y[order]))]
    assert_close(translations[0](x), translations[1](x), rtol=0, atol=1e-12)


# Exact recovery


@examples
@given(
    seed=seeds,
    d=st.integers(1, 12),
    alpha=alphas,
    size=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
)
def test_an_isometry_a_scale_and_a_shift_are_recovered_for_every_alpha(seed, d, alpha, size, shift):
    anchors, latents = gaussian(seed, 4 * d + 8, d), gaussian(seed + 1, 10, d)
    q, offset = isometry(seed + 2, d, d), shift * size * gaussian(seed + 3, d)
    translation = fit_translation(
        anchors, size * anchors @ q + offset, settings=TranslationSettings(alpha=alpha, ridge=0.0)
    )
    expected = size * latents @ q + offset
    assert (translation(latents) - expected).abs().max() <= 1e-10 * expected.abs().max()


@examples
@given(seed=seeds, d=st.integers(4, 12), wider=st.integers(1, 6), alpha=alphas, size=st.floats(1e-3, 1e3))
def test_an_isometric_embedding_into_a_wider_space_is_recovered(seed, d, wider, alpha, size):
    anchors, latents = gaussian(seed, 4 * d + 8, d), gaussian(seed + 1, 10, d)
    q, offset = isometry(seed + 2, d, d + wider), size * gaussian(seed + 3, d + wider)
    translation = fit_translation(
        anchors, size * anchors @ q + offset, settings=TranslationSettings(alpha=alpha, ridge=0.0)
    )
    expected = size * latents @ q + offset
    assert (translation(latents) - expected).abs().max() <= 1e-10 * expected.abs().max()


@examples
@given(seed=seeds, d=st.integers(1, 12), alpha=alphas, size=st.floats(1e-3, 1e3))
def test_the_mean_scale_recovers_directions(seed, d, alpha, size):
    anchors, latents = gaussian(seed, 4 * d + 8, d), gaussian(seed + 1, 10, d)
    q, offset = isometry(seed + 2, d, d), size * gaussian(seed + 3, d)
    target_anchors = size * anchors @ q + offset
    translation = fit_translation(
        anchors, target_anchors, settings=TranslationSettings(alpha=alpha, ridge=0.0, norm="mean")
    )
    centre = target_anchors.mean(0)
    cosines = torch.cosine_similarity(translation(latents) - centre, size * latents @ q + offset - centre, eps=0)
    assert_close(cosines, torch.ones(10).double(), rtol=0, atol=1e-12)


def test_the_mean_scale_loses_the_norms():
    anchors = gaussian(0, 30, 4)
    translation = fit_translation(anchors, anchors, settings=TranslationSettings(ridge=0.0, norm="mean"))
    assert (translation(anchors) - anchors).abs().max() > 0.1


def test_a_linear_map_that_is_no_isometry_is_not_recovered():
    anchors = gaussian(0, 60, 4)
    target_anchors = anchors * torch.tensor([1.0, 1, 1, 5]).double()
    translation = fit_translation(anchors, target_anchors, settings=TranslationSettings(alpha=0.5, ridge=0.0))
    assert (translation(anchors) - target_anchors).abs().max() > 0.1 * target_anchors.abs().max()


def test_a_ridge_gives_up_exactness():
    anchors = gaussian(0, 60, 4) * torch.tensor([1.0, 1, 1, 5]).double()
    translation = fit_translation(anchors, anchors, settings=TranslationSettings(alpha=0.5, ridge=0.3))
    assert (translation(anchors) - anchors).abs().max() > 0.01 * anchors.abs().max()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_the_anchors_do_not_span_is_lost(alpha):
    plane = torch.tensor([1.0, 1, 0]).double()
    anchors, latents = gaussian(0, 30, 3) * plane, gaussian(1, 10, 3)
    translation = fit_translation(anchors, anchors, settings=TranslationSettings(alpha=alpha, ridge=0.0))
    assert_close(translation(latents), latents * plane, rtol=0, atol=1e-12)


# Scale and centre


@norms
def test_translated_anchors_have_the_mean_norm_of_the_target_anchors(norm):
    x, y = 5 * gaussian(0, 30, 5) + 2, 0.1 * gaussian(1, 30, 7) - 3
    translation = fit_translation(x, y, settings=TranslationSettings(norm=norm))
    lengths = np.linalg.norm(translation(x) - y.mean(0), axis=1)
    assert lengths.mean() == pytest.approx(np.linalg.norm(y - y.mean(0), axis=1).mean())


@norms
def test_the_centre_of_the_source_goes_to_the_centre_of_the_target(norm):
    x, y = gaussian(0, 30, 5) + 2, gaussian(1, 30, 7) - 3
    translation = fit_translation(x, y, settings=TranslationSettings(norm=norm))
    assert_close(translation(x.mean(0)[None]), y.mean(0)[None], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "factor"), [("keep", 3), ("mean", 1)])
def test_only_the_carried_scale_keeps_how_far_a_latent_is_from_the_centre(norm, factor):
    x, y = gaussian(0, 30, 5) + 2, gaussian(1, 30, 7) - 3
    translation = fit_translation(x, y, settings=TranslationSettings(norm=norm))
    near, far = (translation(x.mean(0) + reach * (x - x.mean(0))) - y.mean(0) for reach in (1, 3))
    assert_close(far, factor * near, rtol=0, atol=1e-12)


def test_the_carried_scale_is_one_affine_map():
    x, y = gaussian(0, 30, 5) + 2, gaussian(1, 30, 7) - 3
    translation = fit_translation(x, y, settings=TranslationSettings())
    assert_close(translation(x), x @ translation.weight + translation.bias, rtol=0, atol=1e-12)


def test_mean_norm_of_hand_worked_rows():
    assert mean_norm(torch.tensor([[3.0, 4], [0, 1]])) == 3


# Dtypes and gradients


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_latents_give_the_float64_translation_rounded_once(norm, dtype):
    x, y = gaussian(0, 200, 64), gaussian(1, 200, 48)
    latents = gaussian(2, 9, 64).to(dtype)
    translation = fit_translation(x, y, settings=TranslationSettings(norm=norm))
    translated = translation(latents)
    assert_close(translated, translation(latents.double()).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@examples
@given(seed=seeds, shift=st.floats(0, 10), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@norms
def test_float32_weights_add_no_error_that_shows_in_the_latents_own_dtype(norm, seed, shift, dtype):
    """Against float64 throughout, with a centre that is far out: (x − μ)W is made as xW − μW."""
    x, y = gaussian(seed, 80, 32) + shift, gaussian(seed + 1, 80, 24)
    latents = (gaussian(seed + 2, 9, 32) + shift).to(dtype)
    translation = fit_translation(x, y, settings=TranslationSettings(norm=norm))
    expected = translation(latents.double())
    translated = translation.float()(latents).double()
    allowed = (torch.finfo(dtype).eps + 50 * (1 + shift) * torch.finfo(torch.float32).eps) * expected.abs().max()
    assert (translated - expected).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_latent_that_only_rounding_sets_apart_from_the_centre_is_not_blown_up(dtype):
    x, y = gaussian(0, 30, 5) + 100, gaussian(1, 30, 7)
    translation = fit_translation(x, y, settings=TranslationSettings(norm="mean")).to(dtype)
    lengths = (translation(x.to(dtype)) - translation.bias).norm(dim=-1)
    steps = torch.tensor([0.0, 1, 2, 5, 20]).to(dtype)[:, None]
    near = translation.centre * (1 + steps * torch.finfo(dtype).eps)
    assert ((translation(near) - translation.bias).norm(dim=-1) <= 3 * lengths.max()).all()


def test_the_mean_scale_passes_on_what_is_not_finite():
    translation = fit_translation(gaussian(0, 30, 5), gaussian(1, 30, 7), settings=TranslationSettings(norm="mean"))
    latents = gaussian(2, 3, 5)
    latents[0, 0], latents[1, 0] = torch.nan, torch.inf
    assert (~translation(latents).isfinite()).all(1).tolist() == [True, True, False]


@norms
def test_gradients_go_through_a_translation(norm):
    translation = fit_translation(gaussian(0, 30, 5), gaussian(1, 30, 7), settings=TranslationSettings(norm=norm))
    assert torch.autograd.gradcheck(translation, gaussian(2, 4, 5).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_anchors_are_inverted_in_float64(dtype):
    x, y = gaussian(0, 60, 16).to(dtype), gaussian(1, 60, 12).to(dtype)
    translation = fit_translation(x, y, settings=TranslationSettings(alpha=0.0, ridge=0.0))
    in_float64 = fit_translation(x.double(), y.double(), settings=TranslationSettings(alpha=0.0, ridge=0.0))
    assert_close(translation.weight, in_float64.weight, rtol=1e-12, atol=1e-12)


def test_a_translation_keeps_no_gradient_of_its_anchors():
    x, y = gaussian(0, 30, 5).requires_grad_(), gaussian(1, 30, 7).requires_grad_()
    translation = fit_translation(x, y, settings=TranslationSettings())
    assert [name for name, buffer in translation.named_buffers() if buffer.requires_grad] == []


def test_a_translation_has_nothing_to_train():
    assert list(Translation(3, 4, norm="keep").parameters()) == []


def test_a_saved_translation_is_the_same_after_loading():
    x, y = gaussian(0, 30, 5), gaussian(1, 30, 7)
    fitted = fit_translation(x, y, settings=TranslationSettings(norm="mean"))
    loaded = Translation(5, 7, norm="mean").double()
    loaded.load_state_dict(fitted.state_dict())
    assert torch.equal(loaded(x), fitted(x))


# Conditioning


@pytest.mark.parametrize(("k", "d"), [(30, 5), (12, 10), (200, 3)])
def test_condition_number_equals_that_of_numpy(k, d):
    unit = unit_anchors(0, k, d)
    assert frame(unit).condition_number == pytest.approx(np.linalg.cond(unit.numpy()))


@pytest.mark.parametrize(("k", "d"), [(30, 5), (12, 10), (200, 3)])
def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values(k, d):
    unit = unit_anchors(0, k, d)
    expected = np.exp(entropy(np.linalg.svd(unit.numpy(), compute_uv=False)))
    assert frame(unit).effective_rank == pytest.approx(expected)


def test_orthonormal_anchors_have_condition_number_one():
    assert frame(isometry(0, 4, 6)).condition_number == pytest.approx(1)


def test_orthonormal_anchors_have_as_effective_rank_their_number():
    assert frame(isometry(0, 4, 6)).effective_rank == pytest.approx(4)


def test_conditioning_of_hand_worked_anchors():
    unit = torch.tensor([[0.9, 0], [0, 0.3]]).double()
    assert (frame(unit).condition_number, frame(unit).effective_rank) == pytest.approx((3, 4 / 3**0.75))


def test_a_frame_multiplies_back_to_its_anchors():
    unit = unit_anchors(0, 8, 12)
    decomposed = frame(unit)
    assert_close(decomposed.u * decomposed.singular_values @ decomposed.vh, unit, rtol=0, atol=1e-13)


def test_null_directions_are_not_in_a_frame():
    assert frame(gaussian(0, 20, 2) @ gaussian(1, 2, 9)).rank == 2


def test_the_condition_number_ignores_null_directions():
    anchors = gaussian(0, 20, 3)
    embedded = anchors @ isometry(1, 3, 9)
    assert frame(embedded).condition_number == pytest.approx(np.linalg.cond(anchors.numpy()))


def test_centring_takes_one_direction_of_few_anchors():
    assert frame(unit_anchors(0, 6, 9)).rank == 5


def test_weak_directions_of_float64_anchors_are_kept():
    anchors = gaussian(0, 20, 3) * torch.tensor([1.0, 1, 1e-9]).double()
    assert frame(anchors).rank == 3


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_rank_deficient_anchors_give_finite_translations(alpha, ridge):
    anchors = gaussian(0, 20, 2) @ gaussian(1, 2, 9)
    translation = fit_translation(anchors, anchors, settings=TranslationSettings(alpha=alpha, ridge=ridge))
    assert translation(anchors).abs().max() < 10 * anchors.abs().max()


def test_directions_made_by_float32_rounding_are_not_inverted():
    anchors = gaussian(0, 60, 5)
    target_anchors = (anchors @ isometry(1, 5, 9)).float()
    translation = fit_translation(anchors, target_anchors, settings=TranslationSettings(alpha=0.0, ridge=0.0))
    assert_close(translation(anchors), target_anchors.double(), rtol=0, atol=1e-5)


def test_directions_made_by_rounding_a_large_shift_are_not_inverted():
    anchors, q = gaussian(0, 60, 5), isometry(1, 5, 9)
    target_anchors = anchors @ q + 1000
    translation = fit_translation(anchors, target_anchors, settings=TranslationSettings(alpha=0.0, ridge=0.0))
    assert_close(translation(anchors), target_anchors, rtol=1e-10, atol=0)


# Refusals


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"alpha": -0.1}, r"alpha is -0\.1: .* in \[0, 1\]"),
        ({"alpha": 1.1}, r"alpha is 1\.1: .* in \[0, 1\]"),
        ({"alpha": float("nan")}, r"alpha is nan: .* in \[0, 1\]"),
        ({"ridge": -0.5}, r"ridge is -0\.5: .* 0 or more, and finite"),
        ({"ridge": float("inf")}, r"ridge is inf: .* 0 or more, and finite"),
        ({"ridge": float("nan")}, r"ridge is nan: .* 0 or more, and finite"),
        ({"norm": "median"}, r"norm is 'median': .* 'keep' or 'mean'"),
        ({"pruning": 0.0}, r"pruning is 0\.0: .* in \(0, 1\], or None"),
        ({"pruning": 1.5}, r"pruning is 1\.5: .* in \(0, 1\], or None"),
        ({"pruning": float("nan")}, r"pruning is nan: .* in \(0, 1\], or None"),
        ({"subspaces": 0}, r"subspaces is 0 with pruning None: .* 1 or more"),
        ({"pruning": 0.5, "subspaces": -1}, r"subspaces is -1 with pruning 0\.5: .* 1 or more"),
        ({"subspaces": 2}, r"subspaces is 2 with pruning None: .* only with a pruning threshold"),
        ({"output_scale": 0.0}, "output_scale is 0.0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"gamma": float("inf")}, "gamma is inf"),
        ({"gamma": 1.0, "pruning": 0.5}, "a kernel translation is not pruned"),
        ({"identity": True, "gamma": 1.0}, "identity=True leaves latents as they are"),
        ({"identity": True, "pruning": 0.5}, "identity=True leaves latents as they are"),
        ({"identity": True, "norm": "mean"}, "identity=True leaves latents as they are"),
    ],
)
def test_settings_that_mean_nothing_are_refused(shapes_unchecked, bad, message):
    with pytest.raises(StitchError, match=message):
        TranslationSettings(**bad)


@pytest.mark.parametrize(
    "edge", [{"alpha": 0.0}, {"alpha": 1.0}, {"ridge": 0.0}, {"pruning": 1.0}, {"pruning": 0.5, "subspaces": 2}]
)
def test_settings_at_the_edge_are_accepted(edge):
    chosen = TranslationSettings(**edge)
    assert {name: getattr(chosen, name) for name in edge} == edge


def test_anchors_that_are_not_paired_are_refused(shapes_unchecked):
    with pytest.raises(StitchError, match=r"5 source anchors and 4 target anchors: .* encode the same inputs"):
        fit_translation(gaussian(0, 5, 3), gaussian(1, 4, 3), settings=TranslationSettings())


def test_spaces_of_two_widths_are_not_one():
    with pytest.raises(StitchError, match="identity=True with latents 3 and 2 wide"):
        fit_translation(gaussian(0, 5, 3), gaussian(1, 5, 2), settings=TranslationSettings(identity=True))


def test_a_coordinate_that_hardly_varies_is_translated_to_its_mean():
    """As a head on standardised latents needs it: rounding of the others would be all that there is in it."""
    x = gaussian(0, 60, 16)
    y = x @ isometry(1, 16, 16)
    y[:, 3] = 1e-34 * (y[:, 3] + 4)
    for alpha in (0.0, 0.7, 1.0):
        made = fit_translation(x, y, settings=TranslationSettings(alpha=alpha, ridge=0.1))(gaussian(2, 9, 16))
        assert_close(made[:, 3], y[:, 3].mean().expand(9), rtol=1e-9, atol=0)


def test_every_setting_can_be_given_by_keyword() -> None:
    assert get_type_hints(GivenSettings) == get_type_hints(TranslationSettings)
