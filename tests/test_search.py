"""Translations for a vector index: what they give, what they say of themselves, and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from typer.testing import CliRunner

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, translate_files, translation_between
from hf_relstitch.cli import app
from hf_relstitch.core.scoring import advise

D_NEW = 20
preferences = pytest.mark.parametrize("prefer", ["linear", "auto"])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(count: int, d_old: int, d_new: int, *, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Two encoders' latents of the same inputs: one is linear in the other, and noise."""
    old = randn(count, d_old, seed=1)
    return old, old @ randn(d_old, d_new, seed=2) + noise * randn(count, d_new, seed=3)


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
    old, new = (side.bfloat16().float() for side in pairs(64, 4, 4))
    found = translation_between(given(old), given(new))
    expected = translation_between(old.numpy(), new.numpy())
    assert found.translation.weight.equal(expected.translation.weight)
    assert found.report == expected.report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefer", ["linear", "auto"])
def test_latents_of_norm_1_are_translated_to_such(dtype: torch.dtype, prefer: Any) -> None:
    old, new = pairs(300, 12, 12)
    new = functional.normalize(new, dim=1).bfloat16()
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
    old, new = pairs(80, 4, 5)
    new = functional.normalize(new, dim=1) if norm_1 else new
    made = translation_between(old, new, prefer=prefer, translates="queries")
    made.save(tmp_path / "to-old.safetensors")
    found = SearchTranslation.load(tmp_path / "to-old.safetensors")
    asked = randn(30, 4, seed=3)
    assert found(asked).equal(made(asked))
    assert (found.translates, found.unit, found.report) == ("queries", norm_1, made.report)
    assert [each.name for each in tmp_path.iterdir()] == ["to-old.safetensors"]


@preferences
def test_files_are_translated_by_a_file(prefer: Any, tmp_path: Path) -> None:
    made = translation_between(*pairs(80, 4, 5), prefer=prefer)
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
    x, y = pairs(80, 4, 5)
    y = functional.normalize(y, dim=1)
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


def test_documents_encoded_anew_are_found_among_translated_ones() -> None:
    """In a space with a large centre, to which translated latents that are unsure are near."""
    old = randn(1500, 16, seed=1)
    new = old @ randn(16, D_NEW, seed=2) / 4 + 0.5 * randn(1500, D_NEW, seed=3) + 3 * randn(D_NEW, seed=4)
    new = functional.normalize(new, dim=1)
    to_new = translation_between(old[:300], new[:300])
    queries, documents, moved = new[300:500], new[500:], to_new(old[500:])
    is_new = torch.arange(1000) % 2 == 0
    wanted = (queries @ documents.T).topk(10).indices

    def hits(stored: torch.Tensor) -> torch.Tensor:
        return (wanted[:, :, None] == (queries @ stored.T).topk(10).indices[:, None, :]).any(-1)

    mixed = hits(torch.where(is_new[:, None], documents, moved))
    assert mixed[is_new[wanted]].double().mean() > 0.9
    assert mixed.double().mean() > hits(moved).double().mean() + 0.15


def test_what_is_told_is_held_out_of_the_fit() -> None:
    """Latents that are wide enough to be learned by heart."""
    assert translation_between(*pairs(60, 64, 64, noise=8)).report["recall"] < 0.6


def test_words_that_are_not_known_are_refused() -> None:
    x = randn(40, 3)
    with pytest.raises(StitchError, match="translates is 'index': it has to be 'documents' or 'queries'"):
        translation_between(x, x, translates="index")  # type: ignore[arg-type]
    with pytest.raises(StitchError, match="prefer is 'speed'"):
        translation_between(x, x, prefer="speed")  # type: ignore[arg-type]


