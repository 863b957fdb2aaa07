"""Files that were translated already, and rows that no encoder gave, in every format."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather
from safetensors.torch import load_file, save_file

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, translate_files, translation_between

DIM = 6
FORMATS = ("x.npy", "x.parquet", "x.arrow", "x.feather", "x.safetensors")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(x: torch.Tensor, *, seed: int = 4) -> torch.Tensor:
    return x @ torch.linalg.qr(randn(DIM, DIM, seed=seed))[0] + 1


@pytest.fixture(scope="module")
def made() -> SearchTranslation:
    x = randn(200, DIM)
    return translation_between(x, turned(x))


def write(file: Path, rows: torch.Tensor) -> Path:
    table = pa.table({"latents": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1).numpy()), DIM)})
    if file.suffix == ".npy":
        np.save(file, rows.numpy())
    elif file.suffix == ".safetensors":
        save_file({"latents": rows}, file)
    elif file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".feather":
        feather.write_feather(table, str(file))
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return file


def read(file: Path) -> torch.Tensor:
    if file.suffix == ".npy":
        return torch.from_numpy(np.load(file))
    if file.suffix == ".safetensors":
        return load_file(file)["latents"]
    if file.suffix == ".parquet":
        return torch.tensor(pq.read_table(file)["latents"].to_pylist())
    if file.suffix == ".feather":
        return torch.tensor(feather.read_table(str(file))["latents"].to_pylist())
    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
        return torch.tensor(reader.read_all()["latents"].to_pylist())


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_translation_is_not_applied_twice(name: str, made: SearchTranslation, tmp_path: Path) -> None:
    write(tmp_path / name, randn(20, DIM))
    translate_files(made, tmp_path / name, tmp_path / "out", progress=False)
    for again in (tmp_path / "out", tmp_path / "out" / name):
        with pytest.raises(StitchError, match="was translated by this model already"):
            translate_files(made, again, tmp_path / "twice", progress=False)
    assert not (tmp_path / "twice" / name).exists()
    x = randn(200, DIM, seed=1)
    other = translation_between(x, turned(x, seed=9))
    assert translate_files(other, tmp_path / "out" / name, tmp_path / "other", progress=False).rows == 20
    assert translate_files(made, tmp_path / name, tmp_path / "out", progress=False).kept == 1


@pytest.mark.parametrize("name", ["x.parquet", "x.safetensors"])
def test_the_same_translation_is_applied_to_a_second_column(name: str, made: SearchTranslation, tmp_path: Path) -> None:
    """And to neither of both again."""
    first, second = randn(20, DIM), randn(20, DIM, seed=1)
    if name == "x.parquet":
        pq.write_table(pa.table({"latents": first.tolist(), "others": second.tolist()}), tmp_path / name)
    else:
        save_file({"latents": first, "others": second}, tmp_path / name)
    translate_files(made, tmp_path / name, tmp_path / "one", progress=False)
    translate_files(made, tmp_path / "one" / name, tmp_path / "both", column="others", progress=False)
    for column in ("latents", "others"):
        with pytest.raises(StitchError, match="was translated by this model already"):
            translate_files(made, tmp_path / "both" / name, tmp_path / "again", column=column, progress=False)
    torch.testing.assert_close(read(tmp_path / "both" / name).float(), made(first), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_zeros_stay_zeros_and_are_counted(name: str, made: SearchTranslation, tmp_path: Path) -> None:
    rows = randn(20, DIM)
    rows[[3, 17]] = 0
    write(tmp_path / name, rows)
    done = translate_files(made, tmp_path / name, tmp_path / "out", batch_size=8, progress=False)
    translated = read(tmp_path / "out" / name)
    assert [row for row, latent in enumerate(translated) if not latent.any()] == [3, 17]
    assert torch.allclose(translated[0], made(rows[:1])[0], atol=1e-6)
    assert done.zeros == 2
    assert "2 rows of zeros stay zeros" in str(done)
