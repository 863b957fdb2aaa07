"""Translations for a vector index, of its documents or of its queries, and the expected recall of searches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import logging

from hf_relstitch.bulk.pairs import mismatched, pair_by_ids, read_side
from hf_relstitch.configuration_relative_stitcher import rename_settings
from hf_relstitch.core.cross_validation import make_splits
from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.core.measures import translate_held_out
from hf_relstitch.core.options import Metric, Prefer, Role
from hf_relstitch.core.relative import check_latents
from hf_relstitch.core.scoring import RecallScorer, advise, check_role
from hf_relstitch.core.selection import check_prefer, choose_for_search
from hf_relstitch.core.translation import KernelTranslation, Translation, TranslationSettings, empty_translation, fit
from hf_relstitch.data.provenance import NOT_KNOWN, STORED, Provenance
from hf_relstitch.data.report import Report
from hf_relstitch.encoders.encoder import Encoder, to_encoder
from hf_relstitch.encoders.sentence_transformers_folder import to_sentence_transformer, translation_layers
from hf_relstitch.hub.cards import write_card
from hf_relstitch.hub.files import TRANSLATION, atomic_folder, check_kind, read_tensors, write_tensors
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.hub.repo import locate, push_folder
from hf_relstitch.model.anchors import MIN_ANCHORS, AnchorSet
from hf_relstitch.version import __version__

FORMAT_VERSION = 3
"""Format 1 had other names of settings; 1 and 2 had the pooling of a provenance as one text."""
KIND = "search_translation"
TRANSLATION_FILE = TRANSLATION.last
"""The translation's file in a folder or repo."""

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

FEW_PAIRS = 300
"""With fewer pairs the old encoder finds more than a translation does."""
MOST_MISMATCHED, TOLD_MISMATCHED, SURE = 0.2, 0.1, 2.5
"""Share of pairs that do not correspond which is refused, once it is sure by so many standard errors, and said."""
FACTORS = (1.0, 0.7, 1.4, 0.5, 2.0)
"""Norms that translated latents may get, relative to the mean norm of the target."""
UNIT = 1e-2
"""Largest distance from 1 of the norms of normalised latents, which may be in bfloat16."""