def test_a_file_needs_a_folder_and_has_no_revision(tmp_path: Path) -> None:
    made = translation_between(*pairs(40, 3, 3))
    with pytest.raises(StitchError, match=r"there is no folder .*missing to write made.st into: make it first"):
        made.save(tmp_path / "missing" / "made.st")
    made.save(tmp_path / "made.st")
    np.save(tmp_path / "old.npy", randn(5, 3).numpy())
    assert translate_files(tmp_path / "made.st", tmp_path / "old.npy", tmp_path / "new", progress=False).rows == 5
    with pytest.raises(StitchError, match="is a file, which has no revision v1"):
        translate_files(tmp_path / "made.st", tmp_path / "old.npy", tmp_path / "new", revision="v1")


def assert_reports_agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.pop("verdict") == expected["verdict"]
    expected = {name: value for name, value in expected.items() if name != "verdict"}
    assert found.pop("recall_of_ten") == pytest.approx(expected.pop("recall_of_ten"))
    assert found == pytest.approx(expected)


@preferences
def test_the_shell_pairs_files_and_translates_by_them(prefer: str, tmp_path: Path) -> None:
    old, new = pairs(80, 4, 5)
    new = functional.normalize(new, dim=1)
    np.save(tmp_path / "old.npy", old.numpy())
    save_file({"vectors": new}, tmp_path / "new.safetensors")
    files = [str(tmp_path / name) for name in ("new.safetensors", "old.npy", "to-old.safetensors")]
    how = ["--translates", "queries", "--prefer", prefer, "--column", "vectors"]
    done = CliRunner().invoke(app, ["pair", *files, *how, "--json"])
    assert done.exit_code == 0, done.output
    expected = translation_between(new, old, translates="queries", prefer=prefer)  # type: ignore[arg-type]
    assert_reports_agree(json.loads(done.output), expected.report)
    assert SearchTranslation.load(files[-1])(new).equal(expected(new))
    shown = CliRunner().invoke(app, ["pair", *files, *how]).output
    assert "search with translated queries" in " ".join(shown.split())
    assert f"{expected.report['recall']:.4g}" in shown
    assert expected.report["verdict"]["grade"] in shown
    assert CliRunner().invoke(app, ["inspect", files[-1]]).output == shown.partition("Next:")[0]
    failed = CliRunner().invoke(app, ["pair", files[0], files[0], files[2]])
    assert failed.exit_code == 1
    assert "has no 'latents'" in str(failed.exception or failed.output)


KINDS = {
    "a tensor": (lambda rows: rows, torch.Tensor),
    "a numpy array": (lambda rows: rows.numpy(), np.ndarray),
    "a list": (lambda rows: rows.tolist(), list),
}


@pytest.mark.parametrize("kind", KINDS)
def test_latents_come_back_as_what_they_were_given(kind: str) -> None:
    made = translation_between(*pairs(80, 4, 5), metric="l2")
    asked, (give, what) = randn(30, 4, seed=3), KINDS[kind]
    for given, expected in ((asked, made(asked)), (asked[0], made(asked)[0])):
        found = made(give(given))
        assert isinstance(found, what)
        torch.testing.assert_close(torch.as_tensor(found), expected)
    assert made(asked.numpy().astype(np.float16)).dtype == np.float16
    with pytest.raises(StitchError, match="expected"):
        made(give(asked[:, :3]))


def test_a_translation_says_what_it_is() -> None:
    old, new = pairs(400, 16, 24)
    made = translation_between(old, new, models=("me/old", "me/new"))
    report = made.report
    assert repr(made) == (
        f"SearchTranslation(documents, me/old to me/new, 16 to 24 wide, linear; recall {report['recall']:.3f} by "
        f"cosine among 79 documents, by the old encoder {report['recall_untranslated']:.3f}; 400 pairs)"
    )
    bare = SearchTranslation(translation_between(old, new, prefer="auto").translation, translates="queries", report={})
    assert repr(bare).startswith("SearchTranslation(queries, an encoder to an encoder, 16 to 24 wide")


