"""Translations written to remote places: the files of a local run, whole and resumed, on a Hub, on S3 and over FTP."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pico
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi
from moto.server import ThreadedMotoServer

from hf_relstitch import StitchError
from hf_relstitch.bulk import translate_files
from hf_relstitch.bulk.manifest import MANIFEST_NAME
from hf_relstitch.core.translation import Translation

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of asyncore
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler, ThrottledDTPHandler
    from pyftpdlib.servers import FTPServer

FILES, ROWS, DIM = 4, 3000, 16


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of an S3 server on loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An FTP server on loopback that takes a megabyte a second, and the folder that it serves."""
    folder = tmp_path_factory.mktemp("ftp")
    authorizer = DummyAuthorizer()
    authorizer.add_user("user", "password", str(folder), perm="elradfmwMT")
    slow = type("Slow", (ThrottledDTPHandler,), {"read_limit": 1 << 20, "auto_sized_buffers": False})
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer, "dtp_handler": slow})
    server = FTPServer(("127.0.0.1", 0), handler)
    logging.getLogger("pyftpdlib").setLevel(logging.ERROR)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.02, "handle_exit": False})
    thread.start()
    yield f"ftp://user:password@127.0.0.1:{server.address[1]}", folder
    fsspec.get_filesystem_class("ftp").clear_instance_cache()
    server.close_all()
    thread.join()


@pytest.fixture
def data_repo(hub: HubServer) -> str:
    """A data set's repo on the Hub."""
    HfApi().create_repo("alice/moved", repo_type="dataset")
    return "hf://datasets/alice/moved"