class SearchTranslation(nn.Module):
    """Translate latents for a vector index: its documents, or the queries to it.

    Attributes:
        translation: source latents to target latents.
        translates: "documents" or "queries".
        row_norm: the norm of each translated latent: 1 if all latents of the fit have norm 1; None keeps each latent's
            own norm.
        metric: the metric that it was chosen and reported for: "cosine", "l2", or "ip", the inner product.
        report: the expected results of a search by that metric, estimated on `pairs` held out of the fit. The new
            encoder finds the `nearest` documents among `documents`: `recall` is the share of them that a search with
            translations finds, with its `standard_error`; `recall_untranslated` is the share that the old encoder
            finds; `recall_by_chance` is the share by chance. `recall_of_ten` is the recall of the ten nearest by the
            number of documents, up to k, or k/5 for queries. `mismatched` is the share of pairs that seem not to
            correspond. `pairs` is k, the number of pairs. `verdict` says what to do, with the reason, and what is known
            of a larger index: "move", "translate queries", "keep the old encoder" or "encode anew".
        source, target: the encoders whose latents it translates from and to; None if they are not known.
    """

    def __init__(
        self,
        translation: Translation | KernelTranslation,
        *,
        translates: Role,
        unit: bool = False,
        row_norm: float | None = None,
        metric: Metric = "cosine",
        report: dict[str, Any],
        source: Provenance | None = None,
        target: Provenance | None = None,
    ) -> None:
        super().__init__()
        self.translation = translation
        self.translates = translates
        self.row_norm = 1.0 if unit else row_norm
        self.metric = metric
        self.report = Report(report)
        self.source = source
        self.target = target

    @property
    def unit(self) -> bool:
        """Tell if translated latents have norm 1; among these all metrics find the same neighbours."""
        return self.row_norm == 1

    @property
    def centre(self) -> Tensor:
        """Return the source's centre `(d_source,)`."""
        return self.translation.centre

    @property
    def bias(self) -> Tensor:
        """Return the vector that is added to each row, `(d_target,)`."""
        return self.translation.bias

    def __repr__(self) -> str:
        names = [origin.model_id if origin else "an encoder" for origin in (self.source, self.target)]
        kind = "linear" if gamma_of(self.translation) == 0 else f"kernel, gamma {gamma_of(self.translation):g}"
        sizes = f"{len(self.centre)} to {len(self.bias)} wide, {kind}"
        report = self.report
        found = (
            f"; recall {report['recall']:.3f} by {self.metric} among {report['documents']} documents, by the old "
            f"encoder {report['recall_untranslated']:.3f}; {report['pairs']} pairs"
            if {"recall", "documents", "recall_untranslated", "pairs"} <= report.keys()
            else ""
        )
        return f"{type(self).__name__}({self.translates}, {names[0]} to {names[1]}, {sizes}{found})"

    def forward(self, x: Any) -> Any:
        """Translate latents `(n, d_source)` to latents `(n, d_target)`, or one latent `(d_source,)` to `(d_target,)`.

        A tensor gives a tensor, in its dtype; a numpy array gives an array, and a list of numbers or of rows a list.

        Raises:
            StitchError: `x` does not hold latents of this width.
        """
        if isinstance(x, list):
            return self.forward(np.asarray(x, dtype=np.float32)).tolist()
        if isinstance(x, np.ndarray):
            return self.forward(torch.from_numpy(x.copy()).to(self.bias.device)).cpu().numpy()
        if isinstance(x, Tensor) and x.ndim == 1:
            return self.forward(x[None])[0]
        check_latents(x, width=len(self.centre))
        if self.row_norm is None:
            return self.translation(x)
        wide = self.translation(x.to(torch.promote_types(x.dtype, torch.float32)))
        return (self.row_norm * functional.normalize(wide, dim=-1)).to(x.dtype)

    def after(self, encoder: Any, *, folder: str | Path | None = None, repo_id: str | None = None) -> Any:
        """Return a SentenceTransformer that encodes and then translates; write it to `folder` too if one is given.

        It gives this translation of the encoder's latents and runs without this package. The folder has a card, which
        shows `repo_id`. An encoder that is loaded here gets the prompt that the translation was fitted with.

        Args:
            encoder: the source's encoder: a folder, a Hub id, an `Encoder`, a transformers model or a
                SentenceTransformer.
            folder: where to write the model.
            repo_id: the repo id that the card shows.

        Raises:
            StitchError: the encoder is not the one that the translation was fitted to, or its latents have another
                width; the translation has a kernel (fit it with `prefer="linear"`); sentence-transformers has no module
                for a part of the encoder, or the `sentence-transformers` extra is not installed.

        Example:
            >>> to_old = translation_between(new_anchors, old_anchors, translates="queries")
            >>> to_old.after("me/new-encoder", folder="new-in-old-space").encode(["a query"]).shape
            (1, 384)
        """
        known = self.source if self.source and self.source.revision != NOT_KNOWN else None
        if known is not None and known.prompt is not None and isinstance(encoder, str | Path):
            encoder = Encoder.from_pretrained(str(encoder), prompt=known.prompt)
        encoder = to_encoder(encoder)
        if known is not None and (difference := known.difference(encoder.provenance)):
            raise StitchError(f"the translation was fitted to latents of another encoder ({difference}): give that one")
        return to_sentence_transformer(
            folder,
            model=encoder.model,
            processor=encoder.processor,
            pooling=encoder.pooling,
            layers=[encoder.after_pooling, *translation_layers(self.translation, row_norm=self.row_norm)],
            batching=encoder.batching,
            facts={
                "source": (known or encoder.provenance).to_dict(),
                "target": self.target and self.target.to_dict(),
                "translates": self.translates,
                "report": self.report,
            },
            metric=self.metric,
            prompts=encoder.prompts,
            repo_id=repo_id,
        )

    def save(self, file: str | Path) -> None:
        """Write a safetensors file, whole or not at all, which `load`, `move_table` and `translate_files` take."""
        write_tensors(file, self.translation.state_dict(), self._content(), kind=KIND, format_version=FORMAT_VERSION)

    def _content(self) -> dict[str, Any]:
        """Return what a file holds beside the tensors."""
        return {
            "translates": self.translates,
            "unit": self.unit,
            "row_norm": self.row_norm,
            "metric": self.metric,
            "report": self.report,
            "source": self.source and self.source.to_dict(),
            "target": self.target and self.target.to_dict(),
            "norm": self.translation.norm,
            "gamma": gamma_of(self.translation),
        }

    def save_pretrained(self, folder: str | Path, *, repo_id: str | None = None) -> None:
        """Write the translation's file and a card, which shows `repo_id`; a failure leaves the folder unchanged.

        With several processes only the main one writes.

        Raises:
            StitchError: the folder cannot be written, or holds something else.
        """
        check_kind(folder, TRANSLATION)
        if not accelerate_state().is_main_process:
            return
        with atomic_folder(folder, TRANSLATION) as written:
            self.save(written / TRANSLATION_FILE)
            content = self._content() | {"hf_relstitch_version": __version__}
            write_card(content, written, folder=folder, repo_id=repo_id)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push a translation for search",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        parent_commit: str | None = None,
    ) -> str:
        """Push the translation and its card as one commit, and return its address ("" but in the main process).

        Raises:
            StitchError: the Hub refuses or cannot be reached, or its branch is not at `parent_commit` (by default: has
                moved since this push began).
        """
        return push_folder(
            lambda folder, name: self.save_pretrained(folder, repo_id=name),
            repo_id,
            owned=TRANSLATION.owned,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )

    @classmethod
    def from_pretrained(cls, place: str | Path, *, revision: str | None = None, **options: Any) -> "SearchTranslation":
        """Load a folder that `save_pretrained` wrote, a repo that `push_to_hub` filled, or a file that `save` wrote.

        `options` are `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder`.

        Raises:
            StitchError: the translation is missing, damaged or of a newer format.

        Example:
            >>> SearchTranslation.from_pretrained("me/minilm-to-mpnet")(vectors).shape
            (1000, 768)
        """
        if Path(place).is_file():
            return cls.load(place)
        repo = locate(place, config=TRANSLATION_FILE, revision=revision, **options)
        if (file := repo.file(TRANSLATION_FILE)) is None:
            raise StitchError(
                f"{repo.place} has no file {TRANSLATION_FILE}: give the folder of a translation for search"
            )
        return cls.load(file)

    @classmethod
    def load(cls, file: str | Path) -> "SearchTranslation":
        """Read a file that `save` wrote.

        Raises:
            StitchError: the file does not exist, is damaged, or has a newer format.
        """
        with wrap_errors(f"{file} is not a whole file of a translation for search", "save it again"):
            tensors, content = read_tensors(
                file,
                kind=KIND,
                supported=FORMAT_VERSION,
                otherwise="is no file of SearchTranslation.save: of a stitched model give the folder",
            )
            content = rename_settings(content)
            settings = TranslationSettings(norm=content["norm"], gamma=content["gamma"])
            sizes = len(tensors.get("decoder", ())), len(tensors["centre"]), len(tensors["bias"])
            made = empty_translation(*sizes, settings=settings)
            made.load_state_dict(tensors, assign=True)
            return cls(
                made,
                translates=content["translates"],
                unit=content["unit"],
                row_norm=content.get("row_norm"),
                metric=content.get("metric", "cosine"),  # which files of before had not
                report=content["report"],
                **{side: Provenance.from_dict(content[side]) for side in ("source", "target") if content.get(side)},
            )


