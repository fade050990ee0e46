"""Vectors made elsewhere are found by their ids, and what is wrong with them is said with ids and counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from goods.data.matrices import read_matrix
from goods.errors import GoodsError

IDS = ["0120", "a b", "x9", "7"]
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


def npz(path: Path, **arrays) -> Path:
    np.savez(path, **{"ids": np.array(IDS), "embeddings": VECTORS} | arrays)
    return path


def parquet(path: Path, columns: dict) -> Path:
    pd.DataFrame(columns).to_parquet(path, index=False)
    return path


def written(folder: Path, form: str) -> Path:
    """The vectors in a file of some form."""
    path, beside = folder / f"{form}.safetensors", folder / form
    if form == "npz":
        return npz(folder / "v.npz")
    if form == "npz of bytes, 16 bits":
        return npz(folder / "v.npz", ids=np.array(IDS, dtype="S"), embeddings=VECTORS.astype(np.float16))
    if form == "lists":
        return parquet(folder / "v.parquet", {"sku": IDS, "vector": list(VECTORS), "title": "a"})
    if form == "number columns":
        return parquet(folder / "v.pq", {"id": IDS, "a": VECTORS[:, 0], "b": VECTORS[:, 1], "c": VECTORS[:, 2]})
    if form == "metadata":
        save_file({"e": VECTORS}, path, metadata={"ids": json.dumps(IDS)})
    elif form == "bf16":
        save_torch({"e": torch.from_numpy(VECTORS).bfloat16()}, path, metadata={"ids": json.dumps(IDS)})
    else:
        save_file({"e": VECTORS}, path)
        text = json.dumps(IDS) if form == "json" else "\n".join(IDS) + "\n"
        beside.with_suffix(f".ids.{form}").write_text(text)
    return path


FORMS = ["npz", "npz of bytes, 16 bits", "lists", "number columns", "metadata", "bf16", "json", "txt"]


@pytest.mark.parametrize("form", FORMS)
def test_vectors_come_by_id_from_every_form(tmp_path, form):
    matrix = read_matrix([str(written(tmp_path, form))], "sku")
    found = matrix.of(["7", "0120"])
    np.testing.assert_array_equal(found["extra"], VECTORS[[3, 0]])
    assert list(found) == ["extra"] and found["extra"].dtype == np.float32


def test_what_embed_writes_keeps_its_names_and_comes_in_pieces(tmp_path):
    pieces = []
    for rows in ([0, 1], [2, 3]):
        pieces.append(tmp_path / f"{rows[0]}.safetensors")
        save_file({"text": VECTORS[rows], "image": -VECTORS[rows]}, pieces[-1],
                  metadata={"ids": json.dumps([IDS[row] for row in rows])})  # fmt: skip
    matrix = read_matrix(list(map(str, pieces)))
    found = matrix.of(IDS[::-1])
    assert list(found) == ["image", "text"]
    np.testing.assert_array_equal(found["image"], -VECTORS[::-1])
    np.testing.assert_array_equal(matrix.joined(["x9"]), [[-6, -7, -8, 6, 7, 8]])


def test_a_matrix_that_changed_is_read_again(tmp_path):
    path = str(npz(tmp_path / "v.npz"))
    assert read_matrix([path]) is read_matrix([path])
    npz(tmp_path / "v.npz", embeddings=VECTORS.astype(np.float64) + 1)
    assert read_matrix([path]).of(["0120"])["extra"].tolist() == [[1, 2, 3]]


WRONG = {
    "repeated": ({"ids": np.array([*IDS[:3], "x9"])}, r"1 ids stand more than once in .*v\.npz \(x9\)"),
    "python objects": ({"ids": np.array(IDS, dtype=object)}, r"ids is saved as Python objects.*dtype=str"),
    "no ids": ({"ids": VECTORS, "keys": np.array(IDS)}, r"its ids have the shape \(4, 3\)"),
    "fewer rows": ({"embeddings": VECTORS[:3]}, "embeddings has 3 rows, and there are 4 ids"),
    "one dimension": ({"embeddings": VECTORS[:, 0]}, r"embeddings has the shape \(4,\)"),
    "texts": ({"embeddings": VECTORS.astype(str)}, "embeddings has the shape .* a matrix of numbers is needed"),
    "empty id": ({"ids": np.array([*IDS[:3], " "])}, "1 of 4 vectors have no id"),
    "two matrices": ({"more": VECTORS}, r"holds 2 matrices \(embeddings, more\); leave one, or call them image"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_no_matrix_with_ids_is_refused(tmp_path, what):
    arrays, message = WRONG[what]
    with pytest.raises(GoodsError, match=message):
        read_matrix([str(npz(tmp_path / "v.npz", **arrays))])


def test_files_that_are_missing_damaged_or_of_another_kind_are_refused(tmp_path):
    path = npz(tmp_path / "v.npz")
    with pytest.raises(GoodsError, match=r"there is no .*w\.npz with vectors; .* has v\.npz"):
        read_matrix([str(tmp_path / "w.npz")])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(GoodsError, match="is damaged"):
        read_matrix([str(path)])
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(GoodsError, match=r"is a \.npy, which has no ids"):
        read_matrix([str(tmp_path / "v.npy")])
    save_file({"e": VECTORS}, tmp_path / "bare.safetensors")
    with pytest.raises(GoodsError, match=r"has no ids: put them, .* into bare\.ids\.json or bare\.ids\.txt beside it"):
        read_matrix([str(tmp_path / "bare.safetensors")])
    ragged = parquet(tmp_path / "r.parquet", {"id": IDS, "v": [[1.0, 2.0], [1.0, 2.0], [1.0], None]})
    with pytest.raises(GoodsError, match=r"2 vectors in v are not of 2 numbers, as most are \(ids x9, 7\)"):
        read_matrix([str(ragged)])
    bare = parquet(tmp_path / "t.parquet", {"id": IDS, "title": "a"})
    with pytest.raises(GoodsError, match="neither a column of lists of numbers nor number columns beside id"):
        read_matrix([str(bare)])
    with pytest.raises(GoodsError, match="has no column sku; it has key, v"):
        read_matrix([str(parquet(tmp_path / "k.parquet", {"key": IDS, "v": [1.0] * 4}))], "sku")


def test_pieces_must_fit_and_share_no_id(tmp_path):
    first, other = npz(tmp_path / "a.npz"), npz(tmp_path / "b.npz", embeddings=VECTORS[:, :2])
    with pytest.raises(GoodsError, match=r"b\.npz holds other vectors than .*a\.npz: extra of 2 dimensions, and not"):
        read_matrix([str(first), str(other)])
    npz(tmp_path / "b.npz", ids=np.array(["n", "x9", "m", "7"]))
    with pytest.raises(GoodsError, match=r"2 ids stand more than once in a\.npz, b\.npz \(x9, 7\)"):
        read_matrix([str(first), str(other)])


def test_what_the_tables_need_is_checked_with_ids_and_counts(tmp_path, capsys):
    spoilt = VECTORS.copy()
    spoilt[[0, 3], 1] = np.nan, np.inf
    good, bad = (
        read_matrix([str(npz(tmp_path / f"{n}.npz", embeddings=v))]) for n, v in (("a", VECTORS), ("b", spoilt))
    )
    good.check({"training": ["0120", "x9"], "test": ["7"]})
    assert "1 of 4 vectors are of products that the tables lack" in capsys.readouterr().out
    message = r"1 of 2 training products and 2 of 3 test products have no vector in .*a\.npz \(ids y, z, w\)"
    with pytest.raises(GoodsError, match=message):
        good.check({"training": ["0120", "y"], "test": ["7", "z", "w"]})
    bad.check({"training": ["x9"], "test": ["a b"]})  # what is not read may be anything
    with pytest.raises(GoodsError, match=r"2 of 3 products have a vector .* not all numbers \(ids 7, 0120\)"):
        bad.check({"training": ["x9", "7"], "test": ["0120"]})


@pytest.mark.parametrize(("given", "message"), [(120, r"it has '120' for '0120' \(numbers lose their zeros"),
                                                ("0120.jpg", r"it has '0120\.jpg' for '0120';")])  # fmt: skip
def test_ids_that_changed_on_the_way_are_shown(tmp_path, given, message):
    path = npz(tmp_path / "v.npz", ids=np.array([given]), embeddings=VECTORS[:1])
    with pytest.raises(GoodsError, match=message):
        read_matrix([str(path)]).of(["0120"])


def test_too_large_for_32_bits_is_said(tmp_path):
    path = npz(tmp_path / "v.npz", embeddings=VECTORS.astype(np.float64) * 1e300)
    with pytest.raises(GoodsError, match=r"4 of 4 products have a vector .* too large"):
        read_matrix([str(path)]).of(IDS)
