"""The commands: parse, validate, one call."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from hf_relstitch.cli.export import export_command
from hf_relstitch.cli.migrate import migrate_command
from hf_relstitch.cli.printing import AsJson, Device, print_json, print_table, show, use_device
from hf_relstitch.cli.stitch import Column, Force, PairColumn, anchors_command, recommend_command, stitch_command
from hf_relstitch.core.options import Metric, Prefer, Role
from hf_relstitch.version import __version__

ARTIFACTS = "a stitched model, an anchor set, a translation for search or an exported encoder"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    """Print the version, and do nothing else."""
    if wanted:
        typer.echo(f"hf-relstitch {__version__}")
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, help="Show the version.")] = False,
) -> None:
    """Stitch any encoder to a classifier head that it never met, without labels and without training."""


@app.command("quickstart")
def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder for the networks, the stitched model and the picture.")] = Path(
        "quickstart-output"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the split and of both networks.")] = 0,
    anchors: Annotated[int, typer.Option(help="How many unlabeled anchors.", min=32)] = 300,
    as_json: AsJson = False,
) -> None:
    """Stitch two networks that never met and show the result; needs no network and no download."""
    from hf_relstitch.cli.quickstart import quickstart

    accuracies = quickstart(
        out,
        seed=seed,
        num_anchors=anchors,
        quiet=as_json,
    )
    if as_json:
        print_json({"accuracy": accuracies, "folder": str(out / "stitched"), "picture": str(out / "quickstart.png")})


app.command("stitch")(stitch_command)
app.command("recommend")(recommend_command)
app.command("anchors")(anchors_command)
app.command("migrate")(migrate_command)
app.command("export")(export_command)


@app.command("predict")
def predict_command(
    model: Annotated[str, typer.Argument(help="A stitched model: folder or Hub id.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Texts, files of texts, tables, images, folders of images, or - for lines of the input."),
    ],
    column: Column = None,
    pair_column: PairColumn = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Classify inputs with a stitched model."""
    from hf_relstitch.cli.predict import predict

    use_device(device)
    rows = predict(model, inputs, column=column, pair_column=pair_column, revision=revision, device=device)
    if as_json:
        print_json(rows)
        return
    cells = [(row["input"], row["label"], f"{row['score']:.3f}") for row in rows]
    print_table(("input", "label", "score"), cells)