def test_it_is_pushed_and_loaded_with_a_card(hub: HubServer, tmp_path: Path) -> None:
    old, new = pairs(400, 16, 24)
    made = translation_between(old, new, models=("me/old", "me/new"), metric="l2")
    made.push_to_hub("alice/old-to-new")
    found = SearchTranslation.from_pretrained("alice/old-to-new")
    assert found(old).equal(made(old))
    assert (found.report, found.metric, found.source, found.target) == (
        made.report,
        made.metric,
        made.source,
        made.target,
    )
    card = ModelCard.load("alice/old-to-new").text
    assert "# From old to the space of new" in card
    assert 'SearchTranslation.from_pretrained("alice/old-to-new")' in card
    assert made.report["verdict"]["reason"] in card
    np.save(tmp_path / "old.npy", old.numpy())
    assert translate_files("alice/old-to-new", tmp_path / "old.npy", tmp_path / "new", progress=False).rows == 400
    assert np.allclose(np.load(tmp_path / "new" / "old.npy"), made(old.numpy()), atol=1e-5)
    made.save(tmp_path / "made.safetensors")
    assert CliRunner().invoke(app, ["push", str(tmp_path / "made.safetensors"), "alice/again"]).exit_code == 0
    assert SearchTranslation.from_pretrained("alice/again")(old).equal(made(old))
    assert "# From old to the space of new" in ModelCard.load("alice/again").text
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(StitchError, match="holds a model of type None, which saving there would spoil"):
        made.save_pretrained(tmp_path / "model")
    with pytest.raises(StitchError, match=r"has no file translation\.safetensors"):
        SearchTranslation.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("noise", "grade"), [(0.3, {"documents": "move", "queries": "translate queries"}), (8.0, "encode anew")]
)
@pytest.mark.parametrize("translates", ["documents", "queries"])
def test_the_verdict_follows_what_is_found(translates: Any, noise: float, grade: Any) -> None:
    """A new space that is a stretched old one and noise, of which an encoder of before knows nothing."""
    old = randn(1000, 16, seed=1)
    new = old * torch.logspace(0, 1, 16) @ torch.linalg.qr(randn(16, 16))[0] + noise * randn(1000, 16, seed=2)
    sides = (old, new) if translates == "documents" else (new, old)
    verdict = translation_between(*sides, translates=translates).report["verdict"]
    assert verdict["grade"] == (grade if isinstance(grade, str) else grade[translates])
    assert "larger index" in verdict["larger_index"]


def test_a_gain_that_is_not_sure_is_no_reason_to_move() -> None:
    kept = advise(0.62, 0.60, 0.02, translates="documents", documents=99)
    assert kept["grade"] == "keep the old encoder"
    assert "a gain of +0.020 ± 0.020, which may be none" in kept["reason"]
    assert advise(0.66, 0.60, 0.02, translates="documents", documents=99)["grade"] == "move"
    assert advise(0.49, 0.30, 0.02, translates="documents", documents=99)["grade"] == "encode anew"


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> None:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = dict(opened.metadata())
    change(tensors, metadata)
    save_file(tensors, file, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: tensors["weight"].mul_(2), "is damaged or was altered"),
        (lambda tensors, metadata: tensors.pop("bias"), "is damaged or was altered"),
        (lambda tensors, metadata: tensors.update(centre=torch.zeros(3)), "is damaged or was altered"),
        (lambda tensors, metadata: metadata.clear(), "is no file of SearchTranslation.save"),
        (lambda tensors, metadata: metadata.update(search_translation="{"), "is damaged or was altered"),
        (lambda tensors, metadata: metadata.update(format_version="9"), "has format version 9"),
    ],
)
def test_a_damaged_file_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    translation_between(*pairs(40, 4, 5)).save(file)
    rewritten(file, change)
    with pytest.raises(StitchError, match=message):
        SearchTranslation.load(file)


def test_a_file_that_is_not_there_or_cut_off_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    with pytest.raises(StitchError, match=r"made.safetensors is not a whole file of a translation for search"):
        translate_files(file, tmp_path, tmp_path / "out")
    translation_between(*pairs(40, 4, 5)).save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StitchError, match="is not a whole file of a translation for search"):
        translate_files(str(file), tmp_path, tmp_path / "out")