@pytest.fixture(params=["s3", "hf", "ftp", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    """An empty remote folder."""
    name = request.node.name.translate(str.maketrans("[]", "__"))
    if request.param == "memory":
        return f"memory://{name}"
    fixture = request.getfixturevalue({"hf": "data_repo"}.get(request.param, request.param))
    return f"{fixture[0] if request.param == 'ftp' else fixture}/{name}"


@pytest.fixture(scope="module")
def translation() -> Translation:
    return pico.translation(DIM)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices in two folders."""
    folder = tmp_path_factory.mktemp("inputs") / "in"
    for seed in range(FILES):
        file = folder / f"{seed % 2}" / f"{seed}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.random.default_rng(seed).standard_normal((ROWS, DIM), dtype="f4"))
    return folder


@pytest.fixture(scope="module")
def local(translation: Translation, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a local run writes."""
    folder = tmp_path_factory.mktemp("local") / "out"
    translate(translation, inputs, folder)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def translate(translation: Translation, inputs: Any, output: Any, **options: Any) -> Any:
    return translate_files(translation, inputs, output, batch_size=512, progress=False, **options)


def contents(place: str) -> dict[str, bytes]:
    """All that is in a remote folder, hidden files too, read by a client that has cached nothing."""
    fsspec.url_to_fs(place)[0].clear_instance_cache()
    files, path = fsspec.url_to_fs(place)
    files.invalidate_cache()
    return {os.path.relpath(one, path): files.cat_file(one) for one in files.find(path)}


def test_a_remote_run_writes_what_a_local_one_does(
    translation: Translation, inputs: Path, local: dict[str, bytes], place: str
) -> None:
    assert translate(translation, inputs, place).rows == FILES * ROWS
    assert contents(place) == local
    assert translate(translation, inputs, place).kept == FILES
    assert translate(translation, inputs, place, verify=True).kept == FILES


def test_remote_files_that_are_gone_or_altered_are_mended(
    translation: Translation, inputs: Path, local: dict[str, bytes], place: str
) -> None:
    translate(translation, inputs, place)
    files, path = fsspec.url_to_fs(place)
    files.pipe_file(f"{path}/0/0.npy", local["0/0.npy"][:-1] + b"?")
    files.pipe_file(f"{path}/0/2.npy", local["0/2.npy"][:-1])
    files.rm_file(f"{path}/1/1.npy")
    faults = r"0/0\.npy: it is damaged.*; 0/2\.npy: it is damaged or was altered; 1/1\.npy: it is not there: run again"
    with pytest.raises(StitchError, match=faults):
        translate(translation, inputs, place, verify=True)
    assert translate(translation, inputs, place).files == 2, "sizes alone say so of two"
    with pytest.raises(StitchError, match=r"0/0\.npy: it is damaged or was altered: run again"):
        translate(translation, inputs, place, verify=True)


KILLED = """
import os, signal, sys, torch
from hf_relstitch.bulk import translate as running, translate_files
from hf_relstitch.core.translation import Translation
point, inputs, output, saved = sys.argv[1:]
translation = Translation(16, 16, norm="keep")
translation.load_state_dict(torch.load(saved, weights_only=True))
real, write, blocks = running.FORMATS[".npy"], running.Manifest.write, 0
def halfway(source, sink, translator):
    for block, done in enumerate(real(source, sink, translator)):
        if point == "translating" and (source.name, block) == ("0/2.npy", 3):
            os.kill(os.getpid(), signal.SIGKILL)
        yield done
def not_written_down(manifest, output):
    if point == "written" and "0/2.npy" in manifest.shards:
        os.kill(os.getpid(), signal.SIGKILL)
    write(manifest, output)
running.FORMATS[".npy"], running.Manifest.write = halfway, not_written_down
translate_files(translation, inputs, output, batch_size=512, progress=False)
"""


@pytest.fixture
def run_in_a_process(translation: Translation, tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """A run in a process of its own, which kills itself at a point if it is told to."""
    torch.save(translation.state_dict(), tmp_path / "translation")

    def run(inputs: Path, place: str, point: str = "") -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, point, inputs, place, tmp_path / "translation"])

    return run


@pytest.mark.parametrize(("place", "point"), [("s3", "translating"), ("hf", "written")], indirect=["place"])
def test_a_killed_run_goes_on(
    translation: Translation,
    inputs: Path,
    local: dict[str, bytes],
    place: str,
    point: str,
    run_in_a_process: Callable[..., subprocess.Popen[bytes]],
) -> None:
    assert run_in_a_process(inputs, place, point).wait(timeout=120) == -signal.SIGKILL
    before = contents(place)
    assert set(before) == {MANIFEST_NAME, "0/0.npy", *(["0/2.npy"] if point == "written" else [])}
    assert all(before[name] == local[name] for name in before if name != MANIFEST_NAME)
    done = translate(translation, inputs, place)
    assert (done.files, done.kept) == (FILES - 1, 1)
    assert contents(place) == local


def test_a_run_killed_in_an_upload_leaves_no_half_a_file_under_its_name(
    translation: Translation,
    tmp_path: Path,
    ftp: tuple[str, Path],
    run_in_a_process: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """On a server that shows a file while it is written, at a megabyte a second."""
    url, folder = ftp
    size = 2 << 20
    np.save(tmp_path / "x.npy", np.ones((size // DIM // 4, DIM), "f4"))
    run = run_in_a_process(tmp_path / "x.npy", f"{url}/killed")
    partial = folder / "killed" / ".partial-x.npy"
    end = time.monotonic() + 60
    while not partial.exists() or not 0 < partial.stat().st_size < size:
        assert run.poll() is None, "it was to be killed in the middle of its upload"
        assert time.monotonic() < end, "it did not begin in time"
        time.sleep(0.005)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert {file.name for file in partial.parent.iterdir()} == {MANIFEST_NAME, partial.name}
    translate(translation, tmp_path / "x.npy", f"{url}/killed")
    translate(translation, tmp_path / "x.npy", tmp_path / "out")
    for name in (MANIFEST_NAME, "x.npy"):
        assert (folder / "killed" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://no-such-bucket/out", r"s3://no-such-bucket/out cannot be written \(The specified bucket does not exist"),
        ("hf://datasets/alice/nothing", "(?s)cannot be written .*repository not found.*: check that it is there"),
        ("hf://datasets/bob/moved", "(?s)cannot be written .*: check that it is there and that you may write to it"),
        ("ftp://127.0.0.1:9/out", r"ftp://127\.0\.0\.1:9/out cannot be written .*give another output folder"),
        ("s4://bucket/out", r"s4://bucket/out cannot be written \(Protocol not known: s4"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_of(
    translation: Translation, inputs: Path, s3: str, hub: HubServer, place: str, message: str
) -> None:
    hub.create("datasets", "bob/moved")
    with pytest.raises(StitchError, match=message):
        translate(translation, inputs, place)


def test_remote_inputs_and_output_are_kept_apart(translation: Translation, inputs: Path, s3: str) -> None:
    fsspec.filesystem("s3").put(str(inputs), "bucket/apart", recursive=True)
    for place, output in (("apart", "apart/out"), ("apart/0/0.npy", "apart"), ("apart", "apart")):
        with pytest.raises(StitchError, match="are in one another: give another output folder"):
            translate(translation, f"{s3}/{place}", f"{s3}/{output}")
    assert translate(translation, f"{s3}/apart/0", f"{s3}/apart/0-out").files == FILES // 2
