from dataclasses import replace

import pytest
import torch
from spaces import clusters, gaussian, isometry
from torch.nn.functional import normalize
from torch.testing import assert_close

from hf_relstitch.core import scoring as retrieval
from hf_relstitch.core.cross_validation import SPLITS, _assign_splits, make_splits
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.measures import translate_held_out
from hf_relstitch.core.scoring import FIRST_SCALE, SEARCH_SCALES, RecallScorer
from hf_relstitch.core.selection import choose_for_search
from hf_relstitch.core.translation import fit

roles = pytest.mark.parametrize("translates", ["documents", "queries"])


@pytest.fixture
def noisy():
    """Two spaces that agree in part, the second around a centre that is far from 0."""
    x, _ = clusters(count=300)
    return x, 3 * x @ isometry(5, 16) + 9 + 4 * gaussian(6, 300, 16)


def found_by(queries, documents, count, row):
    """What a search finds for one row among the others, the slow way."""
    order = torch.cosine_similarity(queries[row], documents, dim=-1).argsort(descending=True).tolist()
    return set([each for each in order if each != row][:count])


@roles
def test_an_exact_relation_finds_all(translates):
    x = gaussian(1, 200, 16)
    y = 3 * x @ isometry(5, 16)
    choice = choose_for_search(x, y, translates=translates)
    assert choice.criterion == "recall"
    assert choice.score > 0.9
    assert torch.cosine_similarity(translate_held_out(x, y, settings=choice.settings), y).min() > 0.99


@roles
@pytest.mark.parametrize("prefer", ["linear", "auto"])
def test_every_score_is_that_of_fits_on_the_other_folds(noisy, translates, prefer, monkeypatch):
    """Against the slow way: fit on four folds, bring the fifth to the norm of least squares, and search in it."""
    monkeypatch.setattr(retrieval, "NEAREST", 0.05)
    x, y = noisy
    split_of = _assign_splits(len(x), seed=0)
    choice = choose_for_search(x, y, translates=translates, prefer=prefer)
    new = y if translates == "documents" else x
    for candidate in [each for each in choice.candidates if not each.settings.identity][::17]:
        away, centres = torch.empty_like(y), torch.empty_like(y)
        for split in range(SPLITS):
            rows = split_of == split
            centres[rows] = centre = y[~rows].mean(0)
            made = fit(x[~rows], y[~rows], settings=candidate.settings)(x[rows]) - centre
            norms = (y[~rows] - centre).norm(dim=1).mean(), made.norm(dim=1).mean()
            away[rows] = made * norms[0] / norms[1]
        length = (away * (y - centres)).sum() / away.square().sum()
        translated = centres + FIRST_SCALE[translates] * length * away
        asked, stored = (y, translated) if translates == "documents" else (translated, y)
        shares = []
        for split in range(SPLITS):
            rows = (split_of == split).nonzero()[:, 0]
            for row in range(len(rows)):
                wanted = found_by(new[rows], new[rows], 3, row)
                shares.append(len(wanted & found_by(asked[rows], stored[rows], 3, row)) / 3)
        assert candidate.score == pytest.approx(sum(shares) / len(shares), abs=1e-9), candidate


@roles
def test_the_output_scale_is_the_one_that_serves_best(noisy, translates, monkeypatch):
    x, y = noisy
    splits = make_splits(x, y, norm="keep", seed=0)
    scorer, choice = (
        RecallScorer.from_splits(splits, translates),
        choose_for_search(x, y, translates=translates, splits=splits),
    )

    def fitness(output_scale):
        how = replace(choice.settings, output_scale=output_scale)
        return scorer.fitness(translate_held_out(x, y, settings=how, splits=splits))

    monkeypatch.setattr(retrieval, "SEARCH_SCALES", (1.0,))
    one = choose_for_search(x, y, translates=translates, splits=splits).settings.output_scale
    values = [fitness(one * length) for length in SEARCH_SCALES]
    assert min(values) < max(values) == fitness(choice.settings.output_scale)


def test_an_index_with_half_of_its_documents_encoded_anew_counts_as_much(noisy):
    """By the inner product, latents of another norm find each other as before, and hide the new ones or are hidden."""
    x, y = noisy
    splits = make_splits(x, y, norm="keep", seed=0)
    scorer = RecallScorer.from_splits(splits, "documents", metric="ip")
    assert scorer.fitness(y) == 1
    for factor in (1e-3, 1e3):
        assert scorer.recalls(factor * y).mean() == 1
        assert 0.6 < scorer.fitness(factor * y) < 0.9
    queries = RecallScorer.from_splits(splits, "queries", metric="ip")
    assert queries.fitness(y) == float(queries.recalls(y).mean())