def shuffled(rows: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5))
    return torch.cat([rows[:count][order], rows[count:]])


@pytest.mark.parametrize("translates", ["documents", "queries"])
@pytest.mark.parametrize(
    "spoil",
    [lambda rows: shuffled(rows, len(rows)), lambda rows: rows.roll(1, 0), lambda rows: shuffled(rows, len(rows) // 2)],
    ids=["shuffled", "off by one", "half of them"],
)
def test_pairs_that_do_not_correspond_are_refused(
    spoil: Callable[[torch.Tensor], torch.Tensor], translates: Any
) -> None:
    old, new = pairs(400, 16, 24)
    with pytest.raises(StitchError, match=r"of the pairs do not correspond.*Give latents of the same inputs, row for"):
        translation_between(old, spoil(new), translates=translates)


def test_some_pairs_that_do_not_correspond_are_told(caplog: pytest.LogCaptureFixture) -> None:
    old, new = pairs(400, 16, 24)
    assert translation_between(old, new).report["mismatched"] < 0.05
    assert not caplog.records
    report = translation_between(old, shuffled(new, 60)).report
    assert report["mismatched"] == pytest.approx(0.15, abs=0.06)
    assert "of the pairs do not correspond" in caplog.text


def test_rows_are_paired_by_ids() -> None:
    old, new = pairs(400, 16, 24)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(7)).tolist()
    ids = [f"document {row}" for row in range(400)], [f"document {row}" for row in order] + ["of no source"]
    found = translation_between(old, torch.cat([new[order], new[:1]]), ids=ids)
    expected = translation_between(old, new)
    assert found.translation.weight.equal(expected.translation.weight)
    assert found.report == expected.report
    for wrong, message in {
        (("a",) * 400, tuple(ids[1])): r"id 'a' of the source stands in rows 0 and 1",
        (tuple(ids[0][:-1]), tuple(ids[1])): "the source has 400 rows and 399 ids: expected one id a row",
        (tuple(range(400)), tuple(ids[1])): "source and target have no id in common",
    }.items():
        with pytest.raises(StitchError, match=message):
            translation_between(old, torch.cat([new[order], new[:1]]), ids=wrong)


def test_few_pairs_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert translation_between(*pairs(40, 4, 5)).report["pairs"] == 40
    assert "40 pairs are few, and what is expected of them is known to ± 0." in caplog.text


def found_by(metric: str, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    near = {"l2": -torch.cdist(queries, documents), "ip": queries @ documents.T}
    near["cosine"] = functional.normalize(queries, dim=1) @ functional.normalize(documents, dim=1).T
    return near[metric].topk(10).indices


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("translates", ["documents", "queries"])
def test_what_is_told_is_of_the_metric_that_the_index_searches_by(metric: Any, translates: Any) -> None:
    """Latents whose norms differ by a lot."""
    old, new = pairs(3000, 16, 24, noise=1.5)
    norms = 0.3 + torch.rand(3000, 1, generator=torch.Generator().manual_seed(6))
    old, new = norms * old, norms * new
    sides = (old, new) if translates == "documents" else (new, old)
    made = translation_between(*(side[:1000] for side in sides), translates=translates, metric=metric)
    assert made.metric == made.report["metric"] == metric
    nearest, count, shares = made.report["nearest"], made.report["documents"], []
    for start in range(1000, 2000, count):
        rest, ask = ([side[rows] for side in sides] for rows in (slice(start, start + count), slice(2000, None)))
        if translates == "documents":
            wanted, found = found_by(metric, ask[1], rest[1]), found_by(metric, ask[1], made(rest[0]))
        else:
            wanted, found = found_by(metric, ask[0], rest[0]), found_by(metric, made(ask[0]), rest[1])
        hits = wanted[:, :nearest, None] == found[:, None, :nearest]
        shares.append(float(hits.any(-1).double().mean()))
    assert made.report["recall"] == pytest.approx(sum(shares) / len(shares), abs=0.05)


def test_a_file_keeps_metric_and_norm(tmp_path: Path) -> None:
    old, new = pairs(400, 16, 24)
    made = translation_between(old, new, metric="l2")
    made.row_norm = 2.5
    made.save(tmp_path / "made.safetensors")
    found = SearchTranslation.load(tmp_path / "made.safetensors")
    assert (found.metric, found.row_norm, found.unit, found.report) == ("l2", 2.5, False, made.report)
    assert (found(old).norm(dim=1) - 2.5).abs().max() < 1e-4
    with pytest.raises(StitchError, match="metric is 'dot': it has to be one of cosine, l2, ip"):
        translation_between(old, new, metric="dot")  # type: ignore[arg-type]


def with_row(row: Any) -> list[Any]:
    rows: list[Any] = list(pairs(64, 4, 4)[0].numpy())
    rows[7] = row
    return rows


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (with_row(None), r"row 7 of the source is None, as of a failed encoding: leave such pairs out"),
        (with_row([1.0, 2.0]), r"row 7 of the source has shape \(2,\), and row 0 has 4: expected rows of floats"),
        (with_row([1.0, None, 2.0, 3.0]), "row 7 of the source has values that are not numbers"),
        (with_row(b"1234"), r"row 7 of the source is bytes: expected rows of floats, \(k, d\); np.frombuffer"),
        (with_row("a text"), "row 7 of the source is str: expected rows of floats.*encode texts first"),
        (with_row(1.0), r"row 7 of the source has shape \(\)"),
        (with_row(np.ones(4) * 1j), "row 7 of the source has complex numbers"),
        (with_row([1.0, float("nan"), 2.0, 3.0]), "row 7 of the source has not-a-number or infinite values"),
        (["a text"] * 64, "row 0 of the source is str"),
        ("latents.npy", "the source is a str: expected rows of floats"),
        (np.ones((64, 4), complex), "the source has complex numbers"),
        (np.ones((64, 4), np.uint8), "the source is torch.uint8, quantised or packed bits"),
        (torch.ones(64, 4, dtype=torch.int8), "the source is torch.int8, quantised or packed bits"),
        (np.array([["a", "b"]] * 64), "the source has values that are not numbers"),
        ([[1.0, 2.0]] * 32 + [[1.0]] * 32, r"row 32 of the source has shape \(1,\), and row 0 has 2"),
    ],
)
def test_what_is_no_latent_is_told_with_its_row(side: Any, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        translation_between(side, pairs(64, 4, 4)[1])
    with pytest.raises(StitchError, match=message.replace("source", "target")):
        translation_between(pairs(64, 4, 4)[1], side)


def test_columns_of_tables_are_latents() -> None:
    old, new = pairs(64, 4, 4)
    expected = translation_between(old, new).report
    column = pa.array(old.tolist())
    frame = pa.table({"latents": column}).to_pandas()
    for side in (column, pa.chunked_array([column]), frame["latents"], frame["latents"].tolist(), old.double().numpy()):
        assert translation_between(side, new).report == expected


def test_the_shell_pairs_by_ids_for_a_metric(tmp_path: Path) -> None:
    old, new = pairs(400, 8, 8)
    ids = list(range(400))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(7)).tolist()
    floats = pa.list_(pa.float32())
    pq.write_table(pa.table({"latents": pa.array(old.tolist(), floats), "id": ids}), tmp_path / "old.parquet")
    pq.write_table(pa.table({"latents": pa.array(new[order].tolist(), floats), "id": order}), tmp_path / "new.parquet")
    arguments = [str(tmp_path / name) for name in ("old.parquet", "new.parquet", "made.safetensors")]
    done = CliRunner().invoke(app, ["pair", *arguments, "--ids", "id", "--metric", "l2", "--json"])
    assert done.exit_code == 0, done.output
    assert_reports_agree(json.loads(done.stdout), translation_between(old, new, metric="l2").report)
    failed = CliRunner().invoke(app, ["pair", *arguments])
    assert "of the pairs do not correspond" in str(failed.exception)