def gamma_of(translation: Translation | KernelTranslation) -> float:
    """Return γ of a kernel translation, and 0 of a linear one."""
    return translation.gamma if isinstance(translation, KernelTranslation) else 0.0


def translation_between(
    source: ArrayLike | AnchorSet,
    target: ArrayLike | AnchorSet,
    *,
    ids: tuple[Sequence[Any], Sequence[Any]] | None = None,
    translates: Role = "documents",
    prefer: Prefer = "linear",
    metric: Metric = "cosine",
    models: tuple[str | Provenance, str | Provenance] | None = None,
) -> SearchTranslation:
    """Fit a translation between two encoders' latents `(k, d_source)` and `(k, d_target)` of the same k inputs.

    It is for a vector index whose queries come from another encoder than its documents. It needs no head and no labels.
    The settings are chosen by how well translations of held-out rows serve a search by cosine (`RecallScorer`). Pass
    the latents exactly as the index stores and queries them. If all target latents have norm 1, so do translated
    latents, and all metrics find the same neighbours. Else translated latents have the target's mean norm. For "l2" and
    "ip" a search by that metric then chooses a factor to it, and whether all rows get the same norm. Rows of zeros and
    repeated rows are left out. A thousand rows take seconds, and four thousand are better. The `report` of the
    translation holds the expected recall.

    Args:
        source: latents to translate; with `translates="documents"`, the old encoder's latents. Two anchor sets are
            paired by their ids, and the translation then knows its encoders.
        target: latents of the space to translate to.
        ids: the ids of the source's rows and of the target's rows, which pair them; without ids, pairs are row for row.
        translates: "documents", stored vectors into the space of the new encoder's queries; "queries", the new
            encoder's queries into the space of the stored documents.
        prefer: "linear", one matrix; "auto", also with a kernel, which finds more and costs `k·(d_source + d_target)`
            a row.
        metric: the metric of the index's searches; for LanceDB and Chroma it is "l2" by default.
        models: the names of the source's and the target's encoder, for the record; or their `provenance`.

    Raises:
        StitchError: the two sides have different numbers of rows, too few rows, rows that are not finite or all the
            same, or rows that do not correspond; `translates`, `prefer` or `metric` has an unknown value.
    """
    check_role(translates)
    check_prefer(prefer)
    if metric not in get_args(Metric):
        raise StitchError(f"metric is {metric!r}: it has to be one of {', '.join(get_args(Metric))}")
    if isinstance(source, AnchorSet) and isinstance(target, AnchorSet):
        source, target = source.sorted_by_id().intersect(target)
        models = models or (source.provenance, target.provenance)
        source, target = source.latents, target.latents
    elif isinstance(source, AnchorSet) or isinstance(target, AnchorSet):
        raise StitchError("one side only is an anchor set: give two anchor sets, or the latents of both sides")
    x, y = read_side(source, "source"), read_side(target, "target")
    if ids is not None:
        x, y = pair_by_ids(x, y, ids)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < MIN_ANCHORS:
        raise StitchError(
            f"the latents have shapes {tuple(x.shape)} and {tuple(y.shape)}: expected (k, d_source) and (k, d_target) "
            f"with a k of {MIN_ANCHORS} or more, row for row of the same inputs"
        )
    given = len(x)
    x, y = _without_repeats(x, y)
    if len(x) < MIN_ANCHORS:
        raise StitchError(
            f"of {given} pairs of latents {len(x)} are left without rows of zeros and rows that are there already: "
            f"expected {MIN_ANCHORS} or more"
        )
    splits = make_splits(x, y, norm="keep", seed=0)
    choice = choose_for_search(x, y, translates=translates, prefer=prefer, splits=splits)
    scorer = RecallScorer.from_splits(splits, translates)
    held_out = translate_held_out(splits[0].x, splits[0].y, settings=choice.settings, splits=splits)
    share = _check_pairs(held_out, splits[0].y, scorer.rows)
    unit = bool((torch.linalg.vector_norm(y, dim=-1) - 1).abs().max() < UNIT)
    found = scorer.recalls(held_out)
    factor, row_norm = 1.0, 1.0 if unit else None
    if metric != "cosine" and not unit:
        scorer = RecallScorer.from_splits(splits, translates, metric=metric)
        norm = float(y.norm(dim=1).mean())
        factor, is_level, held_out = _choose_norms(scorer, held_out * (norm / held_out.norm(dim=1).mean()))
        found = scorer.recalls(held_out)
        row_norm = factor * norm if is_level else None
    recall, error = float(found.mean()), float(found.std()) / len(found) ** 0.5
    each_untranslated = scorer.untranslated()
    untranslated = float(each_untranslated.mean())
    doubt = float((found - each_untranslated).std()) / len(found) ** 0.5
    report = {
        "recall": recall,
        "standard_error": error,
        "recall_untranslated": untranslated,
        "recall_by_chance": scorer.num_nearest / scorer.num_documents,
        "nearest": scorer.num_nearest,
        "documents": scorer.num_documents,
        "recall_of_ten": scorer.recall_of_ten(held_out),
        "metric": metric,
        "pairs": len(x),
        "mismatched": share,
        "verdict": advise(recall, untranslated, doubt, translates=translates, documents=scorer.num_documents),
    }
    if len(x) < FEW_PAIRS:
        logger.warning(
            f"{len(x)} pairs are few, and what is expected of them is known to ± {2 * error:.2f}: encode 1,000 or more"
        )
    made = _with_norms_of(factor * y, fit(x, y, settings=choice.settings), x)
    origins = [each if isinstance(each, Provenance) else Provenance(each, NOT_KNOWN, STORED) for each in models or ()]
    return SearchTranslation(
        made.float(),
        translates=translates,
        row_norm=row_norm,
        metric=metric,
        report=report,
        source=origins[0] if origins else None,
        target=origins[1] if origins else None,
    )