def test_what_is_to_be_found_is_what_the_new_encoder_finds(noisy):
    """The documents' target, and the queries' source: another old encoder changes nothing of it."""
    _, y = noisy
    for translates, sides in {"documents": (gaussian(8, 300, 16), y), "queries": (y, gaussian(8, 300, 16))}.items():
        scorer = RecallScorer.from_splits(make_splits(*sides, norm="keep", seed=0), translates)
        new = normalize(y, dim=1)
        assert_close(scorer.shares(new, new).mean(), torch.ones((), dtype=y.dtype))
        assert scorer.untranslated().mean() < 0.1
        assert scorer.num_documents == 59
        assert scorer.num_nearest == 1


def test_the_recall_of_the_old_encoder_is_that_of_its_own_search(noisy):
    x, y = noisy
    there = RecallScorer.from_splits(make_splits(x, y, norm="keep", seed=0), "documents")
    back = RecallScorer.from_splits(make_splits(y, x, norm="keep", seed=0), "queries")
    recall = float(there.untranslated().mean())
    assert 0.1 < recall < 0.9
    assert there.untranslated().equal(back.untranslated())
    assert recall == pytest.approx(float(there.unchanged(x).mean()), abs=0.2)


@roles
def test_what_is_expected_is_found_by_new_queries_among_new_documents(translates):
    """Told from 1,000 pairs, measured among as many other documents as one is told for."""
    mixed, noise = isometry(5, 24), gaussian(6, 2200, 24)
    x = gaussian(1, 2200, 24) * torch.linspace(0.3, 3, 24).double()
    y = x @ mixed + 1.2 * noise + 2
    old, new = (x, y) if translates == "documents" else (y, x)
    source, target = (old, new) if translates == "documents" else (new, old)
    splits = make_splits(source[:1000], target[:1000], norm="keep", seed=0)
    scorer, choice = (
        RecallScorer.from_splits(splits, translates),
        choose_for_search(source[:1000], target[:1000], translates=translates),
    )
    held_out = translate_held_out(source[:1000], target[:1000], settings=choice.settings, splits=splits)
    told = float(scorer.recalls(held_out).mean())
    made = fit(source[:1000], target[:1000], settings=choice.settings)
    shares = []
    for start in range(1000, 2200, scorer.num_documents + 1):
        rows = slice(start, min(2200, start + scorer.num_documents + 1))
        asked, stored = (new[rows], made(old[rows])) if translates == "documents" else (made(new[rows]), old[rows])
        for row in range(len(asked)):
            wanted = found_by(new[rows], new[rows], scorer.num_nearest, row)
            shares.append(len(wanted & found_by(asked, stored, scorer.num_nearest, row)) / scorer.num_nearest)
    assert told == pytest.approx(sum(shares) / len(shares), abs=0.03)
    for size, recall in scorer.recall_of_ten(held_out).items():
        shares = []
        for start in range(1000, 2200 - int(size) + 1, int(size)):
            rows = slice(start, start + int(size))
            asked, stored = (new[rows], made(old[rows])) if translates == "documents" else (made(new[rows]), old[rows])
            for row in range(min(200, int(size))):
                wanted = found_by(new[rows], new[rows], 10, row)
                shares.append(len(wanted & found_by(asked, stored, 10, row)) / 10)
        assert recall == pytest.approx(sum(shares) / len(shares), abs=0.03), size


def test_sizes_of_an_index_are_those_that_the_pairs_allow(noisy):
    x, y = noisy
    for role, parts in (("documents", 1), ("queries", 5)):
        splits = make_splits(x, y, norm="keep", seed=0)
        most = len(x) // parts
        sizes = [str(size) for size in (most // 4, most // 2, most) if size >= 50]
        assert list(RecallScorer.from_splits(splits, role).recall_of_ten(y)) == sizes


def test_some_of_many_anchors_are_searched_for(noisy, monkeypatch):
    """Among all, whatever order they came in."""
    x, y = noisy
    splits = make_splits(x, y, norm="keep", seed=0)
    every = RecallScorer.from_splits(splits, "documents")
    monkeypatch.setattr(retrieval, "QUERIES", 20)
    some = RecallScorer.from_splits(splits, "documents")
    assert some.num_documents == every.num_documents == 59
    for rows, few, wanted, found in zip(every.rows, some.rows, every.wanted, some.wanted, strict=True):
        assert rows.equal(few)
        assert not rows.equal(rows.sort().values)
        assert len(found) == 20
        assert found.equal(wanted[:20])
    recalls = every.recalls(x).reshape(5, -1)[:, :20]
    assert_close(some.recalls(x), recalls.flatten())


def test_latents_that_have_no_relation_are_translated_all_the_same():
    choice = choose_for_search(gaussian(1, 60, 5), gaussian(2, 60, 4), translates="documents")
    assert choice.settings.output_scale > 0
    assert choice.score < 0.3


def test_another_role_is_refused(noisy, shapes_unchecked):
    with pytest.raises(StitchError, match="translates is 'index': it has to be 'documents' or 'queries'"):
        choose_for_search(*noisy, translates="index")
