from dataclasses import replace

import pytest
import torch
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from spaces import clusters, gaussian, isometry
from torch.testing import assert_close

from hf_relstitch.core.decomposition import kernel, kernel_frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions
from hf_relstitch.core.translation import (
    KernelTranslation,
    Translation,
    TranslationSettings,
    empty_translation,
    fit,
    fit_kernel_translation,
    fit_translation,
)


@pytest.fixture
def pair():
    x, _ = clusters(count=60)
    return x, 3 * x @ isometry(5, 16) + gaussian(6, 60, 16)


def test_the_kernel_keeps_none_and_one_and_bends_between():
    assert_close(kernel(torch.tensor([[0.0, 1.0]]), gamma=2.0), torch.tensor([[0.0, 1.0]]))
    assert float(kernel(torch.tensor([[0.5]]), gamma=2.0)) == pytest.approx((2.718281828**2 - 1) / (2.718281828**4 - 1))


def test_no_gamma_changes_nothing_and_little_changes_little():
    relative = torch.linspace(-1, 1, 9, dtype=torch.float64)[None]
    assert torch.equal(kernel(relative, gamma=0.0), relative)
    assert_close(kernel(relative, gamma=1e-6), relative, rtol=0, atol=1e-5)


def test_the_kernel_matrix_has_no_negative_directions():
    unit = directions(gaussian(0, 80, 8), centre=torch.zeros(8, dtype=torch.float64))
    for gamma in (0.5, 2.0, 8.0):
        values = torch.linalg.eigvalsh(kernel(unit @ unit.T, gamma=gamma))
        assert values.min() > -1e-12 * values.max()


def test_a_gamma_towards_zero_is_ridge_regression(pair):
    """With fewer anchors than dimensions; the kernel adds one to their 11 directions, which the mean ridge knows."""
    x, y = pair[0][:12], pair[1][:12]
    linear = fit_translation(x, y, settings=TranslationSettings(alpha=1.0, ridge=0.11))
    nearly, far = (
        fit_kernel_translation(x, y, settings=TranslationSettings(alpha=1.0, ridge=0.12, gamma=gamma))
        for gamma in (1e-6, 2.0)
    )
    assert_close(nearly(pair[0]), linear(pair[0]), rtol=1e-4, atol=1e-4)
    assert (far(pair[0]) - linear(pair[0])).abs().max() > 0.1


def test_a_kernel_ridge_regression_is_scikit_learns(pair):
    x, y = pair
    made = fit_kernel_translation(x, y, settings=TranslationSettings(alpha=1.0, ridge=0.1, gamma=0.5, norm="mean"))
    unit, targets = directions(x, centre=x.mean(0)), directions(y, centre=y.mean(0))
    gram = kernel(unit @ unit.T, gamma=0.5)
    values = kernel_frame(unit, gamma=0.5, landmarks=60).singular_values.square()
    oracle = KernelRidge(alpha=0.1 * float(values.mean()), kernel="precomputed").fit(gram.numpy(), targets.numpy())
    expected = directions(torch.tensor(oracle.predict(gram.numpy())), centre=torch.zeros(16, dtype=torch.float64))
    assert_close(directions(made(x), centre=y.mean(0)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["keep", "mean"])
def test_fitted_anchors_get_the_mean_norm_of_the_target_times_the_output_scale(pair, norm):
    x, y = pair
    made = fit_kernel_translation(x, y, settings=TranslationSettings(gamma=1.0, output_scale=1.2, norm=norm))
    lengths = [(each - y.mean(0)).norm(dim=-1).mean() for each in (made(x), y)]
    assert lengths[0] / lengths[1] == pytest.approx(1.2)


def test_a_latent_keeps_its_norm_or_loses_it(pair):
    x, y = pair
    for norm, factor in (("keep", 2.0), ("mean", 1.0)):
        made = fit_kernel_translation(x, y, settings=TranslationSettings(gamma=1.0, norm=norm))
        doubled = made(x.mean(0) + 2 * (x - x.mean(0)))
        assert_close(doubled - y.mean(0), factor * (made(x) - y.mean(0)))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 1), (torch.bfloat16, 1), (torch.float16, 7e3)])
def test_half_precision_is_computed_in_float32(pair, dtype, size):
    """The norms of the large latents are beyond what float16 holds."""
    x, y = size * pair[0], pair[1]
    assert x.abs().max() < torch.finfo(dtype).max
    assert size == 1 or x.norm(dim=1).max() > torch.finfo(dtype).max
    made = fit_kernel_translation(x, y, settings=TranslationSettings(gamma=1.0))
    exact, rounded = made(x), made.to(dtype)(x.to(dtype))
    assert rounded.dtype == dtype
    assert ((rounded.double() - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.03


def test_settings_decide_what_is_fitted(pair):
    assert type(fit(*pair, settings=TranslationSettings(gamma=1.0))) is KernelTranslation
    assert type(fit(*pair, settings=TranslationSettings())) is Translation


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_an_empty_translation_is_filled_by_a_state(pair, gamma):
    settings = TranslationSettings(gamma=gamma)
    made = fit(*pair, settings=settings)
    empty = empty_translation(60, 16, 16, settings=settings).double()
    empty.load_state_dict(made.state_dict())
    assert torch.equal(empty(pair[0]), made(pair[0]))
    assert not list(empty.parameters())


def test_anchors_that_cannot_be_paired_are_refused(shapes_unchecked):
    with pytest.raises(StitchError, match="5 source anchors and 4 target anchors"):
        fit(gaussian(0, 5, 3), gaussian(1, 4, 3), settings=TranslationSettings(gamma=1.0))


def test_landmarks_of_all_anchors_are_no_approximation(pair):
    x, y = pair
    settings = TranslationSettings(alpha=1.0, ridge=0.1, gamma=1.0)
    assert_close(fit(x, y, settings=settings)(x + 1), fit(x, y, settings=replace(settings, landmarks=60))(x + 1))


def test_landmarks_are_nystroems_kernel_ridge():
    """Against scikit-learn's feature map of the same landmarks, and ridge regression on what it gives."""
    x, _ = clusters(count=300)
    y = x @ isometry(5, 16) + gaussian(6, 300, 16)
    settings = TranslationSettings(alpha=1.0, ridge=0.1, gamma=1.0, norm="mean", landmarks=50)
    translation = fit(x, y, settings=settings)
    assert translation.directions.shape == (50, 16)
    unit, targets = directions(x, centre=x.mean(0)), directions(y, centre=y.mean(0))
    # scikit-learn draws its landmarks; they are replaced by ours, whose kernel it then whitens.
    features = Nystroem(kernel=lambda a, b: float(kernel(torch.tensor([[a @ b]]), gamma=1.0)), n_components=50)
    features.fit(unit[:50].numpy())
    mapped = features.transform(unit.numpy())
    penalty = 0.1 * float((mapped**2).sum() / 50)
    predicted = Ridge(alpha=penalty, fit_intercept=False).fit(mapped, targets.numpy()).predict(mapped)
    expected = directions(torch.tensor(predicted), centre=torch.zeros(16, dtype=torch.float64))
    assert_close(directions(translation(x), centre=y.mean(0)), expected, rtol=1e-6, atol=1e-6)
