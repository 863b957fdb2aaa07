import pytest
from spaces import clusters, gaussian, isometry
from torch.testing import assert_close

from hf_relstitch.core.projection import decode_relative, encode_relative
from hf_relstitch.core.translation import TranslationSettings, fit

EVERY_KIND = [
    {},
    {"norm": "mean", "output_scale": 1.3},
    {"pruning": 0.5, "subspaces": 3},
    {"alpha": 0.9, "beta": 0.4, "target_ridge": 2.0},
    {"gamma": 1.0, "output_scale": 1.3},
    {"gamma": 2.0, "norm": "mean"},
    {"gamma": 1.0, "alpha": 1.0, "ridge": 0.1, "beta": 0.3, "target_ridge": 1.0},
]


@pytest.mark.parametrize("given", EVERY_KIND, ids=str)
def test_both_parts_make_the_translation(given):
    x, _ = clusters(count=60)
    y = 3 * x @ isometry(5, 16) + gaussian(6, 60, 16) + 5
    settings = TranslationSettings(**given)
    relative = encode_relative(x[:9] + 1, source_anchors=x, target_anchors=y, settings=settings)
    decoded = relative @ decode_relative(y, settings=settings) + y.mean(0)
    assert_close(decoded, fit(x, y, settings=settings)(x[:9] + 1))
