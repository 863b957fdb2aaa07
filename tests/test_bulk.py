"""Translating stored latents: the same as `model.translate`, whatever the file, and whole after whatever happens."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pico
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk
from filelock import FileLock, Timeout
from hub_server import HubServer
from huggingface_hub import HfApi, constants, snapshot_download
from pyarrow import feather
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_relstitch import Encoder, RelativeStitcher, StitchError
from hf_relstitch.bulk import translate as running
from hf_relstitch.bulk import translate_files
from hf_relstitch.bulk.manifest import MANIFEST_NAME
from hf_relstitch.bulk.outputs import LOCK_NAME, Output
from hf_relstitch.bulk.translator import Translator, load_translation
from hf_relstitch.core.translation import Translation
from hf_relstitch.hub.files import checksum

D_SOURCE, D_TARGET = 16, 24


@pytest.fixture(scope="session")
def wide_target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier whose latents are wider than the source's."""
    return pico.saved("Roberta", tmp_path_factory.mktemp("wide") / "wide-roberta", seed=3, hidden_size=D_TARGET)


@pytest.fixture(scope="session")
def model(source_folder: str, wide_target: str) -> RelativeStitcher:
    """A stitched model that translates 16 dimensions to 24."""
    return RelativeStitcher.from_parts(source_folder, wide_target, pico.texts(80), progress=False)


@pytest.fixture(scope="session")
def model_folder(model: RelativeStitcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    folder = tmp_path_factory.mktemp("stitched") / "model"
    model.save_pretrained(folder)
    return folder


def latents(rows: int = 1000, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, D_SOURCE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lists(rows: torch.Tensor, kind: str) -> pa.Array:
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1).numpy()), D_SOURCE)
    kinds = {
        "fixed": fixed.type,
        "list": pa.list_(fixed.type.value_type),
        "large": pa.large_list(fixed.type.value_type),
    }
    return fixed.cast(kinds[kind])


