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

    def do_GET(self) -> None:
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
