"""The migrate command: change the encoder of a vector index from the texts in it."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from hf_relstitch.cli.printing import AsJson, Device, print_json, print_table, use_device


def migrate_command(
    store: Annotated[
        str,
        typer.Argument(help="Folder of a LanceDB or Chroma database, postgresql://…, or Milvus: FILE.db, http://…."),
    ],
    name: Annotated[str, typer.Argument(help="Table or collection.")],
    new: Annotated[str, typer.Option(help="The new encoder: folder or Hub id.")],
    text: Annotated[str, typer.Option(help="Column of texts; a collection has its documents.")] = "text",
    vector: Annotated[str, typer.Option(help="Column of vectors; a collection has its embeddings.")] = "vector",
    pairs: Annotated[int, typer.Option(help="Rows to encode anew for the plan.", min=32)] = 1000,
    move_to: Annotated[str | None, typer.Option(help="Move the index to this new table or collection.")] = None,
    queries_to: Annotated[
        Path | None, typer.Option(help="Write the translation of new queries, NAME.safetensors; the index stays.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="The index was moved already: compare it with the encoder.")
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say what each way to a new encoder would find in an index, from its own texts, and do what is chosen."""
    from hf_relstitch.bulk.migration import check_moved, move_sampled, plan_migration, sample_index

    use_device(device)
    sample = sample_index(store, name, text=text, vector=vector, count=pairs)
    if check:
        found = check_moved(sample, new)
        advice = "encode the documents anew" if found["encode_anew"] else "keep the moved index"
        if as_json:
            print_json(found)
        else:
            typer.echo(
                f"Of the {found['nearest']} nearest that the new encoder finds among {found['documents']:,} documents, "
                f"the moved index finds {found['recall']:.3f} ± {found['standard_error']:.3f}: {advice}"
            )
        if found["encode_anew"]:
            raise typer.Exit(1)
        return
    plan = plan_migration(sample, new)
    done: dict[str, Any] = {}
    if queries_to is not None:
        plan.queries.save(queries_to)
        done["queries"] = str(queries_to)
    if move_to is not None:
        done["moved"] = move_sampled(plan, store, name, move_to, vector=vector)
    if as_json:
        rows = [{"way": way, "finds": finds, "takes": takes} for way, finds, takes in plan.rows()]
        reports = {"documents": plan.documents.report, "queries": plan.queries.report}
        print_json({"documents": plan.total, "ways": rows, "reports": reports, "done": done})
        return
    cells = [(way, f"{finds:.2f}", takes) for way, finds, takes in plan.rows()]
    print_table(("way", "finds", "takes"), cells)
    report = plan.documents.report
    typer.echo(
        f"Of the {report['nearest']} nearest that the new encoder finds among {report['documents']:,} documents, by "
        f"{sample.metric}; the index has {plan.total:,}, among which it is less."
    )
    typer.echo(f"Verdict: {report['verdict']['grade']}: {report['verdict']['reason']}.")
    if "moved" in done:
        typer.echo(f"Moved {done['moved']:,} documents to {move_to}; {name} is as it was.")
    elif "queries" in done:
        typer.echo(f"Wrote {quote(done['queries'])}: SearchTranslation.load(…) translates the new encoder's queries.")
    else:
        typer.echo(
            f"Next: the same command with --move-to {quote(name + '-new')}, or with --queries-to FILE.safetensors"
        )