def table(rows: torch.Tensor, kind: str = "fixed") -> pa.Table:
    """Latents between other columns, of types that are easily lost."""
    count = len(rows)
    return pa.table(
        {
            "id": pa.array([f"row {row}" for row in range(count)]),
            "latents": lists(rows, kind),
            "when": pa.array(range(count), pa.timestamp("ms", "UTC")),
            "tags": pa.array([[row, None] if row % 3 else None for row in range(count)], pa.list_(pa.int16())),
            "kind": pa.array(["a", "b"] * (count // 2) + ["a"] * (count % 2)).dictionary_encode(),
            "inner": pa.array([{"x": row, "y": None} for row in range(count)]),
        }
    )


def write_stream(content: pa.Table, file: Path) -> None:
    with pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=300)


def write_file(content: pa.Table, file: Path) -> None:
    with pa.ipc.new_file(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=300)


def read_stream(file: Path) -> pa.Table:
    with pa.ipc.open_stream(file) as reader:
        return reader.read_all()


TABLES: dict[str, tuple[str, Callable[..., None], Callable[..., pa.Table]]] = {
    "parquet": ("x.parquet", lambda content, file: pq.write_table(content, file, row_group_size=300), pq.read_table),
    "arrow stream": ("x.arrow", write_stream, read_stream),
    "arrow file": ("x.arrow", write_file, feather.read_table),
    "feather": ("x.feather", feather.write_feather, feather.read_table),
}


def translate(model: Any, inputs: Any, output: Path, **options: Any) -> running.BulkResult:
    return translate_files(model, inputs, output, progress=False, **{"batch_size": 128} | options)


def rows_of(content: pa.Table) -> torch.Tensor:
    values = content["latents"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(values.copy()).view(-1, D_TARGET)


def visible(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.name.startswith("."))


def partial(folder: Path) -> list[Path]:
    return list(folder.rglob(".partial-*"))


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_translated_and_its_other_columns_are_kept(
    model: RelativeStitcher, tmp_path: Path, name: str, kind: str
) -> None:
    file, write, read = TABLES[name]
    before = table(latents(), kind)
    write(before, tmp_path / file)
    assert translate(model, tmp_path / file, tmp_path / "out").rows == 1000
    after = read(tmp_path / "out" / file)
    assert torch.allclose(rows_of(after), model.translate(latents()), atol=1e-6)
    assert after.schema.remove(1) == before.schema.remove(1)
    assert after.schema.names == before.schema.names
    assert after.drop(["latents"]).to_pylist() == before.drop(["latents"]).to_pylist()
    assert type(after.schema.field("latents").type) is type(before.schema.field("latents").type)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["parquet", "npy", "safetensors"])
def test_the_dtype_is_kept(model: RelativeStitcher, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    rows, file = latents(dtype=dtype), tmp_path / f"x.{name}"
    save(rows, file)
    translate(model, file, tmp_path / "out")
    found = load(tmp_path / "out" / file.name)
    assert found.dtype == dtype
    assert torch.allclose(found, model.translate(rows), atol=2e-3 if dtype == torch.float16 else 1e-6)


def save(rows: torch.Tensor, file: Path) -> None:
    if file.suffix == ".parquet":
        pq.write_table(table(rows), file)
    elif file.suffix == ".npy":
        np.save(file, rows.numpy())
    else:
        save_file({"latents": rows}, file)


def load(file: Path) -> torch.Tensor:
    if file.suffix == ".parquet":
        return rows_of(pq.read_table(file))
    return torch.from_numpy(np.load(file)) if file.suffix == ".npy" else load_file(file)["latents"]


@pytest.mark.parametrize(("stored", "wanted"), [("float32", "float16"), ("float16", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("name", ["parquet", "npy", "safetensors"])
def test_the_dtype_is_chosen(model: RelativeStitcher, tmp_path: Path, name: str, stored: str, wanted: str) -> None:
    rows, file = latents(dtype=getattr(torch, stored)), tmp_path / f"x.{name}"
    save(rows, file)
    translate(model, file, tmp_path / "out", dtype=wanted)
    found = load(tmp_path / "out" / file.name)
    assert found.dtype == getattr(torch, wanted)
    close = {"rtol": 2e-3, "atol": 2e-3} if wanted == "float16" else {"atol": 1e-6}
    assert torch.allclose(found.double(), model.translate(rows.float()).double(), **close)


def test_a_safetensors_file_keeps_its_other_tensors_and_metadata(model: RelativeStitcher, tmp_path: Path) -> None:
    others = {"ids": torch.arange(1000), "a": torch.arange(5, dtype=torch.int8), "z": torch.rand(3, 3).double()}
    rows = latents(dtype=torch.bfloat16)
    save_file({"latents": rows, **others}, tmp_path / "x.safetensors", {"made": "by hand"})
    translate(model, tmp_path / "x.safetensors", tmp_path / "out", dtype="float32")
    found = load_file(tmp_path / "out" / "x.safetensors")
    assert torch.allclose(found.pop("latents"), model.translate(rows.float()), atol=1e-6)
    assert found.keys() == others.keys()
    assert all(torch.equal(found[name], others[name]) for name in others)
    with safe_open(tmp_path / "out" / "x.safetensors", "pt") as opened:
        assert opened.metadata().items() > {"made": "by hand"}.items()
    save_file({"latents": found["z"], **others}, tmp_path / "by_library.safetensors")
    assert (tmp_path / "out" / "x.safetensors").stat().st_size % 8 == 5, "the int8 tensor comes last"


def test_parquet_keeps_the_compression_of_each_column(model: RelativeStitcher, tmp_path: Path) -> None:
    content = table(latents()).select(["id", "latents"])
    codecs = {"id": "ZSTD", "latents.list.element": "NONE"}
    pq.write_table(content, tmp_path / "x.parquet", compression=codecs)
    translate(model, tmp_path / "x.parquet", tmp_path / "out")
    group = pq.ParquetFile(tmp_path / "out" / "x.parquet").metadata.row_group(0)
    assert [group.column(index).compression for index in (0, 1)] == ["ZSTD", "UNCOMPRESSED"]


def test_parquet_keeps_the_compression_of_lists_whatever_their_elements_are_called(
    model: RelativeStitcher, tmp_path: Path
) -> None:
    options = {"use_compliant_nested_type": False, "compression": "zstd"}
    pq.write_table(table(latents(), "list"), tmp_path / "x.parquet", **options)
    assert b"latents.list.item" in str(pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).to_dict()).encode()
    translate(model, tmp_path / "x.parquet", tmp_path / "out")
    group = pq.ParquetFile(tmp_path / "out" / "x.parquet").metadata.row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert not columns["latents.list.element"].has_dictionary_page
    assert columns["tags.list.element"].has_dictionary_page


def test_a_file_without_rows_stays_one(model: RelativeStitcher, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, (file, write, _) in TABLES.items():
        (tmp_path / "in" / name).mkdir()
        write(table(latents(0)), tmp_path / "in" / name / file)
    np.save(tmp_path / "in" / "x.npy", latents(0).numpy())
    save_file({"latents": latents(0)}, tmp_path / "in" / "x.safetensors")
    assert translate(model, tmp_path / "in", tmp_path / "out").rows == 0
    assert pq.read_table(tmp_path / "out" / "parquet" / "x.parquet").num_rows == 0
    assert np.load(tmp_path / "out" / "x.npy").shape == load(tmp_path / "out" / "x.safetensors").shape == (0, D_TARGET)


def data_set(seed: int, length: int = D_SOURCE) -> Dataset:
    features = Features({"id": Value("int64"), "latents": List(Value("float32"), length=length)})
    return Dataset.from_dict({"id": range(500), "latents": latents(500, seed=seed).numpy()}, features=features)


@pytest.mark.parametrize("length", [D_SOURCE, -1])
def test_a_saved_data_set_is_loaded_again(model: RelativeStitcher, tmp_path: Path, length: int) -> None:
    splits = DatasetDict({"train": data_set(0, length), "test": data_set(1, length)})
    splits.save_to_disk(tmp_path / "in", num_shards={"train": 2, "test": 1})
    translate(model, tmp_path / "in", tmp_path / "out", dtype="float64")
    found = load_from_disk(str(tmp_path / "out"))
    assert found.keys() == splits.keys()
    for seed, split in enumerate(("train", "test")):
        data = found[split].with_format("torch", dtype=torch.float64)
        assert torch.allclose(data["latents"][:], model.translate(latents(500, seed=seed).double()), atol=1e-6)
        assert found[split].features["latents"] == List(Value("float64"), length=-1 if length == -1 else D_TARGET)
        assert found[split]["id"][:] == list(range(500))
        assert found[split]._fingerprint != splits[split]._fingerprint


def test_a_data_set_of_parquet_files_is_loaded_again(model: RelativeStitcher, tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        (tmp_path / "in" / split).mkdir(parents=True)
        data_set(seed).to_parquet(tmp_path / "in" / split / "0.parquet")
    translate(model, tmp_path / "in", tmp_path / "out")
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: data.num_rows for split, data in found.items()} == {"train": 500, "test": 500}
    assert found["test"].features["latents"] == List(Value("float32"), length=D_TARGET)


def test_a_data_set_and_a_model_on_the_hub(
    model: RelativeStitcher, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub("alice/stitched")
    (tmp_path / "in" / "data").mkdir(parents=True)
    data_set(0).to_parquet(tmp_path / "in" / "data" / "train.parquet")
    np.save(tmp_path / "in" / "more.npy", latents().numpy())
    HfApi().create_repo("alice/latents", repo_type="dataset")
    HfApi().upload_folder(repo_id="alice/latents", folder_path=tmp_path / "in", repo_type="dataset")
    translate("alice/stitched", "alice/latents", tmp_path / "out")
    translate(model, tmp_path / "in", tmp_path / "local")
    translate(model, "hf://datasets/alice/latents/data/train.parquet", tmp_path / "one")
    for name in ("data/train.parquet", "more.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert (tmp_path / "one" / "train.parquet").read_bytes() == (tmp_path / "out/data/train.parquet").read_bytes()
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert manifest["model"]["name"] == "alice/stitched"
    assert len(manifest["model"]["revision"]) == len(manifest["inputs"]["more.npy"]["etag"]) == 40
    with pytest.raises(StitchError, match="alice/nothing cannot be read"):
        translate(model, "alice/nothing", tmp_path / "nothing")


def test_a_repo_that_was_fetched_whole_is_read_offline(
    model: RelativeStitcher, source_folder: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub("alice/whole")
    HfApi().create_repo("alice/encoder")
    HfApi().upload_folder(repo_id="alice/encoder", folder_path=source_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for repo in ("alice/whole", "alice/encoder"):
        snapshot_download(repo)
    save(latents(), tmp_path / "x.npy")
    online = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    translate("alice/whole", tmp_path / "x.npy", tmp_path / "out")
    found, expected = (Encoder.from_pretrained(place) for place in ("alice/encoder", source_folder))
    assert found.encode(pico.texts(3), progress=False).equal(expected.encode(pico.texts(3), progress=False))
    assert len(hub.requests) == online


def test_a_repo_that_was_fetched_in_part_is_refused_offline(source_folder: str, hub: HubServer, tmp_path: Path) -> None:
    HfApi().create_repo("alice/part")
    HfApi().upload_folder(repo_id="alice/part", folder_path=source_folder)
    options = {"cache_dir": tmp_path}
    AutoModel.from_pretrained("alice/part", **options)
    with pytest.raises(StitchError, match=r"downloading modules\.json of alice/part failed.*; or load it once online"):
        Encoder.from_pretrained("alice/part", local_files_only=True, **options)
    Encoder.from_pretrained("alice/part", **options)
    Encoder.from_pretrained("alice/part", local_files_only=True, **options)


def test_whatever_fsspec_opens(model: RelativeStitcher, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("x.parquet", "x.npy", "x.safetensors", "y.npy"):
        save(latents(), tmp_path / name)
        memory.put(str(tmp_path / name), f"/bulk/in/{name}")
    translate(model, ["memory://bulk/in/*.[ps]*", "memory://bulk/in/x.npy"], tmp_path / "out")
    translate(model, [tmp_path / name for name in ("x.parquet", "x.npy", "x.safetensors")], tmp_path / "local")
    assert visible(tmp_path / "out") == ["x.npy", "x.parquet", "x.safetensors"]
    for name in visible(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.parametrize("max_shard_size", ["50GB", "10KB"])
def test_only_the_translation_is_read(
    model: RelativeStitcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_shard_size: str
) -> None:
    model.save_pretrained(tmp_path / "model", max_shard_size=max_shard_size)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1 or max_shard_size == "50GB"
    monkeypatch.setattr(RelativeStitcher, "from_pretrained", None)
    monkeypatch.setattr(RelativeStitcher, "__init__", None)
    translation, which = load_translation(tmp_path / "model")
    assert torch.equal(translation(latents()), model.translate(latents()))
    assert which["name"] == "model"
    assert which["fingerprint"] == load_translation(model)[1]["fingerprint"]


def test_a_sharpened_translation(source_folder: str, wide_target: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"progress": False, "alpha": 0.7, "ridge": 0.3, "gamma": 1.0}
    sharpened = RelativeStitcher.from_parts(source_folder, wide_target, pico.texts(80), **options)
    sharpened.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "x.npy", latents().numpy())
    translate(tmp_path / "model", tmp_path / "x.npy", tmp_path / "out")
    assert torch.allclose(load(tmp_path / "out" / "x.npy"), sharpened.translate(latents()), atol=1e-5)
    assert json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())["model"]["gamma"] == 1.0


def test_a_model_that_is_damaged_is_refused(
    model: RelativeStitcher, tmp_path: Path, altered: Callable[[Path], None]
) -> None:
    model.save_pretrained(tmp_path / "model")
    altered(tmp_path / "model" / "model.safetensors")
    with pytest.raises(StitchError, match="is damaged or was altered"):
        load_translation(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(StitchError, match=r"has no weights model\.safetensors that its config lists"):
        load_translation(tmp_path / "model")


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_weights_outside_of_the_folder_are_refused(model: RelativeStitcher, tmp_path: Path, kind: str) -> None:
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    place = "../outside.safetensors" if kind == "relative" else str(tmp_path / "outside.safetensors")
    save_file(model.state_dict(), tmp_path / "outside.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(model.state_dict(), place)}))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["checksums"] = {place: checksum(tmp_path / "outside.safetensors")}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(StitchError, match=rf"a file that model names is '{place}': expected a path inside the repo"):
        load_translation(tmp_path / "model")


KILLED = """
import os, signal, sys
from hf_relstitch.bulk import translate as running, translate_files
real = running.FORMATS[".parquet"]
def killed(source, sink, translator):
    for batch, done in enumerate(real(source, sink, translator)):
        if (source.name, batch) == ("2.parquet", 3):
            sink.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        yield done
running.FORMATS[".parquet"] = killed
translate_files(*sys.argv[1:], batch_size=128, progress=False)
"""


def shards(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    for seed in range(count):
        pq.write_table(table(latents(seed=seed)), folder / f"{seed}.parquet")
    return folder


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(model_folder: Path, tmp_path: Path) -> None:
    inputs, out, whole = shards(tmp_path / "in"), tmp_path / "out", tmp_path / "whole"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, model_folder, inputs, out], check=False, env=os.environ, timeout=240
    )
    assert killed.returncode == -signal.SIGKILL
    assert visible(out) == ["0.parquet", "1.parquet"]
    assert [file.name for file in partial(out)] == [".partial-2.parquet"]
    assert partial(out)[0].stat().st_size > 0
    stamps = [(out / name).stat().st_mtime_ns for name in visible(out)]
    with pytest.raises(StitchError, match=r"2\.parquet: it is not translated yet; 3\.parquet: it is not"):
        translate(model_folder, inputs, out, verify=True)
    done = translate(model_folder, inputs, out)
    assert (done.files, done.kept, done.rows) == (3, 2, 3000)
    assert [(out / name).stat().st_mtime_ns for name in ("0.parquet", "1.parquet")] == stamps
    translate(model_folder, inputs, whole)
    assert (out / MANIFEST_NAME).read_bytes() == (whole / MANIFEST_NAME).read_bytes()
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in visible(whole))
    assert sum(pq.read_metadata(out / name).num_rows for name in visible(out)) == 5000
    assert not partial(out)


def test_a_file_that_was_moved_in_but_not_written_down_is_made_again(
    model: RelativeStitcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, out = shards(tmp_path / "in", 3), tmp_path / "out"
    real = running.Manifest.write

    def interrupted(manifest: running.Manifest, folder: Output) -> None:
        if "1.parquet" in manifest.shards:
            raise KeyboardInterrupt
        real(manifest, folder)

    with monkeypatch.context() as patch:
        patch.setattr(running.Manifest, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            translate(model, inputs, out)
    assert visible(out) == ["0.parquet", "1.parquet"]
    assert translate(model, inputs, out).files == 2
    assert translate(model, inputs, out, verify=True).kept == 3


def test_a_second_run_checks_and_mends(
    model: RelativeStitcher, tmp_path: Path, altered: Callable[[Path], None]
) -> None:
    inputs, out = shards(tmp_path / "in", 3), tmp_path / "out"
    translate(model, inputs, out)
    before = [(out / name).read_bytes() for name in visible(out)]
    assert str(translate(model, inputs, out)) == "translated nothing; 3 files were there already"
    altered(out / "1.parquet")
    (out / "2.parquet").unlink()
    fault = r"1\.parquet: it is damaged or was altered; 2\.parquet: it is not there: run again without verify"
    with pytest.raises(StitchError, match=fault):
        translate(model, inputs, out, verify=True)
    assert translate(model, inputs, out).files == 2
    assert [(out / name).read_bytes() for name in visible(out)] == before


def test_a_cluster_gets_a_translation_on_the_cpu(
    model: RelativeStitcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nodes need not have the GPU that the model is on, and the model stays there."""
    moved: list[Translation] = []

    def here(make: Callable[..., Any], items: Any, folder: Output, translator: Translator) -> Iterator[Any]:
        assert [translator.translation] == moved
        for item in items:
            yield item, make(item, folder, translator)

    monkeypatch.setattr(Translation, "cpu", lambda self: moved.append(self) or self)
    monkeypatch.setattr(running, "each_on_cluster", here)
    save(latents(), tmp_path / "x.npy")
    translate(model, tmp_path / "x.npy", tmp_path / "out", ray=True)
    assert torch.allclose(load(tmp_path / "out" / "x.npy"), model.translate(latents()), atol=1e-6)
    assert moved[0] is not model.translation


def test_more_inputs_are_added(model: RelativeStitcher, tmp_path: Path) -> None:
    inputs, out = shards(tmp_path / "in", 3), tmp_path / "out"
    translate(model, inputs / "1.parquet", out)
    done = translate(model, inputs, out)
    assert (done.files, done.kept) == (2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "was begun with batch_size 128 and not 64: give another output folder, or the same"),
        ({"dtype": "float16"}, "was begun with dtype None and not 'float16'"),
    ],
)
def test_other_settings_are_refused(
    model: RelativeStitcher, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    inputs = shards(tmp_path / "in", 1)
    translate(model, inputs, tmp_path / "out")
    with pytest.raises(StitchError, match=message):
        translate(model, inputs, tmp_path / "out", **options)


def test_another_model_is_refused(model: RelativeStitcher, stitched: RelativeStitcher, tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", 1)
    translate(model, inputs, tmp_path / "out")
    with pytest.raises(StitchError, match=r"was begun with model 'weights:.* and not 'weights:"):
        translate(stitched, inputs, tmp_path / "out")


def test_an_input_that_has_changed_is_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", 1)
    translate(model, inputs, tmp_path / "out")
    pq.write_table(table(latents(seed=9)), inputs / "0.parquet")
    with pytest.raises(StitchError, match=r"0\.parquet has changed since it was translated: size and etag were"):
        translate(model, inputs, tmp_path / "out")


def test_a_run_that_translated_nothing_binds_nobody(model: RelativeStitcher, tmp_path: Path) -> None:
    content = table(latents()).rename_columns({"latents": "vector"})
    pq.write_table(content, tmp_path / "x.parquet")
    with pytest.raises(StitchError, match="there is no single column 'latents'"):
        translate(model, tmp_path / "x.parquet", tmp_path / "out")
    assert translate(model, tmp_path / "x.parquet", tmp_path / "out", column="vector").rows == 1000


@pytest.mark.parametrize("damage", [{"model": {}}, {"inputs": 3}, {"shards": {"0.parquet": {}}}])
def test_a_damaged_manifest_is_refused(model: RelativeStitcher, tmp_path: Path, damage: dict[str, Any]) -> None:
    inputs = shards(tmp_path / "in", 1)
    translate(model, inputs, tmp_path / "out")
    manifest = tmp_path / "out" / MANIFEST_NAME
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | damage))
    with pytest.raises(StitchError, match=r"translation\.json is damaged .*: translate into another folder"):
        translate(model, inputs, tmp_path / "out")


def test_what_another_run_has_done_meanwhile_is_kept(
    model: RelativeStitcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, locked = shards(tmp_path / "in", 1), Output.run_lock

    def after_another(self: Output) -> AbstractContextManager[None]:
        monkeypatch.setattr(Output, "run_lock", locked)
        translate(model, inputs, tmp_path / "out")
        return locked(self)

    monkeypatch.setattr(Output, "run_lock", after_another)
    done = translate(model, inputs, tmp_path / "out")
    assert (done.files, done.kept) == (0, 1)


def test_two_runs_at_once_are_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK_NAME), pytest.raises(StitchError, match="another run is writing to"):
        translate(model, inputs, tmp_path / "out")


def test_what_is_done_needs_no_lock(model: RelativeStitcher, tmp_path: Path) -> None:
    inputs, lock = shards(tmp_path / "in", 1), tmp_path / "out" / LOCK_NAME
    translate(model, inputs, tmp_path / "out")
    with FileLock(lock):
        assert translate(model, inputs, tmp_path / "out").kept == 1
    lock.unlink()
    lock.mkdir()  # so that nobody can make the lock
    assert translate(model, inputs, tmp_path / "out").kept == 1
    (tmp_path / "out" / "0.parquet").unlink()
    with pytest.raises(StitchError, match=r"out cannot be written .*: give another output folder"):
        translate(model, inputs, tmp_path / "out")


def test_an_error_of_a_run_is_not_put_down_to_its_folder(tmp_path: Path) -> None:
    for error in (FileNotFoundError("an input"), Timeout("another lock")):
        with pytest.raises(type(error)), Output.at(tmp_path).run_lock():
            raise error


def spoiled(value: float) -> torch.Tensor:
    rows = latents()
    rows[[700, 777], 3] = value
    return rows


def with_row(row: list[float | None] | None) -> pa.Table:
    rows: list[Any] = latents().tolist()
    rows[600] = row
    return pa.table({"latents": pa.array(rows, pa.list_(pa.float32()))})


def truncated(file: Path, keep: float = 0.7) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])


BAD_TABLES = {
    "no column": (
        table(latents()).rename_columns({"latents": "vector"}),
        r"no single column 'latents': its columns are id, vector, .*for column=, are vector",
    ),
    "no lists": (
        pa.table({"latents": [1.0, 2.0]}),
        "column 'latents' holds double: expected lists of float16, float32",
    ),
    "whole numbers": (pa.table({"latents": [[1, 2]]}), "holds list<.*: int64>: expected lists of float16"),
    "narrow": (
        pa.table({"latents": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(24, "f4")), 8)}),
        "column 'latents' is 8 wide and the model translates latents of width 16: give latents of the model's own",
    ),
    "ragged": (with_row([1.0] * 15), "row 600 is 15 wide and the model translates latents of width 16"),
    "null row": (with_row(None), r"row 600 has no latent \(null\): fill in or remove"),
    "null value": (with_row([None] * 16), r"row 600 has missing values \(null\) in its latent"),
    "not a number": (table(spoiled(float("nan"))), "row 700 has not-a-number or infinite values: mend or remove it"),
    "infinite": (table(spoiled(float("-inf"))), "row 700 has not-a-number or infinite values"),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
@pytest.mark.parametrize("name", ["parquet", "arrow stream"])
def test_a_bad_table_is_refused_and_leaves_nothing(
    model: RelativeStitcher, tmp_path: Path, name: str, fault: str
) -> None:
    content, message = BAD_TABLES[fault]
    file, write, _ = TABLES[name]
    write(content, tmp_path / file)
    with pytest.raises(StitchError, match=f"{file}: .*{message}"):
        translate(model, tmp_path / file, tmp_path / "out")
    assert visible(tmp_path / "out") == partial(tmp_path / "out") == []


def test_rows_that_are_not_finite_go_through_when_asked(model: RelativeStitcher, tmp_path: Path) -> None:
    pq.write_table(table(spoiled(float("nan"))), tmp_path / "x.parquet")
    translate(model, tmp_path / "x.parquet", tmp_path / "out", keep_nonfinite=True)
    found = load(tmp_path / "out" / "x.parquet")
    bad = torch.zeros(1000, dtype=torch.bool)
    bad[[700, 777]] = True
    assert torch.equal(found.isnan().all(dim=1), bad)
    assert torch.allclose(found[~bad], model.translate(latents())[~bad], atol=1e-6)


def test_a_latent_too_large_for_its_dtype_is_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    rows = latents()
    rows[9] *= 1e6
    np.save(tmp_path / "x.npy", rows.numpy())
    with pytest.raises(StitchError, match=r"row 9 is too large for torch\.float16 after its translation: use a wider"):
        translate(model, tmp_path / "x.npy", tmp_path / "out", dtype="float16")


@pytest.mark.parametrize("name", [*TABLES, "npy", "safetensors"])
@pytest.mark.parametrize("keep", [0, 0.7, 0.999])
def test_a_file_cut_short_is_refused_and_leaves_nothing(
    model: RelativeStitcher, tmp_path: Path, name: str, keep: float
) -> None:
    file = tmp_path / (TABLES[name][0] if name in TABLES else f"x.{name}")
    if name in TABLES:
        TABLES[name][1](table(latents()), file)
    else:
        save(latents(), file)
    truncated(file, keep)
    with pytest.raises(StitchError, match=rf"{file.name}.*(copy or write it again|check that the one is whole)"):
        translate(model, file, tmp_path / "out")
    assert visible(tmp_path / "out") == partial(tmp_path / "out") == []


def test_a_stream_without_its_end_is_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    """Arrow itself would take it for a shorter table."""
    write_stream(table(latents()), tmp_path / "x.arrow")
    content = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(content[:-8])
    with pytest.raises(StitchError, match=r"x\.arrow: it is cut short, or no Arrow file"):
        translate(model, tmp_path / "x.arrow", tmp_path / "out")


BAD_ARRAYS = {
    "one axis": (
        np.ones(16, "f4"),
        r"of shape \(16,\) and dtype <f4, row by row: expected \(n, d\) little-endian floats",
    ),
    "column by column": (np.asfortranarray(latents().numpy()), "column by column: expected"),
    "whole numbers": (np.ones((5, 16), "i4"), "dtype <i4"),
    "other end first": (np.ones((5, 16), ">f4"), "dtype >f4"),
    "narrow": (np.ones((5, 15), "f4"), "the matrix is 15 wide and the model translates latents of width 16"),
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
def test_a_bad_array_is_refused(model: RelativeStitcher, tmp_path: Path, fault: str) -> None:
    content, message = BAD_ARRAYS[fault]
    np.save(tmp_path / "x.npy", content)
    with pytest.raises(StitchError, match=message):
        translate(model, tmp_path / "x.npy", tmp_path / "out")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(2), "b": torch.ones(2)}, "there is no tensor 'latents': its tensors are a, b"),
        ({"latents": torch.ones(5, 16).long()}, r"'latents' is I64 of shape \(5, 16\): expected \(n, d\) floats"),
        ({"latents": torch.ones(5, 17)}, "tensor 'latents' is 17 wide and the model translates"),
    ],
)
def test_a_bad_safetensors_file_is_refused(
    model: RelativeStitcher, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(StitchError, match=message):
        translate(model, tmp_path / "x.safetensors", tmp_path / "out")


WHOLE = b'{"dtype": "F32", "shape": [1, 16], "data_offsets": [0, 64]}'


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b'{"latents": 3}',
        b'{"latents": {"shape": [1, 16]}}',
        b'{"latents": {"shape": "x", "data_offsets": [0, 64]}}',
        b'{"latents": {"shape": [1, 16], "data_offsets": [0]}}',
        b'{"latents": {"shape": [1, 16], "data_offsets": [0, 64]}}',
        b'{"latents": {"dtype": "F32", "shape": [1, 16], "data_offsets": [0, 64.0]}}',
        b'{"latents": {"dtype": "F32", "shape": [-1, 16], "data_offsets": [64, 0]}, "x": %s}' % WHOLE,
        b'{"latents": %s, "x": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}}' % WHOLE,
        b'{"latents": %s, "__metadata__": "pt"}' % WHOLE,
        b'{"latents": %s, "__metadata__": {"rows": 1}}' % WHOLE,
        b"\xff",
    ],
)
def test_a_damaged_safetensors_header_is_refused(model: RelativeStitcher, tmp_path: Path, header: bytes) -> None:
    header = header.ljust(64)
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(StitchError, match=r"x\.safetensors: its header is damaged"):
        translate(model, tmp_path / "x.safetensors", tmp_path / "out")


def test_an_output_that_cannot_be_written_is_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StitchError, match=r"file/out cannot be written .*: give another output folder"):
        translate(model, inputs, tmp_path / "file" / "out")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let the operating system refuse to make any file larger than so many bytes, as a disk that gets full does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", [*TABLES, "npy", "safetensors"])
def test_a_file_that_there_is_no_room_for_is_not_there_in_half(
    model: RelativeStitcher, tmp_path: Path, name: str
) -> None:
    file = tmp_path / (TABLES[name][0] if name in TABLES else f"x.{name}")
    if name in TABLES:
        TABLES[name][1](table(latents()), file)
    else:
        save(latents(), file)
    with (
        room_for(30_000),
        pytest.raises(StitchError, match=rf"{file.name}: saving to .*File too large.*: free some space"),
    ):
        translate(model, file, tmp_path / "out")
    assert visible(tmp_path / "out") == partial(tmp_path / "out") == []
    assert translate(model, file, tmp_path / "out").rows == 1000


def test_inputs_and_output_are_kept_apart(model: RelativeStitcher, tmp_path: Path) -> None:
    inputs = shards(tmp_path / "in", 1)
    for place, output in ((inputs, inputs / "out"), (inputs / "0.parquet", inputs), (inputs, inputs)):
        with pytest.raises(StitchError, match="are in one another: give another output folder"):
            translate(model, place, output)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.parquet").write_text("mine")
    with pytest.raises(StitchError, match=r"0\.parquet is there and no translation of these inputs"):
        translate(model, inputs, tmp_path / "out")
    assert (tmp_path / "out" / "0.parquet").read_text() == "mine"


def test_inputs_that_are_not_there_are_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "more").mkdir()
    inputs = shards(tmp_path / "in", 1)
    (tmp_path / "more" / "0.parquet").write_bytes((inputs / "0.parquet").read_bytes())
    faults = {
        "there are no inputs: give at least one": [],
        "empty holds nothing to translate: expected files that end in .parquet": [tmp_path / "empty"],
        "there is no file or folder": [tmp_path / "nowhere.npy"],
        "would both become 0.parquet: give the folder that holds both": [inputs, tmp_path / "more"],
    }
    for message, places in faults.items():
        with pytest.raises(StitchError, match=message):
            translate(model, places, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8': expected one of float16"),
        ({"batch_size": 0}, "batch_size is 0: expected 1"),
    ],
)
def test_bad_settings_are_refused(model: RelativeStitcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StitchError, match=message):
        translate(model, "x.npy", Path("out"), **options)


def test_bfloat16_is_for_safetensors_only(model: RelativeStitcher, tmp_path: Path) -> None:
    for name, who in (("x.npy", "numpy"), ("x.parquet", "tables")):
        save(latents(), tmp_path / name)
        with pytest.raises(StitchError, match=rf"{who} cannot hold torch\.bfloat16: use float16"):
            translate(model, tmp_path / name, tmp_path / "out", dtype="bfloat16")


MEMORY = """
import sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from hf_relstitch.bulk.outputs import Output
from hf_relstitch.bulk.translate import _translate_file
from hf_relstitch.bulk.sources import Source
from hf_relstitch.bulk.translator import Translator
from hf_relstitch.core.translation import Translation
translation = Translation(128, 128, norm="keep")
for buffer in translation.buffers():
    buffer.fill_(0.01)
for path in map(Path, sys.argv[2:]):
    source = Source(LocalFileSystem(), str(path), path.name, path.stat().st_size, "")
    _translate_file(source, Output.at(sys.argv[1]), Translator(translation, batch_size=4096))
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


def write_many(file: Path, rows: int) -> None:
    """Random latents of 128 dimensions, a hundred MB for 200,000 rows."""
    values = np.random.default_rng(0).random((rows, 128), "f4")
    if file.suffix == ".npy":
        np.save(file, values)
    elif file.suffix == ".safetensors":
        save_file({"latents": torch.from_numpy(values)}, file)
    else:
        content = pa.table({"latents": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 128)})
        if file.suffix == ".parquet":
            pq.write_table(content, file)
        else:
            write_stream(content, file)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "suffix", ["parquet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("arrow", "npy", "safetensors"))]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"small.{suffix}", tmp_path / f"large.{suffix}"]
    for file, rows in zip(files, (20_000, 200_000), strict=True):
        write_many(file, rows)
    command = [sys.executable, "-c", MEMORY, tmp_path / "out", *files]
    prompt = {  # allocators that give back at once, so that the peak is of what is in use
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240, env=os.environ | prompt)
    small, large = map(int, done.stdout.split())
    assert large - small < 20, f"{small} MB for 10 MB of latents and {large} MB for 100 MB"


@pytest.mark.slow
def test_command_line(model: RelativeStitcher, model_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", latents().numpy())
    save_file({"latents": latents()}, tmp_path / "x.safetensors")
    command = [str(Path(sys.executable).with_name("hf-relstitch")), "translate", str(model_folder)]
    command += [str(tmp_path / name) for name in ("x.npy", "x.safetensors", "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "translated 2,000 rows in 2 files" in done.stdout
    assert "rows/s" in done.stdout
    assert "translating" in done.stderr
    assert torch.allclose(load(tmp_path / "out" / "x.npy"), model.translate(latents()), atol=1e-6)
    done = subprocess.run([*command, "--verify"], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout == "2 files are as they were written\n"
    (tmp_path / "out" / "x.npy").unlink()
    done = subprocess.run([*command, "--verify"], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert "x.npy: it is not there" in " ".join(done.stderr.split())
