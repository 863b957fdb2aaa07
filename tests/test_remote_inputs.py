"""Inputs over HTTP: how many bytes of them are fetched, counted by the server."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import byte_range
from pyarrow import feather
from safetensors.torch import save_file

from hf_relstitch import StitchError
from hf_relstitch.bulk import translate_files
from hf_relstitch.core.translation import Translation

ROWS, DIM = 100_000, 64  # 25 MB


class Ranges(SimpleHTTPRequestHandler):
    """Files with ranges of bytes; counts those that it sends."""

    protocol_version = "HTTP/1.1"
    sent = 0
    fault: str | None = None

    def do_HEAD(self) -> None:
        if not self.failed():
            super().do_HEAD()

    def failed(self) -> bool:
        if Ranges.fault is None:
            return False
        if Ranges.fault == "cut":
            self.close_connection = True
        else:
            self.send_response(int(Ranges.fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
        return True

    def do_GET(self) -> None:
        if self.failed():
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        start, stop = byte_range(self.headers.get("range", "bytes=0-"), len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        Ranges.sent += stop - start
        self.wfile.write(content[start:stop])

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same latents in each kind of file, beside something else."""
    folder = tmp_path_factory.mktemp("served")
    latents = np.random.default_rng(0).random((ROWS, DIM), "f4")
    np.save(folder / "x.npy", latents)
    save_file({"ids": torch.arange(ROWS), "latents": torch.from_numpy(latents)}, folder / "x.safetensors")
    column = pa.FixedSizeListArray.from_arrays(pa.array(latents.reshape(-1)), DIM)
    table = pa.table({"ids": np.arange(ROWS), "latents": column})
    pq.write_table(table, folder / "x.parquet", row_group_size=20_000)
    feather.write_feather(table, folder / "x.feather", chunksize=20_000)
    with pa.ipc.new_stream(folder / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The folder over HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    fsspec.get_filesystem_class("http").clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


def translation(d_source: int = DIM) -> Translation:
    made = Translation(d_source, 4, norm="keep")
    made.weight, made.bias, made.centre = torch.ones(d_source, 4), torch.ones(4), torch.zeros(d_source)
    return made


NAMES = ["x.npy", "x.safetensors", "x.parquet", "x.feather", "x.arrow"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_fetched_once_and_by_parts(folder: Path, url: str, tmp_path: Path, name: str) -> None:
    Ranges.sent = 0
    translate_files(translation(), f"{url}/{name}", tmp_path / "out", progress=False)
    fetched, size = Ranges.sent, (folder / name).stat().st_size
    translate_files(translation(), folder / name, tmp_path / "local", progress=False)
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert size <= fetched <= 1.01 * size
    Ranges.sent = 0
    assert translate_files(translation(), f"{url}/{name}", tmp_path / "out", progress=False).kept == 1
    assert not Ranges.sent, "what is done is not fetched again"


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_told_of_by_its_header(folder: Path, url: str, tmp_path: Path, name: str) -> None:
    Ranges.sent = 0
    with pytest.raises(StitchError, match="64 wide and the model translates latents of width 32"):
        translate_files(translation(32), f"{url}/{name}", tmp_path / "out", progress=False)
    assert Ranges.sent <= (folder / name).stat().st_size / 4


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", "500, message='Internal Server Error'"),
        ("429", "429, message='Too Many Requests'"),
        ("403", "403, message='Forbidden'"),
        ("404", "404, message='Not Found'"),
        ("cut", "Server disconnected"),
    ],
)
def test_a_server_that_fails_is_told_of_with_the_cause(
    fault: str, cause: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.get_filesystem_class("http").clear_instance_cache()
    with monkeypatch.context() as patch:
        patch.setattr(Ranges, "fault", fault)
        with pytest.raises(StitchError, match=rf"x.npy cannot be read \({cause}.*\): check the place") as caught:
            translate_files(translation(), f"{url}/x.npy", tmp_path / "out", progress=False)
        assert "\n" not in str(caught.value)
        made = translation()
        made.register_forward_pre_hook(lambda *_: patch.setattr(Ranges, "fault", fault))
        patch.setattr(Ranges, "fault", None)
        with pytest.raises(StitchError, match=rf"x.parquet cannot be translated to .* \({cause}.*run again"):
            translate_files(made, f"{url}/x.parquet", tmp_path / "out", batch_size=1000, progress=False)
    assert not [*(tmp_path / "out").glob("*.p*")]
    fsspec.get_filesystem_class("http").clear_instance_cache()
    assert translate_files(translation(), f"{url}/x.parquet", tmp_path / "out", progress=False).rows == ROWS


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x.npy", "s3://nowhere/x.npy"])
def test_a_server_that_is_not_there_is_told_of(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StitchError, match=r"x.npy cannot be read \(.+\): check the place"):
        translate_files(translation(), place, tmp_path / "out", progress=False)
    fsspec.get_filesystem_class(place.partition(":")[0]).clear_instance_cache()  # it has no credentials
