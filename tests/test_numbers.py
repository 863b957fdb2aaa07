"""Numbers at the limits of float32 give a finite model, or an error that says what to scale."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_relstitch import AnchorSet, Head, RelativeStitcher, StitchError
from hf_relstitch.bulk import SearchTranslation, translate_files, translation_between
from hf_relstitch.data.latents import as_latents
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.model.anchors import RelativeLatents


def stitch(x: Tensor, y: Tensor) -> RelativeStitcher:
    """Stitch latents to a head of three classes."""
    sets = [
        AnchorSet(side, torch.arange(len(side)), Provenance(name, "mean", "stored"))
        for name, side in {"source": x, "target": y}.items()
    ]
    head = Head.from_module(nn.Linear(y.shape[1], 3), labels=["a", "b", "c"])
    return RelativeStitcher.from_anchor_sets(None, *sets, head)


@pytest.fixture(params=[32, 33, 200])
def spaces(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Two spaces, the second a noisy image of the first."""
    x = torch.randn(request.param, 8)
    return x, x @ torch.randn(8, 6) + 0.1 * torch.randn(request.param, 6)


def rotation() -> SearchTranslation:
    """A translation between two spaces of three dimensions."""
    x = torch.randn(60, 3)
    return translation_between(x, x.roll(1, 1))


def test_one_dimension_is_enough(spaces: tuple[Tensor, Tensor]) -> None:
    x, y = spaces
    for source, target in ((x[:, :1], y), (x, y[:, :1]), (x[:, :1], x[:, 1:2])):
        assert stitch(source, target).classify(source).isfinite().all()


@pytest.mark.parametrize("value", [1e3, 1e6, 1e9])
def test_a_constant_coordinate_changes_nothing(value: float, spaces: tuple[Tensor, Tensor]) -> None:
    x, y = spaces
    constant = torch.full((len(x), 1), value)
    model, plain = stitch(torch.cat([constant, x], dim=1), y), stitch(x, y)
    torch.testing.assert_close(
        model.translate(torch.cat([constant, x], dim=1)), plain.translate(x), rtol=1e-3, atol=1e-3
    )
    wide = stitch(x, torch.cat([constant, y], dim=1)).translate(x)
    torch.testing.assert_close(wide[:, :1], constant)
    torch.testing.assert_close(wide[:, 1:], plain.translate(x), rtol=0.2, atol=0.5)


def test_an_offset_costs_what_rounding_takes(spaces: tuple[Tensor, Tensor]) -> None:
    x, y = spaces
    for offset in (1e3, 3e5):
        model = stitch(x + offset, y)
        assert model.translate(x + offset).isfinite().all()
        translation_between(x + offset, y)
    near = stitch(x + 1e3, y).translate(x + 1e3)
    assert nn.functional.cosine_similarity(near, y).mean() > 0.9


@pytest.mark.parametrize(("source", "target"), [(1e-20, 1e20), (1e20, 1e-20), (1e-38, 1.0)])
def test_what_float32_cannot_hold_is_refused(source: float, target: float, spaces: tuple[Tensor, Tensor]) -> None:
    x, y = spaces
    for fit in (stitch, translation_between):
        with pytest.raises(StitchError, match=r"does not fit into float32; the anchors' mean norms are .*: scale both"):
            fit(x * source, y * target)


@pytest.mark.parametrize("kind", ["relative latents", "search translation"])
def test_any_bit_of_a_file_that_is_changed_is_found(kind: str, stitched: RelativeStitcher, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    if kind == "relative latents":
        values = torch.randn(4, len(stitched.anchors.ids))
        saved = RelativeLatents(
            values, stitched.anchors.ids, stitched.config.translation_settings, Provenance("a", "b", "c")
        )
    else:
        saved = rotation()
    saved.save(file)
    load = type(saved).load
    load(file)
    content = file.read_bytes()
    for at in np.random.default_rng(0).choice(len(content), 60, replace=False):
        damaged = bytearray(content)
        damaged[at] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(StitchError):
            load(file)


def test_an_array_that_its_header_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.ones((40, 3), np.float32))
    file.write_bytes(file.read_bytes().replace(b"(40, 3)", b"(20, 3)"))
    with pytest.raises(StitchError, match=r"header says \(20, 3\), and 240 bytes are left"):
        as_latents(file)
    translation = rotation()
    with pytest.raises(StitchError, match=r"header says 240 bytes of data and it has 480: copy or write it again"):
        translate_files(translation, file, tmp_path / "out", progress=False)


def test_the_remedy_for_another_byte_order_is_one(tmp_path: Path) -> None:
    translation = rotation()
    latents, file = np.asfortranarray(np.ones((40, 3), ">f4")), tmp_path / "x.npy"
    np.save(file, latents)
    with pytest.raises(StitchError, match=r"as np.save\(file, np.ascontiguousarray\(latents, '<f4'\)\) writes"):
        translate_files(translation, file, tmp_path / "out", progress=False)
    np.save(file, np.ascontiguousarray(latents, "<f4"))
    translate_files(translation, file, tmp_path / "out", progress=False)
