"""Several processes, as `accelerate launch` starts them: they encode together, and the main one alone writes."""

import json
import logging
from itertools import product
from pathlib import Path

import pico
import pytest
import torch
from hub_server import HubServer
from launching import PROCESSES, launch
from safetensors.torch import load_file

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher
from hf_relstitch.cli.recommend import recommend
from hf_relstitch.hub import processes

BEGINNING = """
import sys
from pathlib import Path

import pico
import torch
from safetensors.torch import save_file

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher
from hf_relstitch.hub.processes import accelerate_state

state, out = accelerate_state(), Path(sys.argv[1])
assert state.num_processes == 2
"""


def run(script: Path, body: str, *arguments: object) -> str:
    """Run this after `BEGINNING` in each process."""
    script.write_text(f"{BEGINNING}{body}\nstate.destroy_process_group()\n")
    return launch(script, *arguments)


@pytest.mark.parametrize("wanted", ["1", "2"])
def test_a_process_that_works_alone_warns_if_more_were_asked_for(
    wanted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", wanted)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    processes._warn_if_alone.cache_clear()
    for _ in range(2):
        processes.accelerate_state()
    said = [record for record in caplog.records if "2 processes were asked for, and each works" in record.message]
    assert len({record.message for record in said}) == int(wanted) - 1


def test_they_give_the_latents_that_one_gives(source: Encoder, source_folder: str, tmp_path: Path) -> None:
    body = (
        "encoder = Encoder.from_pretrained(sys.argv[2])\n"
        "for count in (33, 3):  # 3 are one batch, and the second process has none\n"
        "    latents = encoder.encode(pico.texts(count), batch_size=4, progress=False)\n"
        "    save_file({'latents': latents}, out / f'{count}-{state.process_index}.safetensors')"
    )
    run(tmp_path / "encode.py", body, tmp_path, source_folder)
    for count, process in product((33, 3), range(PROCESSES)):
        found = load_file(tmp_path / f"{count}-{process}.safetensors")["latents"]
        torch.testing.assert_close(found, source.encode(pico.texts(count), batch_size=4, progress=False))


@pytest.mark.slow
def test_where_one_fails_all_do(source_folder: str, tmp_path: Path) -> None:
    body = (
        "def fail(batch):\n"
        "    raise torch.OutOfMemoryError('no room')\n"
        "for failing in range(2):\n"
        "    encoder = Encoder.from_pretrained(sys.argv[2])\n"
        "    if state.process_index == failing:\n"
        "        encoder.latents = fail\n"
        "    try:\n"
        "        encoder.encode(pico.texts(33), batch_size=4, progress=False)\n"
        "    except Exception as error:\n"
        "        (out / f'{failing}-{state.process_index}').write_text(f'{type(error).__name__}: {error}')\n"
        "assert len(Encoder.from_pretrained(sys.argv[2]).encode(pico.texts(9), batch_size=4, progress=False)) == 9"
    )
    run(tmp_path / "fail.py", body, tmp_path, source_folder)
    for failing, process in product(range(PROCESSES), repeat=2):
        expected = (
            "OutOfMemoryError: no room" if process == failing else f"StitchError: process {failing} failed: no room"
        )
        assert (tmp_path / f"{failing}-{process}").read_text() == expected


@pytest.mark.slow
def test_a_candidate_that_one_cannot_load_is_none_for_all(
    source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    body = (
        "import json\n"
        "from hf_relstitch.cli import recommend as recommending\n"
        "from hf_relstitch.encoders.encoder import to_encoder\n"
        "def fail(place, **options):\n"
        "    if place.endswith('/.') and state.process_index == 1:\n"
        "        raise OSError('no room')\n"
        "    return to_encoder(place, **options)\n"
        "recommending.to_encoder = fail\n"
        "candidates = [sys.argv[2] + '/.', sys.argv[2]]\n"
        "rows = recommending.recommend(sys.argv[3], candidates, pico.texts(60), progress=False)\n"
        "kept = [{name: row[name] for name in ('agreement', 'error')} for row in rows]\n"
        "(out / f'{state.process_index}.json').write_text(json.dumps(kept))"
    )
    run(tmp_path / "recommend.py", body, tmp_path, source_folder, target_folder)
    (alone,) = recommend(target_folder, [source_folder], pico.texts(60), progress=False)
    for process, error in enumerate(("process 1 failed: no room", "no room")):
        good, bad = json.loads((tmp_path / f"{process}.json").read_text())
        assert good == {"agreement": pytest.approx(alone["agreement"]), "error": None}
        assert bad == {"agreement": None, "error": error}


@pytest.mark.slow
def test_the_main_one_alone_writes(hub: HubServer, source_folder: str, target_folder: str, tmp_path: Path) -> None:
    (tmp_path / "anchors.txt").write_text("\n".join(pico.texts(60)))
    body = (
        "from hf_relstitch.cli import app\n"
        "model = RelativeStitcher.from_parts(sys.argv[2], sys.argv[3], pico.texts(60), progress=False)\n"
        "anchors = AnchorSet.encode(Encoder.from_pretrained(sys.argv[2]), pico.texts(60), progress=False)\n"
        "for _ in range(3):\n"
        "    state.wait_for_everyone()\n"
        "    model.save_pretrained(out / 'model')\n"
        "    anchors.save_pretrained(out / 'anchors')\n"
        "assert bool(model.push_to_hub('alice/together')) == state.is_main_process\n"
        "app(['stitch', *sys.argv[2:4], str(out / 'made'), '--anchors', str(out / 'anchors.txt')], "
        "standalone_mode=False)"
    )
    printed = run(tmp_path / "save.py", body, tmp_path, source_folder, target_folder)
    assert printed.count("Written to") == 1
    assert len(AnchorSet.from_pretrained(tmp_path / "anchors")) == 60
    for place in (tmp_path / "model", tmp_path / "made", "alice/together"):
        assert RelativeStitcher.from_pretrained(place).predict(pico.texts(5)).shape == (5, 3)