@app.command()
def inspect(
    place: Annotated[
        str,
        typer.Argument(help=f"Folder or Hub id of {ARTIFACTS}; a translation's file."),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show sizes, provenance, conditioning and verdict of what a folder or a repo holds; --json shows all."""
    from hf_relstitch.cli.describe import describe

    description = describe(place, revision=revision)
    if as_json:
        print_json(description)
    else:
        show(description, place=place)


@app.command("plot")
def plot_command(
    place: Annotated[str, typer.Argument(help="A stitched model: folder or Hub id.")],
    picture: Annotated[Path, typer.Argument(help="File to write, as PNG.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a stitched model's spaces and answers, and tell what more anchors would bring."""
    from hf_relstitch.hub.files import check_output
    from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher

    check_output(picture)
    curve = RelativeStitcher.from_pretrained(place, revision=revision).plot(picture)
    if as_json:
        print_json({"picture": str(picture), "learning_curve": curve})
        return
    print_table(("anchors", "expected"), [(str(count), f"{value:.3f}") for count, value in curve.items()])
    typer.echo(f"Wrote {quote(str(picture))}")


@app.command("push")
def push_command(
    folder: Annotated[
        str,
        typer.Argument(help=f"Folder of {ARTIFACTS}; a translation's file."),
    ],
    repo: Annotated[str, typer.Argument(help="Hub repo to push to, made if it is not there.")],
    share: Annotated[str, typer.Option(help="full, or adapter to leave the source encoder on the Hub.")] = "full",
    private: Annotated[bool | None, typer.Option(help="Whether a new repo is private.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a folder to the Hub as one commit."""
    from hf_relstitch.cli.push_pull import push

    address = push(folder, repo, share=share, private=private, revision=revision)
    if as_json:
        print_json({"commit": address})
    else:
        typer.echo(address)


@app.command("pull")
def pull_command(
    repo: Annotated[str, typer.Argument(help=f"Hub id of {ARTIFACTS}.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write it to.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Copy a repo from the Hub into a folder, whole and checked."""
    from hf_relstitch.cli.push_pull import pull

    commit = pull(repo, folder, revision=revision, force=force)
    if as_json:
        print_json({"repo": repo, "commit": commit, "folder": str(folder)})


@app.command("find")
def find_command(
    anchors: Annotated[str, typer.Argument(help="An anchor set: folder or Hub id.")], as_json: AsJson = False
) -> None:
    """List the anchor sets on the Hub that were made of the same inputs."""
    from hf_relstitch.cli.push_pull import find

    rows = find(anchors)
    if as_json:
        print_json(rows)
        return
    columns = ["repo", "model_id", "pooling", "prompt", "data", "anchors", "dim"]
    print_table(columns, [["–" if row[column] is None else str(row[column]) for column in columns] for row in rows])


@app.command("pair")
def pair_command(
    source: Annotated[Path, typer.Argument(help="npy, safetensors or Parquet file of latents to translate.")],
    target: Annotated[Path, typer.Argument(help="The same inputs' latents by the other encoder, row for row.")],
    out: Annotated[Path, typer.Argument(help="File for the translation, NAME.safetensors, for translate.")],
    translates: Annotated[Role, typer.Option(help="What of a search is translated.")] = "documents",
    prefer: Annotated[Prefer, typer.Option(help="linear is one matrix; auto may use a kernel.")] = "linear",
    metric: Annotated[Metric, typer.Option(help="How the index searches; LanceDB and Chroma by l2.")] = "cosine",
    column: Annotated[str, typer.Option(help="Column, or tensor, of the latents.")] = "latents",
    target_column: Annotated[str | None, typer.Option(help="The same of the target, where it is another.")] = None,
    ids: Annotated[str | None, typer.Option(help="Column, or tensor, of ids that pair the rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the translation between two encoders' latents, for a vector index; say what recall to expect."""
    from hf_relstitch.bulk import translation_between
    from hf_relstitch.bulk.pairs import read_ids
    from hf_relstitch.cli.describe import describe
    from hf_relstitch.data.latents import as_latents

    sides = as_latents(source, column=column), as_latents(target, column=target_column or column)
    keys = (read_ids(source, ids), read_ids(target, ids)) if ids else None
    made = translation_between(*sides, ids=keys, translates=translates, prefer=prefer, metric=metric)
    made.save(out)
    if as_json:
        print_json(made.report)
    else:
        show(describe(out))
        typer.echo(f"Next: hf-relstitch translate {quote(str(out))} FILES OUTPUT")


@app.command("translate")
def translate_command(
    model: Annotated[str, typer.Argument(help="A stitched model: folder or Hub id; or a translation's file.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Parquet, Arrow, Feather, safetensors or npy files, folders of them, URLs, or data sets."),
    ],
    out: Annotated[str, typer.Argument(help="Folder, or its URL, for the translated files.")],
    column: Annotated[str, typer.Option(help="Column, or tensor, of the latents.")] = "latents",
    batch_size: Annotated[int, typer.Option(help="Rows to translate at a time.", min=1)] = 16384,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, float32 or float64; else as stored.")] = None,
    keep_nonfinite: Annotated[bool, typer.Option("--keep-nonfinite", help="Let rows through that have a NaN.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only check that all is there and as written.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Translate the files on a Ray cluster.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Translate stored latents; a run that was stopped continues from where it stopped."""
    from hf_relstitch.bulk import translate_files

    done = translate_files(
        model,
        inputs,
        out,
        column=column,
        batch_size=batch_size,
        dtype=dtype,
        keep_nonfinite=keep_nonfinite,
        verify=verify,
        ray=ray,
        revision=revision,
    )
    if as_json:
        print_json(asdict(done))
    else:
        typer.echo(f"{done.kept} files are as they were written" if verify else str(done))


@app.command("benchmark")
def benchmark_command(
    suite: Annotated[str, typer.Argument(help="A suite in YAML, or the name of one that is shipped.")],
    out: Annotated[Path, typer.Option(help="Folder for results and report; a run that was stopped goes on.")] = Path(
        "benchmark-output"
    ),
    push: Annotated[
        str | None, typer.Option(help="A stitched model's repo: measure it too, and write its results there.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure encoders, heads, translations and numbers of anchors against each other, and report."""
    from hf_relstitch.benchmarks import push_results, run_suite, write_report
    from hf_relstitch.hub.processes import accelerate_state

    use_device(device)
    failures = run_suite(suite, out, models=[push] if push else [])["failures"]
    if accelerate_state().is_main_process:
        report = str(write_report(out))
        commit = push_results(out, push) if push else None
        if as_json:
            print_json({"report": report, "failures": failures, "commit": commit})
        else:
            typer.echo(report + (f"; {len(failures)} cells failed" if failures else ""))
            if commit:
                typer.echo(commit)
    if failures:
        raise typer.Exit(1)


@app.command("report")
def report_command(
    run: Annotated[str, typer.Argument(help="Folder of a benchmark, or its results.json.")],
    other: Annotated[str | None, typer.Argument(help="Another one, to compare with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a benchmark's report again, or compare two benchmarks."""
    from hf_relstitch.benchmarks import compare, write_report

    result = compare(run, other) if other else str(write_report(run))
    if as_json:
        print_json({"comparison" if other else "report": result})
    else:
        typer.echo(result, nl=not other)
