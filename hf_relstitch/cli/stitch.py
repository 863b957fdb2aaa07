"""The commands that take anchors: stitching, and ranking encoders for a head."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hf_relstitch.cli.printing import AsJson, Device, print_json, print_table, show, use_device
from hf_relstitch.core.options import Prefer

Target = Annotated[str, typer.Argument(help="The classifier whose head is kept: folder or Hub id.")]
Cut = Annotated[str | None, typer.Option(help="Cut the target at this module, instead of at its last layer.")]
Anchors = Annotated[
    str,
    typer.Option(
        help="Unlabeled inputs: a text file, a folder of images or sounds; or, with --column, a Parquet, CSV or JSON "
        "file or a data set's name; - for lines of the input."
    ),
]
Column = Annotated[str | None, typer.Option(help="Column of the inputs: texts, or paths of images or sounds.")]
TargetColumn = Annotated[
    str | None, typer.Option(help="Column of what the target takes, where it takes another input than the source.")
]
PairColumn = Annotated[
    str | None,
    typer.Option(help="Column of the second text, where an input is a pair of texts and --column has the first."),
]
Split = Annotated[str, typer.Option(help="Split of the data set.")]
Force = Annotated[bool, typer.Option("--force", help="Write over what is there.")]
TargetRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the target.")]
BatchSize = Annotated[int, typer.Option(help="Inputs to encode at a time.", min=1)]


def stitch_command(
    source: Annotated[str, typer.Argument(help="The new encoder: folder or Hub id.")],
    target: Target,
    out: Annotated[Path, typer.Argument(help="Folder to write the stitched model to.")],
    anchors: Anchors,
    column: Column = None,
    target_column: TargetColumn = None,
    pair_column: PairColumn = None,
    split: Split = "train",
    limit: Annotated[
        int,
        typer.Option(
            help="Use at most this many inputs, chosen among 4 times as many (and 4 times as many words).", min=32
        ),
    ] = 1000,
    cut: Cut = None,
    prefer: Annotated[Prefer | None, typer.Option(help="linear is one matrix; auto may use a kernel.")] = None,
    alpha: Annotated[float | None, typer.Option(help="α of the family, instead of choosing.", min=0, max=1)] = None,
    ridge: Annotated[float | None, typer.Option(help="λ of the family, instead of choosing.", min=0)] = None,
    norm: Annotated[Literal["keep", "mean"], typer.Option(help="keep: each latent keeps its norm.")] = "keep",
    batch_size: BatchSize = 32,
    pooling: Annotated[str | None, typer.Option(help="How the source's states become one latent: mean, cls, …")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the source.")] = None,
    target_revision: TargetRevision = None,
    device: Device = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Stitch a source encoder to a target's head and write the model."""
    from hf_relstitch.cli.describe import describe
    from hf_relstitch.core.errors import StitchError
    from hf_relstitch.data.reading import STDIN, read_inputs
    from hf_relstitch.encoders.encoder import Encoder
    from hf_relstitch.heads.loading import labels_tokens, load_classifier
    from hf_relstitch.hub.files import STITCHED_MODEL, check_kind, check_output
    from hf_relstitch.hub.processes import accelerate_state
    from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher

    check_output(out)
    check_kind(out, STITCHED_MODEL)
    if (out / "config.json").is_file() and not force:
        raise StitchError(f"{out} holds a stitched model already: give another folder, or --force to write over it")
    use_device(device)
    texts, num_anchors = (limit, 4 * limit) if labels_tokens(target) else (4 * limit, limit)  # words are many a text
    inputs = read_inputs(
        anchors, column=column, target_column=target_column, pair_column=pair_column, split=split, count=texts
    )
    settings: dict[str, Any] = {"prefer": prefer, "alpha": alpha, "ridge": ridge, "norm": norm}
    given = {name: value for name, value in settings.items() if value is not None}
    parts: dict[str, Any] = {"source": source, "target": target, "cut": cut}
    if pooling or revision:
        parts["source"] = Encoder.from_pretrained(source, pooling=pooling or "auto", revision=revision)
    if target_revision:
        encoder, head = load_classifier(target, cut=cut, revision=target_revision)
        parts |= {"target": encoder, "head": head, "cut": None}
    data = None if anchors == STDIN else anchors
    model = RelativeStitcher.from_parts(
        **parts, anchors=inputs, num_anchors=num_anchors, data=data, batch_size=batch_size, **given
    )
    model.save_pretrained(out)
    if accelerate_state().is_main_process:
        description = describe(out)
        if as_json:
            print_json(description)
        else:
            typer.echo(f"Written to {out}")
            show(description, place=str(out))


