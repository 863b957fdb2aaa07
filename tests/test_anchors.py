"""AnchorSet: what it refuses, what it keeps, and that a folder brings back what was saved."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pico
import pytest
import torch
from PIL import Image

from hf_relstitch import AnchorSet, Encoder, Provenance, StitchError
from hf_relstitch.data.ids import input_ids

PROVENANCE = Provenance("me/encoder", "abc", "mean", "some texts")


def latents(count: int = 40, dim: int = 8) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


def make(rows: torch.Tensor, ids: torch.Tensor | None = None) -> AnchorSet:
    return AnchorSet(rows, torch.arange(len(rows)) if ids is None else ids, PROVENANCE)


def spoiled(row: int, value: float) -> torch.Tensor:
    rows = latents()
    rows[row, 2] = value
    return rows


def with_central_row() -> torch.Tensor:
    rows = latents()
    rows[3] = rows[torch.arange(40) != 3].mean(0)
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (spoiled(5, float("nan")), r"1 of 40 anchors \(rows 5\) have not-a-number or infinite values"),
        (spoiled(7, float("inf")), r"rows 7\) have not-a-number or infinite values"),
        (torch.ones(40, 8) * torch.tensor([2.0]), "all 40 anchors have the same latent"),
        (torch.cat([latents(), torch.zeros(1, 8)]), r"1 of 41 anchors \(rows 40\) have a zero norm"),
        (torch.cat([latents(), latents()[:3]]), "3 of 43 anchors repeat the latent of another"),
        (with_central_row(), r"rows 3\) have a latent at the mean of all"),
        (latents(31), "31 anchors: at least 32 different inputs are needed"),
        (latents()[:, :, None], r"float32 of shape \(40, 8, 1\): expected \(k, d\) floats"),
        (latents().long(), r"int64 of shape \(40, 8\): expected \(k, d\) floats"),
    ],
)
def test_refuses_latents_that_cannot_be_anchors(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        make(rows)


def test_stored_latents_of_nothing_but_nan_are_not_taken_for_one_anchor() -> None:
    names = [str(row) for row in range(40)]
    with pytest.raises(StitchError, match=r"40 of 40 anchors .* have not-a-number or infinite values"):
        AnchorSet.from_latents(torch.full((40, 8), torch.nan), names, model="vendor/embedder")


def test_refuses_repeated_ids() -> None:
    ids = torch.arange(40)
    ids[9] = 4
    with pytest.raises(StitchError, match=r"1 of 40 anchor ids repeat others \(the id of row 4 is one\)"):
        make(latents(), ids)


@pytest.mark.parametrize("ids", [torch.arange(39), torch.arange(40.0), torch.arange(80).reshape(40, 2)])
def test_refuses_ids_that_are_not_one_a_row(ids: torch.Tensor) -> None:
    with pytest.raises(StitchError, match=r"expected \(40,\) int64, one id a row"):
        make(latents(), ids)


def test_is_frozen(anchor_set: AnchorSet) -> None:
    with pytest.raises(FrozenInstanceError):
        anchor_set.latents = anchor_set.latents + 1


def test_encode_names_model_and_data(anchor_set: AnchorSet, source: Encoder) -> None:
    assert anchor_set.provenance.data == "word salad"
    assert anchor_set.provenance.difference(source.provenance) == ""
    assert (len(anchor_set), anchor_set.dim) == (100, 16)


def test_encode_keeps_repeated_inputs_once(source: Encoder) -> None:
    inputs = pico.texts(40)
    twice = AnchorSet.encode(source, [*inputs, *inputs[:5]], progress=False)
    assert twice.ids.tolist() == input_ids(inputs).tolist()


def test_intersect_pairs_by_id_whatever_the_order() -> None:
    ours = make(latents())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:35]
    theirs = AnchorSet(ours.latents[order] * 2, ours.ids[order], PROVENANCE)
    left, right = ours.intersect(theirs)
    assert left.ids.tolist() == sorted(order.tolist())
    assert torch.equal(left.ids, right.ids)
    assert torch.equal(left.latents * 2, right.latents)


def test_intersect_refuses_a_small_overlap() -> None:
    with pytest.raises(StitchError, match="share 12 ids of 40 and 50; at least 32 are needed"):
        make(latents()).intersect(make(latents(50), torch.arange(28, 78)))


def test_folder_brings_back_the_set(anchor_set: AnchorSet, tmp_path: Path) -> None:
    anchor_set.save_pretrained(tmp_path / "set")
    loaded = AnchorSet.from_pretrained(tmp_path / "set")
    assert torch.equal(loaded.latents, anchor_set.latents)
    assert torch.equal(loaded.ids, anchor_set.ids)
    assert loaded.provenance == anchor_set.provenance
    assert sorted(file.name for file in tmp_path.rglob("*")) == [
        *("README.md", "anchor_config.json", "anchors.safetensors", "set")
    ]


@pytest.mark.parametrize("name", ["anchor_config.json", "anchors.safetensors"])
def test_refuses_a_folder_without_a_file(anchor_set: AnchorSet, tmp_path: Path, name: str) -> None:
    anchor_set.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StitchError, match=f"has no file {name}"):
        AnchorSet.from_pretrained(tmp_path)


def test_refuses_altered_latents(anchor_set: AnchorSet, tmp_path: Path, altered: Callable[[Path], None]) -> None:
    anchor_set.save_pretrained(tmp_path)
    altered(tmp_path / "anchors.safetensors")
    with pytest.raises(StitchError, match=r"anchors\.safetensors is damaged or was altered"):
        AnchorSet.from_pretrained(tmp_path)


def test_refuses_truncated_latents(anchor_set: AnchorSet, tmp_path: Path) -> None:
    anchor_set.save_pretrained(tmp_path)
    file = tmp_path / "anchors.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(StitchError, match="is damaged"):
        AnchorSet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9, "hf_relstitch_version": "7.0"}, r"format version 9.*pip install -U 'hf-relstitch>=7.0'"),
        ({"format_version": "new"}, "format version 'new': expected a whole number"),
        ({"checksums": {}}, "not a whole anchor set"),
        ({"provenance": {"model_id": "me"}}, "pooling is missing"),
        (
            {"provenance": {"model_id": "me", "revision": "", "pooling": "", "cut": "here"}},
            "cut of a provenance is 'here'",
        ),
    ],
)
def test_refuses_a_config_of_another_kind(
    anchor_set: AnchorSet, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    anchor_set.save_pretrained(tmp_path)
    file = tmp_path / "anchor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StitchError, match=message):
        AnchorSet.from_pretrained(tmp_path)


def test_a_failing_save_leaves_the_folder_as_it_was(
    anchor_set: AnchorSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor_set.save_pretrained(tmp_path / "set")
    before = {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()}
    monkeypatch.setattr("hf_relstitch.model.anchors.__version__", object())  # cannot be written as JSON
    with pytest.raises(TypeError):
        anchor_set._subset(list(range(50))).save_pretrained(tmp_path / "set")
    assert {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_ids_tell_inputs_apart_and_only_by_what_they_show(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((8, 8))
    image.save(tmp_path / "one.png")
    other = Image.radial_gradient("L").resize((8, 8))
    same = input_ids([image, tmp_path / "one.png", image.convert("RGB")])
    assert len(set(same.tolist())) == 1
    assert len(set(input_ids([image, other, image.resize((4, 16)), "storm", "Storm"]).tolist())) == 5


def test_ids_stay_what_they_are() -> None:
    """Published anchor sets are paired by these numbers: BLAKE2b-64 of b"text:storm", little-endian, signed."""
    assert input_ids(["storm"]).tolist() == [-2086026548957871803]