def translations_into(
    target: str | Path | AnchorSet, sources: Mapping[str, str | Path | AnchorSet], **settings: Any
) -> dict[str, SearchTranslation]:
    """Fit several encoders into one space, each through its own anchor set and the target's: N sets for N translations.

    Anchor sets are folders, Hub ids or `AnchorSet`s, and no model is loaded. `settings` are those of
    `translation_between`.

    Raises:
        StitchError: as in `translation_between`.

    Example:
        >>> into_old = translations_into("me/old-anchors", {"a": "me/a-anchors", "b": "me/b-anchors"})
        >>> into_old["a"].after("me/a").encode(["a text"]).shape
        (1, 384)
    """
    anchors = _load_anchors(target)
    return {name: translation_between(_load_anchors(source), anchors, **settings) for name, source in sources.items()}


def _load_anchors(anchors: str | Path | AnchorSet) -> AnchorSet:
    return anchors if isinstance(anchors, AnchorSet) else AnchorSet.from_pretrained(anchors)


def _choose_norms(scorer: RecallScorer, translated: Tensor) -> tuple[float, bool, Tensor]:
    """Choose a factor for translated latents of the target's mean norm, and whether all rows get the same norm.

    Returns:
        The factor, whether all rows get that norm, and the latents with it.
    """
    norm = float(translated.norm(dim=1).mean())
    level = functional.normalize(translated, dim=1) * norm
    ways = [(factor, is_level) for is_level in (False, True) for factor in FACTORS]
    made = {way: way[0] * (level if way[1] else translated) for way in ways}
    factor, is_level = max(ways, key=lambda way: scorer.fitness(made[way]))
    return factor, is_level, made[factor, is_level]