def anchors_command(
    model: Annotated[
        str,
        typer.Argument(help="The encoder, or with --target a classifier: folder or Hub id; with --function its name."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write the anchor set to.")],
    anchors: Anchors,
    column: Column = None,
    pair_column: PairColumn = None,
    split: Split = "train",
    limit: Annotated[int, typer.Option(help="Use at most this many inputs, chosen at random.", min=32)] = 1000,
    target: Annotated[bool, typer.Option("--target", help="Cut a classifier, and encode at its head's input.")] = False,
    cut: Cut = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text before each input: the name of one of the repo's prompts, or the text.")
    ] = None,
    pairs: Annotated[str | None, typer.Option(help="How the encoder reads pairs: joint or compose.")] = None,
    function: Annotated[
        str | None,
        typer.Option(help="MODULE:NAME of your own function from a list of texts to their vectors, as of an API."),
    ] = None,
    retries: Annotated[int, typer.Option(help="How often to call the function again where it fails.", min=0)] = 5,
    price: Annotated[
        float | None, typer.Option(help="Price of a million tokens, to say beforehand about what it will cost.", min=0)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much there is to encode.")] = False,
    push: Annotated[str | None, typer.Option(help="Hub repo to push the set to, made if it is not there.")] = None,
    batch_size: BatchSize = 32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make the anchor set of one model, and publish it; a run that was stopped goes on where it was."""
    from hf_relstitch.core.errors import StitchError
    from hf_relstitch.data.provenance import NOT_KNOWN
    from hf_relstitch.data.reading import STDIN, read_inputs
    from hf_relstitch.encoders.callable_encoder import CallableEncoder, load_function
    from hf_relstitch.encoders.encoder import Encoder
    from hf_relstitch.encoders.kept_latents import KeptLatents, estimate_cost
    from hf_relstitch.heads.loading import load_classifier
    from hf_relstitch.hub.files import ANCHOR_SET, PARTIAL, check_kind, check_output
    from hf_relstitch.model.anchors import AnchorSet

    encoders_own = prompt is not None or pairs is not None
    if (target and encoders_own) or (cut is not None and not target) or (function and (target or encoders_own)):
        raise StitchError(
            "--prompt and --pairs are for an encoder, --cut is for a classifier with --target, --function for neither: "
            "leave one out"
        )
    check_output(out)
    check_kind(out, ANCHOR_SET)
    use_device(device)
    inputs = read_inputs(anchors, column=column, pair_column=pair_column, split=split, count=limit)
    encoder: Encoder
    if function:
        called = load_function(function)
        encoder = CallableEncoder(called, model_id=model, revision=revision or NOT_KNOWN, retries=retries)
    elif target:
        encoder = load_classifier(model, cut=cut, revision=revision)[0]
    else:
        encoder = Encoder.from_pretrained(model, prompt=prompt, pairs=pairs, revision=revision)
    kept = KeptLatents(encoder, out / f"{PARTIAL}latents")
    estimate = estimate_cost(inputs, kept.missing(encoder.anchor_inputs(inputs)), price=price)
    if not as_json or not dry_run:
        typer.echo(_describe_cost(estimate), err=not dry_run)
    if dry_run:
        if as_json:
            print_json(estimate)
        return
    data = None if anchors == STDIN else anchors
    encoded = AnchorSet.encode(kept, inputs, data=data, batch_size=batch_size)
    encoded.save_pretrained(out)
    kept.discard()
    commit = encoded.push_to_hub(push) if push else None
    if as_json:
        counts = {"anchors": len(encoded), "dim": encoded.dim, "encoded": estimate}
        print_json({"folder": str(out), **counts, "commit": commit})
    else:
        typer.echo(f"{len(encoded)} anchors, {encoded.dim} wide, written to {out}" + (f", {commit}" if commit else ""))


def _describe_cost(estimate: dict[str, Any]) -> str:
    """Return what is to be encoded in a line."""
    line = f"{estimate['inputs']:,} inputs to encode"
    if estimate["characters"]:
        line += f", {estimate['characters']:,} characters, about {estimate['tokens']:,} tokens"
    if estimate["cost"] is not None:
        line += f", about {estimate['cost']:.4g} at that price"
    return line + (f"; {estimate['kept']:,} are kept from a run before, or repeat others" if estimate["kept"] else "")


def recommend_command(
    target: Target,
    candidates: Annotated[
        list[str], typer.Option("--candidates", "-c", help="An encoder to try: folder or Hub id; may be repeated.")
    ],
    anchors: Anchors,
    more: Annotated[list[str] | None, typer.Argument(help="More encoders to try.", metavar="[CANDIDATES]")] = None,
    column: Column = None,
    target_column: TargetColumn = None,
    pair_column: PairColumn = None,
    split: Split = "train",
    limit: Annotated[int, typer.Option(help="Use at most this many inputs.", min=32)] = 1000,
    cut: Cut = None,
    batch_size: BatchSize = 32,
    target_revision: TargetRevision = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Rank encoders for a head by expected agreement, speed and size, from unlabeled inputs alone."""
    from hf_relstitch.cli.recommend import recommend
    from hf_relstitch.data.reading import read_inputs
    from hf_relstitch.hub.processes import accelerate_state

    use_device(device)
    inputs = read_inputs(
        anchors, column=column, target_column=target_column, pair_column=pair_column, split=split, count=4 * limit
    )
    encoders = [*candidates, *(more or [])]
    rows = recommend(
        target, encoders, inputs, cut=cut, num_anchors=limit, batch_size=batch_size, revision=target_revision
    )
    stitched = [row for row in rows if row["error"] is None]
    if accelerate_state().is_main_process:
        if as_json:
            print_json(rows)
        else:
            _show_ranking(stitched, failed=rows[len(stitched) :])
    if len(stitched) < len(rows):
        raise typer.Exit(1)


def _show_ranking(stitched: list[dict[str, Any]], *, failed: list[dict[str, Any]]) -> None:
    """The candidates that could be stitched as a table, and under it why the others could not."""
    cells = []
    for row in stitched:
        low, high = row["agreement_interval"] or (None, None)
        cells.append(
            (
                row["candidate"],
                "–" if row["agreement"] is None else f"{row['agreement']:.3f}",
                "–" if low is None else f"{low:.3f}–{high:.3f}",
                row["verdict"] or "–",
                f"{row['inputs_per_second']:.1f}",
                f"{row['parameters']:,}",
                f"{row['megabytes']:.1f}",
            )
        )
    if cells:
        print_table(("candidate", "agreement", "95 %", "verdict", "inputs/s", "parameters", "MB"), cells)
    for row in failed:
        typer.echo(f"{row['candidate']} could not be stitched: {row['error']}", err=True)
