"""Translations for a vector index: what they give, what they say of themselves, and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from typer.testing import CliRunner

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, translate_files, translation_between
from hf_relstitch.cli import app

D_NEW = 20
preferences = pytest.mark.parametrize("prefer", ["linear", "auto"])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_rotation_is_found_between_two_sides() -> None:
    rotation = torch.linalg.qr(randn(D_NEW, D_NEW))[0]
    old = randn(400, D_NEW, seed=1)
    found = translation_between(old[:300].numpy(), 3 * old[:300] @ rotation + 1)
    assert found.translation.weight.dtype == torch.float32
    assert not found.unit
    true = 3 * old[300:] @ rotation + 1
    assert (found(old[300:]) - true).norm(dim=1).max() < 0.01 * true.norm(dim=1).mean()


@pytest.mark.parametrize(
    "given",
    [
        lambda latents: latents.bfloat16(),
        lambda latents: latents.clone().requires_grad_(),
        lambda latents: list(latents.bfloat16()),
        lambda latents: latents.tolist(),
    ],
)
def test_latents_are_paired_in_whatever_they_are_kept(given: Callable[[torch.Tensor], Any]) -> None:
    old, new = (randn(64, 4, seed=seed).bfloat16().float() for seed in (1, 2))
    found = translation_between(given(old), given(new))
    expected = translation_between(old.numpy(), new.numpy())
    assert found.translation.weight.equal(expected.translation.weight)
    assert found.report == expected.report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefer", ["linear", "auto"])
def test_latents_of_norm_1_are_translated_to_such(dtype: torch.dtype, prefer: Any) -> None:
    old, new = randn(300, 12, seed=1), functional.normalize(randn(300, 12, seed=2), dim=1).bfloat16()
    found = translation_between(old, new, prefer=prefer)
    asked = randn(40, 12, seed=3)
    made = found(asked.to(dtype))
    assert made.dtype == dtype
    assert (made.float().norm(dim=1) - 1).abs().max() < 0.01
    assert torch.allclose(made.float(), functional.normalize(found.translation(asked), dim=1), atol=0.02)


def test_a_report_says_what_a_search_will_find() -> None:
    """What a space that turned and got some noise finds of its neighbours, and what the old encoder finds beside."""
    old = randn(400, D_NEW, seed=1)
    new = old @ torch.linalg.qr(randn(D_NEW, D_NEW))[0] + 0.3 * randn(400, D_NEW, seed=2)
    for translates, sides in {"documents": (old, new), "queries": (new, old)}.items():
        report = translation_between(*sides, translates=translates).report
        assert report["recall"] == pytest.approx(0.65, abs=0.1)
        assert 0 < report["standard_error"] < 0.03
        assert report["recall_untranslated"] == pytest.approx(0.5, abs=0.1)
        assert (report["nearest"], report["documents"]) == (1, 79)


@pytest.mark.parametrize("sides", [(randn(40, 3), randn(41, 3)), (randn(31, 3), randn(31, 3)), (randn(40), randn(40))])
def test_sides_that_cannot_be_paired_are_refused(sides: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(StitchError, match=r"expected \(k, d_source\) and \(k, d_target\) with a k of 32"):
        translation_between(*sides)


@preferences
@pytest.mark.parametrize("norm_1", [True, False])
def test_a_file_gives_the_same_translation(prefer: Any, norm_1: bool, tmp_path: Path) -> None:
    new = functional.normalize(randn(80, 5, seed=2), dim=1) if norm_1 else randn(80, 5, seed=2)
    made = translation_between(randn(80, 4, seed=1), new, prefer=prefer, translates="queries")
    made.save(tmp_path / "to-old.safetensors")
    found = SearchTranslation.load(tmp_path / "to-old.safetensors")
    asked = randn(30, 4, seed=3)
    assert found(asked).equal(made(asked))
    assert (found.translates, found.unit, found.report) == ("queries", norm_1, made.report)
    assert [each.name for each in tmp_path.iterdir()] == ["to-old.safetensors"]


@preferences
def test_files_are_translated_by_a_file(prefer: Any, tmp_path: Path) -> None:
    made = translation_between(randn(80, 4, seed=1), randn(80, 5, seed=2), prefer=prefer)
    made.save(tmp_path / "to-new.safetensors")
    latents = randn(100, 4, seed=3)
    np.save(tmp_path / "old.npy", latents.numpy())
    arguments = [str(tmp_path / name) for name in ("to-new.safetensors", "old.npy", "new")]
    done = CliRunner().invoke(app, ["translate", *arguments])
    assert done.exit_code == 0, done.output
    assert np.allclose(np.load(tmp_path / "new" / "old.npy"), made(latents).numpy(), atol=1e-6)
    assert translate_files(made, tmp_path / "old.npy", tmp_path / "new", progress=False).kept == 1


def test_how_latents_are_made_is_part_of_what_a_translation_is(tmp_path: Path) -> None:
    """Two translations with the same weights, of which one gives latents of norm 1, are not one run's."""
    x = randn(60, 8, seed=1)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", randn(5, 8).numpy())
    inner = translation_between(x, x).translation
    plain, norm_1 = (SearchTranslation(inner, translates="documents", unit=unit, report={}) for unit in (False, True))
    translate_files(plain, tmp_path / "a.npy", tmp_path / "out", progress=False)
    with pytest.raises(StitchError, match="was begun with model"):
        translate_files(norm_1, [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "out", progress=False)


def test_a_row_of_zeros_changes_nothing() -> None:
    """Nor does a row that is there already: they would be found by each other, and let latents have any norm."""
    x, y = randn(80, 4, seed=1), functional.normalize(randn(80, 5, seed=2), dim=1)
    clean = translation_between(x, y)
    odd = torch.cat([x, x[:9], torch.zeros(2, 4), x[:1]]), torch.cat([y, y[:9], y[:2], torch.zeros(1, 5)])
    found = translation_between(*odd)
    assert found.unit
    assert found.report == clean.report
    assert found.translation.weight.equal(clean.translation.weight)
    with pytest.raises(StitchError, match="of 82 pairs of latents 2 are left"):
        translation_between(torch.cat([x[:2], x[:1].expand(80, 4)]), torch.cat([y[:2], y[:1].expand(80, 5)]))


@preferences
def test_latents_of_any_norm_are_translated_to_the_mean_of_the_target(prefer: Any) -> None:
    x = randn(300, 8, seed=1)
    y = 7 * x @ torch.linalg.qr(randn(8, 8))[0] + 4 * randn(300, 8, seed=2) + 3
    made = translation_between(x, y, prefer=prefer)
    assert made(x).norm(dim=1).mean() == pytest.approx(float(y.norm(dim=1).mean()), rel=1e-4)


def test_what_is_told_is_held_out_of_the_fit() -> None:
    """Latents without a relation, that are wide enough to be learned by heart."""
    made = translation_between(randn(60, 64, seed=1), randn(60, 64, seed=2))
    assert made.report["recall"] < 0.4


def test_words_that_are_not_known_are_refused() -> None:
    x = randn(40, 3)
    with pytest.raises(StitchError, match="translates is 'index': it has to be 'documents' or 'queries'"):
        translation_between(x, x, translates="index")  # type: ignore[arg-type]
    with pytest.raises(StitchError, match="prefer is 'speed'"):
        translation_between(x, x, prefer="speed")  # type: ignore[arg-type]


def test_a_file_needs_a_folder_and_has_no_revision(tmp_path: Path) -> None:
    made = translation_between(randn(40, 3), randn(40, 3, seed=1))
    with pytest.raises(StitchError, match=r"there is no folder .*missing to write made.st into: make it first"):
        made.save(tmp_path / "missing" / "made.st")
    made.save(tmp_path / "made.st")
    np.save(tmp_path / "old.npy", randn(5, 3).numpy())
    assert translate_files(tmp_path / "made.st", tmp_path / "old.npy", tmp_path / "new", progress=False).rows == 5
    with pytest.raises(StitchError, match="is a file, which has no revision v1"):
        translate_files(tmp_path / "made.st", tmp_path / "old.npy", tmp_path / "new", revision="v1")


@preferences
def test_the_shell_pairs_files_and_translates_by_them(prefer: str, tmp_path: Path) -> None:
    old, new = randn(80, 4, seed=1), functional.normalize(randn(80, 5, seed=2), dim=1)
    np.save(tmp_path / "old.npy", old.numpy())
    save_file({"vectors": new}, tmp_path / "new.safetensors")
    files = [str(tmp_path / name) for name in ("new.safetensors", "old.npy", "to-old.safetensors")]
    how = ["--translates", "queries", "--prefer", prefer, "--column", "vectors"]
    done = CliRunner().invoke(app, ["pair", *files, *how, "--json"])
    assert done.exit_code == 0, done.output
    expected = translation_between(new, old, translates="queries", prefer=prefer)  # type: ignore[arg-type]
    assert json.loads(done.output) == pytest.approx(expected.report)
    assert SearchTranslation.load(files[-1])(new).equal(expected(new))
    shown = CliRunner().invoke(app, ["pair", *files, *how]).output
    assert "search with translated queries" in " ".join(shown.split())
    assert f"{expected.report['recall']:.4g}" in shown
    failed = CliRunner().invoke(app, ["pair", files[0], files[0], files[2]])
    assert failed.exit_code == 1
    assert "has no 'latents'" in str(failed.exception or failed.output)


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> None:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = dict(opened.metadata())
    change(tensors, metadata)
    save_file(tensors, file, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: tensors["weight"].mul_(2), "its tensors are not those that were written"),
        (lambda tensors, metadata: tensors.pop("bias"), "KeyError"),
        (lambda tensors, metadata: tensors.update(centre=torch.zeros(3)), "size mismatch for weight"),
        (lambda tensors, metadata: metadata.clear(), "is no file of SearchTranslation.save"),
        (lambda tensors, metadata: metadata.update(search_translation="{"), "JSONDecodeError"),
        (lambda tensors, metadata: metadata.update(format_version="9"), "has format version 9"),
    ],
)
def test_a_damaged_file_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    translation_between(randn(40, 4, seed=1), randn(40, 5, seed=2)).save(file)
    rewritten(file, change)
    with pytest.raises(StitchError, match=message):
        SearchTranslation.load(file)


def test_a_file_that_is_not_there_or_cut_off_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    with pytest.raises(StitchError, match=r"made.safetensors is not a whole file of a translation for search"):
        translate_files(file, tmp_path, tmp_path / "out")
    translation_between(randn(40, 4, seed=1), randn(40, 5, seed=2)).save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StitchError, match="is not a whole file of a translation for search"):
        translate_files(str(file), tmp_path, tmp_path / "out")
