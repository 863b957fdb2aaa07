"""A page to stitch an encoder to a classifier: pick both, give unlabeled texts, read the verdict, try texts, download.

pip install -r requirements.txt && python app.py
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch.nn import functional

from hf_relstitch import Encoder, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.data.reading import read_inputs
from hf_relstitch.model.plots import draw_stitching

SOURCE, TARGET = "sentence-transformers/all-MiniLM-L6-v2", "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
SAMPLE = Path(__file__).with_name("texts.csv")


def padded(latents: torch.Tensor, width: int) -> torch.Tensor:
    """Return latents cut or filled with zeros to a width: what one would get without a translation."""
    return functional.pad(latents, (0, max(0, width - latents.shape[1])))[:, :width]


def stitch(source: str, target: str, file: str | None, column: str) -> tuple[Any, str, str, str]:
    """Stitch, and return the model with its target, its report, a picture of both spaces and a zip of its folder."""
    try:
        anchors = read_inputs(file or str(SAMPLE), column=column)
        encoder, (target_encoder, head) = Encoder.from_pretrained(source), load_classifier(target)
        model = RelativeStitcher.from_parts(encoder, target_encoder, anchors, head=head, progress=False)
        folder = Path(tempfile.mkdtemp(), "stitched")
        model.save_pretrained(folder)
    except StitchError as error:
        raise gr.Error(str(error)) from error
    verdict, report = model.report["verdict"], model.report
    low, high = report["agreement_interval"]
    text = (
        f"## Verdict: {verdict['grade']}\n\n{verdict['reason'][0].upper()}{verdict['reason'][1:]}.\n\n"
        f"The head should answer as behind its own encoder on **{report['agreement']:.0%}** of inputs like these "
        f"{report['num_anchors']} texts ({low:.0%} to {high:.0%}; by chance {report['chance_agreement']:.0%})."
    )
    if verdict["grade"] != "good":
        text += f"\n\nWhat would help: {verdict['remedy']}."
    ours, theirs = encoder.encode(anchors, progress=False), target_encoder.encode(anchors, progress=False)
    with torch.no_grad():
        answers, stitched = head.module(theirs).argmax(1), model.classify(ours).argmax(1)
    panels = {
        "Target space": theirs,
        "Before: zero-padded": padded(ours, theirs.shape[1]),
        "After: stitched": model.translate(ours),
    }
    picture = folder.with_name("spaces.png")
    draw_stitching(panels, labels=answers, predictions=stitched, names=list(head.id2label.values()), file=picture)
    archive = shutil.make_archive(str(folder), "zip", folder)
    return (model, encoder, target_encoder, head), text, str(picture), archive


def compare(parts: Any, texts: str) -> list[list[str]]:
    """Return for each line the answers of the classifier itself, of the stitched model, and without translation."""
    lines = [line for line in texts.splitlines() if line.strip()]
    if parts is None or not lines:
        raise gr.Error("stitch first, then give a text a line")
    model, encoder, target_encoder, head = parts
    theirs = target_encoder.encode(lines, progress=False)
    with torch.no_grad():
        logits = [
            head.module(theirs),
            model.predict(lines),
            head.module(padded(encoder.encode(lines, progress=False), theirs.shape[1])),
        ]
    names = [[head.id2label[int(answer)] for answer in rows.argmax(1)] for rows in logits]
    return [list(row) for row in zip(lines, *names, strict=True)]


def push(parts: Any, repo_id: str, token: str) -> str:
    """Push the stitched model to the Hub, and return its address."""
    if parts is None or not repo_id:
        raise gr.Error("stitch first, then name the repo, like me/stitched")
    try:
        return parts[0].push_to_hub(repo_id, token=token or None)
    except StitchError as error:
        raise gr.Error(str(error)) from error


with gr.Blocks(title="hf_relstitch") as page:
    gr.Markdown("# Another encoder for a classifier, without labels")
    parts = gr.State()
    with gr.Row():
        source = gr.Textbox(SOURCE, label="New encoder: Hub id or folder", elem_id="source", min_width=300)
        target = gr.Textbox(TARGET, label="Classifier: Hub id or folder", elem_id="target", min_width=300)
    with gr.Row():
        with gr.Column(min_width=300):
            file = gr.File(label="Unlabeled texts: a CSV (a sample without one)", type="filepath", elem_id="file")
        column = gr.Textbox("text", label="Its column", elem_id="column", min_width=300)
    button = gr.Button("Stitch", variant="primary", elem_id="stitch")
    report = gr.Markdown(elem_id="report")
    picture = gr.Image(label="Both spaces, before and after", show_label=False, elem_id="picture")
    gr.Markdown("## Try texts")
    texts = gr.Textbox("Storm hits the coast\nA quiet day for trade", lines=3, label="A text a line", elem_id="texts")
    ask = gr.Button("Compare", elem_id="compare")
    table = gr.Dataframe(
        headers=["text", "classifier itself", "stitched", "without translation"],
        wrap=True,
        elem_id="table",
        column_widths=["46%", "18%", "18%", "18%"],
    )
    gr.Markdown("## Keep it")
    archive = gr.File(label="The stitched model's folder", elem_id="archive")
    with gr.Row():
        repo_id = gr.Textbox(label="Repo to push to, like me/stitched", elem_id="repo")
        token = gr.Textbox(label="Token", type="password", elem_id="token")
    send = gr.Button("Push", elem_id="push")
    address = gr.Markdown(elem_id="address")
    button.click(stitch, [source, target, file, column], [parts, report, picture, archive])
    ask.click(compare, [parts, texts], table)
    send.click(push, [parts, repo_id, token], address)

if __name__ == "__main__":
    page.launch()
