"""The files of an index: what others read in them, and what the reader says of files that are not right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import safetensors.numpy

import twinlens
from twinlens.index import Index, ShardContent, weights_fingerprint, write_index, write_shard
from twinlens.index.layout import number_rows

METADATA = {"model": "m", "weights": "w", "dim": 4, "rows": 5, "shards": 3}


def write(folder: Path, dtype: str = "float32") -> np.ndarray:
    """Write an index of three shards, of which one is empty; return its vectors."""
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(dtype)
    for shard, rows in enumerate((slice(0, 3), slice(3, 3), slice(3, 5))):
        numbers = range(5)[rows]
        content = ShardContent(
            vectors[rows], [f"{n}.png" for n in numbers], [str(n) * 64 for n in numbers], [10 * n for n in numbers]
        )
        write_shard(folder, shard, content, rows.start)
    write_index(folder, {**METADATA, "dtype": dtype})
    return vectors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_is_read_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    vectors = write(tmp_path, dtype)
    index = Index.open(tmp_path)
    assert (index.rows, index.dim, index.metadata["kind"]) == (5, 4, "image")
    assert [type(shard) for shard in index.shards] == [np.memmap, np.ndarray, np.memmap]
    assert (np.concatenate(index.shards) == vectors).all()
    names = [f"{n}.png" for n in range(5)]
    assert len(index.paths) == 5
    assert [index.paths[row] for row in range(5)] == [*index.paths] == index.paths[:] == names
    assert index.paths[-1] == "4.png"
    with pytest.raises(IndexError):
        index.paths[5]
    assert index.read_table(2, ["row", "size"]).to_pydict() == {"row": [3, 4], "size": [30, 40]}


def test_other_libraries_read_it(tmp_path: Path) -> None:
    vectors = write(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "embeddings-00002.safetensors")
    assert tensors.keys() == {"embeddings"}
    assert (tensors["embeddings"] == vectors[3:]).all()
    table = parquet.read_table(tmp_path / "index-00002.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "row": "int64",
        "path": "string",
        "hash": "string",
        "size": "int64",
    }
    assert table.to_pylist()[1] == {"row": 4, "path": "4.png", "hash": "4" * 64, "size": 40}


def test_rows_are_numbered_at_the_end(tmp_path: Path) -> None:
    vectors = np.zeros((2, 4), np.float32)
    for shard, (count, provisional) in enumerate([(2, 0), (1, 3), (0, 6), (2, 9)]):
        write_shard(
            tmp_path, shard, ShardContent(vectors[:count], ["p"] * count, ["h"] * count, [1] * count), provisional
        )
    before = (tmp_path / "index-00000.parquet").stat().st_mtime_ns
    assert number_rows(tmp_path, 4) == 5
    write_index(tmp_path, {**METADATA, "dtype": "float32", "shards": 4})
    index = Index.open(tmp_path)
    assert [index.read_table(shard)["row"].to_pylist() for shard in range(4)] == [[0, 1], [2], [], [3, 4]]
    assert (tmp_path / "index-00000.parquet").stat().st_mtime_ns == before


def cut(file: Path, *, by: int = 1) -> None:
    file.write_bytes(file.read_bytes()[:-by])


def columns(folder: Path, **values: list[Any]) -> None:
    """Write the table of the first shard again, with these columns in place of its own, or beside them."""
    file = folder / "index-00000.parquet"
    parquet.write_table(pyarrow.table({**parquet.read_table(file).to_pydict(), **values}), file)


def change(folder: Path, **values: object) -> None:
    metadata = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**metadata, **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "is no index, it has no index.json, expected a folder that `twinlens"),
        (lambda f: (f / "index.json").rename(f / "job.json"), "not finished: run the same `twinlens embed` again"),
        (lambda f: (f / "index.json").write_text("{"), "is not that of an index"),
        (lambda f: change(f, format="other"), "expected a JSON object with the format 'twinlens-index'"),
        (lambda f: change(f, version=2), "has version 2, expected 1"),
        (lambda f: change(f, rows=None), "is damaged: expected rows, dim and shards as numbers"),
        (lambda f: change(f, rows=6), "promises 6 rows, and the shards have 5"),
        (lambda f: change(f, dim=5), r"has vectors \(3, 4\) of float32, expected \(rows, 5\) of float32"),
        (lambda f: change(f, shards=4), "embeddings-00003.safetensors is missing: the index has 4 shards"),
        (lambda f: (f / "embeddings-00002.safetensors").unlink(), "embeddings-00002.safetensors is missing"),
        (lambda f: cut(f / "embeddings-00000.safetensors"), r"is cut off: it has \d+ bytes, expected \d+"),
        (lambda f: cut(f / "embeddings-00000.safetensors", by=100), "is damaged or cut off"),
        (lambda f: (f / "embeddings-00000.safetensors").write_bytes(b""), "is damaged or cut off"),
        (lambda f: (f / "index-00001.parquet").unlink(), "index-00001.parquet is missing"),
        (lambda f: cut(f / "index-00000.parquet"), "index-00000.parquet is damaged or cut off"),
        (
            lambda f: (f / "index-00002.parquet").replace(f / "index-00000.parquet"),
            "index-00000.parquet has 2 rows, expected 3 as the vectors",
        ),
        (
            lambda f: columns(f, path=[1, 2, 3]),
            r"the columns .*path \(INT64 NONE\).*, expected row \(INT64 NONE\), path",
        ),
        (lambda f: columns(f, path=[["a"], [], []]), r"the columns .*path\.list"),
        (lambda f: columns(f, hash=[b"\xff"] * 3), r"the columns .*hash \(BYTE_ARRAY NONE\)"),
        (lambda f: columns(f, other=["\x1b"] * 3), r"the columns .*other"),
    ],
)  # type: ignore[misc]
def test_what_is_wrong_is_said(tmp_path: Path, damage: object, message: str) -> None:
    write(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        Index.open(tmp_path)


def test_values_that_a_table_lacks(tmp_path: Path) -> None:
    write(tmp_path)
    columns(tmp_path, path=["a", None, "c"])
    with pytest.raises(ValueError, match=r"index-00000\.parquet is damaged: it lacks values in path"):
        _ = Index.open(tmp_path).paths[0]


@pytest.mark.parametrize("length", [50_000, 5_000_000])
def test_texts_that_are_too_long(tmp_path: Path, length: int) -> None:
    write(tmp_path)
    columns(tmp_path, path=["a" * length] * 3)
    with pytest.raises(ValueError, match=r"index-00000\.parquet has .*(a path of more than 32,768 bytes|too long)"):
        _ = Index.open(tmp_path).paths[0]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none is not there, expected a folder that `twinlens embed` wrote"):
        Index.open(tmp_path / "none")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Writing .*index\.json failed"):
        write_index(tmp_path, {"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_of_weights() -> None:
    models = [
        twinlens.DualEncoderModel.from_pretrained(name) for name in ("siglip-shapes", "siglip-shapes", "clip-shapes")
    ]
    first, again, other = map(weights_fingerprint, models)
    assert first == again != other
    assert len(first) == 64
    assert weights_fingerprint(models[0].optimize_for_inference()) == first
    next(models[1].parameters()).data.flatten()[0] += 1
    assert weights_fingerprint(models[1]) != first