def _check_pairs(held_out: Tensor, target: Tensor, groups: Sequence[Tensor]) -> float:
    """Return the share of pairs that seem not to correspond, and warn of a share that is not an accident.

    Raises:
        StitchError: the share is so large that the translation would be noise.
    """
    share, error = mismatched(held_out, target, groups)
    what = f"about {min(share, 1):.0%} of the pairs do not correspond: held out of the fit, they are nowhere near"
    remedy = (
        "give latents of the same inputs, row for row, or the ids of both sides as ids=(source_ids, target_ids); "
        "Chroma's get(ids=…) does not keep the order that was asked for"
    )
    if share - SURE * error > MOST_MISMATCHED:
        raise StitchError(f"{what}. {remedy[0].upper()}{remedy[1:]}")
    if share > TOLD_MISMATCHED and share - error > 0:
        logger.warning(f"{what}: {remedy}")
    return min(share, 1.0)


def _without_repeats(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return pairs `(k, d_source)` and `(k, d_target)` without copies, and without zeros from a failed encoding.

    Copies would find each other, and the fit would know the rows that are held out of it.
    """
    kept = (x != 0).any(1) & (y != 0).any(1)
    x, y = x[kept], y[kept]
    rows = np.sort(np.unique(torch.cat([x, y], dim=1).numpy(), axis=0, return_index=True)[1])
    return x[rows], y[rows]


def _with_norms_of(
    target: Tensor, made: Translation | KernelTranslation, source: Tensor
) -> Translation | KernelTranslation:
    """Scale a translation, in place, so that its outputs have the target's mean norm, and return it."""
    factor = float(target.double().norm(dim=-1).mean() / made(source.double()).norm(dim=-1).mean())
    for tensor in (made.decoder if isinstance(made, KernelTranslation) else made.weight, made.bias):
        tensor.mul_(factor)
    return made
