"""The command that writes a model for runtimes without this package."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_relstitch.cli.printing import AsJson, print_json

Format = Literal["sentence-transformers", "onnx", "classifier"]


def export_command(
    model: Annotated[str, typer.Argument(help="A stitched model or a translation for search: folder, Hub id or file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; for ONNX, the file.")],
    to: Annotated[
        Format,
        typer.Option(
            help="sentence-transformers encodes into the target's space; onnx and classifier give logits, classifier "
            "as a model of the source's own architecture."
        ),
    ],
    encoder: Annotated[
        str | None,
        typer.Option(help="With a translation for search, the encoder before it: folder or Hub id."),
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="The repo id that the card is to show.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for use without this package."""
    from hf_relstitch.bulk import SearchTranslation
    from hf_relstitch.core.errors import StitchError
    from hf_relstitch.hub.files import TRANSLATION
    from hf_relstitch.hub.repo import locate_kind
    from hf_relstitch.model.exporting import plain_classifier, to_onnx
    from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher

    if Path(model).is_file() or locate_kind(model, revision=revision)[1] == TRANSLATION:
        if to != "sentence-transformers" or encoder is None:
            raise StitchError(
                f"{model} is a translation for search: export it with --to sentence-transformers --encoder ENCODER"
            )
        translation = SearchTranslation.from_pretrained(model, revision=revision)
        translation.after(encoder, folder=out, repo_id=repo_id)
    else:
        if encoder is not None:
            raise StitchError("a stitched model has its own encoder: leave --encoder out")
        stitched = RelativeStitcher.from_pretrained(model, revision=revision)
        if to == "sentence-transformers":
            stitched.to_sentence_transformer(out, repo_id=repo_id)
        elif to == "onnx":
            to_onnx(stitched, out)
        else:
            plain_classifier(stitched).save_pretrained(out)
            stitched.processor.save_pretrained(out)
    if as_json:
        print_json({"format": to, "path": str(out)})
    else:
        typer.echo(f"Written to {out}")
