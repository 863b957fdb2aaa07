from dataclasses import replace

import pytest
import torch
from spaces import clusters, gaussian, isometry
from torch.nn.functional import normalize
from torch.testing import assert_close

from hf_relstitch.core import scoring as retrieval
from hf_relstitch.core.cross_validation import FOLDS, _assigned_folds, folds_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.measures import held_out_translations
from hf_relstitch.core.scoring import FIRST_LENGTH, LENGTHS, SearchJudge
from hf_relstitch.core.selection import choose_settings
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
    choice = choose_settings(x, y, translates=translates)
    assert choice.criterion == "recall"
    assert choice.score > 0.9
    assert torch.cosine_similarity(held_out_translations(x, y, settings=choice.settings), y).min() > 0.99


@roles
@pytest.mark.parametrize("prefer", ["linear", "accuracy"])
def test_every_score_is_that_of_fits_on_the_other_folds(noisy, translates, prefer, monkeypatch):
    """Against the slow way: fit on four folds, bring the fifth to least squares' length, and search in it."""
    monkeypatch.setattr(retrieval, "NEAREST", 0.05)
    x, y = noisy
    fold_of = _assigned_folds(len(x), seed=3)
    choice = choose_settings(x, y, translates=translates, prefer=prefer, seed=3)
    new = y if translates == "documents" else x
    for candidate in [each for each in choice.candidates if not each.settings.identity][::17]:
        away, centres = torch.empty_like(y), torch.empty_like(y)
        for fold in range(FOLDS):
            rows = fold_of == fold
            centres[rows] = centre = y[~rows].mean(0)
            made = fit(x[~rows], y[~rows], settings=candidate.settings)(x[rows]) - centre
            norms = (y[~rows] - centre).norm(dim=1).mean(), made.norm(dim=1).mean()
            away[rows] = made * norms[0] / norms[1]
        length = (away * (y - centres)).sum() / away.square().sum()
        translated = centres + FIRST_LENGTH[translates] * length * away
        asked, stored = (y, translated) if translates == "documents" else (translated, y)
        shares = []
        for fold in range(FOLDS):
            rows = (fold_of == fold).nonzero()[:, 0]
            for row in range(len(rows)):
                wanted = found_by(new[rows], new[rows], 3, row)
                shares.append(len(wanted & found_by(asked[rows], stored[rows], 3, row)) / 3)
        assert candidate.score == pytest.approx(sum(shares) / len(shares), abs=1e-9), candidate


@roles
def test_the_length_is_the_one_that_finds_most(noisy, translates, monkeypatch):
    x, y = noisy
    folds = folds_of(x, y, scale="carry", seed=0)
    judge, choice = SearchJudge.of(folds, translates), choose_settings(x, y, translates=translates, folds=folds)

    def recall(length):
        how = replace(choice.settings, stretch=length)
        return float(judge.recalls(held_out_translations(x, y, settings=how, folds=folds)).mean())

    monkeypatch.setattr(retrieval, "SEARCH_LENGTHS", (1.0,))
    one = choose_settings(x, y, translates=translates, folds=folds).settings.stretch
    recalls = [recall(one * length) for length in LENGTHS]
    assert min(recalls) < max(recalls) == recall(choice.settings.stretch)


def test_what_is_to_be_found_is_what_the_new_encoder_finds(noisy):
    """The documents' target, and the queries' source: another old encoder changes nothing of it."""
    _, y = noisy
    for translates, sides in {"documents": (gaussian(8, 300, 16), y), "queries": (y, gaussian(8, 300, 16))}.items():
        judge = SearchJudge.of(folds_of(*sides, scale="carry", seed=0), translates)
        new = normalize(y, dim=1)
        assert_close(judge.shares(new, new).mean(), torch.ones((), dtype=y.dtype))
        assert judge.untranslated() < 0.1
        assert judge.num_documents == 59
        assert judge.num_nearest == 1


def test_the_recall_of_the_old_encoder_is_that_of_its_own_search(noisy):
    x, y = noisy
    there = SearchJudge.of(folds_of(x, y, scale="carry", seed=0), "documents")
    back = SearchJudge.of(folds_of(y, x, scale="carry", seed=0), "queries")
    assert 0.1 < there.untranslated() < 0.9
    assert there.untranslated() == back.untranslated() == pytest.approx(float(there.unchanged(x).mean()), abs=0.2)


@roles
def test_what_is_foretold_is_found_by_new_queries_among_new_documents(translates):
    """Told from 1,000 pairs, measured among as many other documents as one is told for."""
    mixed, noise = isometry(5, 24), gaussian(6, 2200, 24)
    x = gaussian(1, 2200, 24) * torch.linspace(0.3, 3, 24).double()
    y = x @ mixed + 1.2 * noise + 2
    old, new = (x, y) if translates == "documents" else (y, x)
    source, target = (old, new) if translates == "documents" else (new, old)
    folds = folds_of(source[:1000], target[:1000], scale="carry", seed=0)
    judge, choice = (
        SearchJudge.of(folds, translates),
        choose_settings(source[:1000], target[:1000], translates=translates),
    )
    held_out = held_out_translations(source[:1000], target[:1000], settings=choice.settings, folds=folds)
    told = float(judge.recalls(held_out).mean())
    made = fit(source[:1000], target[:1000], settings=choice.settings)
    shares = []
    for start in range(1000, 2200, judge.num_documents + 1):
        rows = slice(start, min(2200, start + judge.num_documents + 1))
        asked, stored = (new[rows], made(old[rows])) if translates == "documents" else (made(new[rows]), old[rows])
        for row in range(len(asked)):
            wanted = found_by(new[rows], new[rows], judge.num_nearest, row)
            shares.append(len(wanted & found_by(asked, stored, judge.num_nearest, row)) / judge.num_nearest)
    assert told == pytest.approx(sum(shares) / len(shares), abs=0.03)


def test_some_of_many_anchors_are_searched_for(noisy, monkeypatch):
    """Among all, whatever order they came in."""
    x, y = noisy
    folds = folds_of(x, y, scale="carry", seed=0)
    every = SearchJudge.of(folds, "documents")
    monkeypatch.setattr(retrieval, "QUERIES", 20)
    some = SearchJudge.of(folds, "documents")
    assert some.num_documents == every.num_documents == 59
    for rows, few, wanted, found in zip(every.rows, some.rows, every.wanted, some.wanted, strict=True):
        assert rows.equal(few)
        assert not rows.equal(rows.sort().values)
        assert len(found) == 20
        assert found.equal(wanted[:20])
    recalls = every.recalls(x).reshape(5, -1)[:, :20]
    assert_close(some.recalls(x), recalls.flatten())


def test_latents_that_have_no_relation_are_translated_all_the_same():
    choice = choose_settings(gaussian(1, 60, 5), gaussian(2, 60, 4), translates="documents")
    assert choice.settings.stretch > 0
    assert choice.score < 0.3


def test_another_role_is_refused(noisy, shapes_unchecked):
    with pytest.raises(StitchError, match="translates is 'index': it has to be 'documents' or 'queries'"):
        choose_settings(*noisy, translates="index")
