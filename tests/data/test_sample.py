"""The embedded sample: same seed, same bytes; its promised mess; a model that loads; nothing half-written."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from goods.data.sample import CLASSES, DUPLICATES, LOOKS, WORDS, main, make_competition, read_texts
from goods.data.sample_model import make_model
from goods.data.sample_photos import GLYPHS, draw_photo
from goods.errors import GoodsError

PARTS = {"train": 6, "test": 2}  # what the `sample` fixture has of each class


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def rows(folder: Path, part: str) -> list[dict[str, str]]:
    with (folder / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def photos(folder: Path, part: str) -> dict[str, Path]:
    return {f.stem: f for f in (folder / f"{part}_images" / f"{part}_images").iterdir()}


def test_classes_need_photo_and_text():
    pairs = [(look, words) for _, look, words in CLASSES]
    assert len(CLASSES) == len(set(pairs)) == len({name for name, _, _ in CLASSES}) == 21
    looks, words = Counter(look for look, _ in pairs), Counter(words for _, words in pairs)
    # Nobody can tell the classes of one look by the photo, nor those of one vocabulary by the text.
    assert 0.6 < len(looks) / 21 < 0.85 and 0.6 < len(words) / 21 < 0.85
    assert set(looks) == set(LOOKS) and set(words) == set(WORDS)
    assert {glyph for glyphs, _, _ in LOOKS.values() for glyph in glyphs.split()} == set(GLYPHS)


@pytest.mark.parametrize("look", LOOKS)
def test_every_look_fills_its_photo(look: str):
    colour = LOOKS[look][1].split()[0]
    for seed in range(6):
        photo = draw_photo(random.Random(seed), look, colour)
        assert photo.mode == "RGB" and photo.size == (100, 100)
        background = np.median(np.asarray(photo)[[0, 1, -1]].reshape(-1, 3), axis=0)
        drawn = (np.abs(np.asarray(photo) - background).max(axis=2) > 40).mean()
        assert 0.05 < drawn < 0.9


@pytest.mark.slow
def test_same_seed_same_bytes(tmp_path: Path):
    torch_state, random_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        random.seed(name)  # nothing global takes part
        assert make_competition(tmp_path / name, seed, 2, 1)
        assert make_model(tmp_path / f"model-{name}", read_texts(tmp_path / name), seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    assert contents(tmp_path / "model-a") == contents(tmp_path / "model-b")
    weights = [(tmp_path / f"model-{name}" / "model.safetensors").read_bytes() for name in "ac"]
    assert weights[0] != weights[1]
    assert not set(photos(tmp_path / "a", "train")) & set(photos(tmp_path / "c", "train"))
    random.setstate(random_state)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


def test_layout(sample):
    assert json.loads((sample.data / "labels.json").read_text()) == {str(k): c[0] for k, c in enumerate(CLASSES)}
    ids = []
    for part, per_class in PARTS.items():
        table = rows(sample.data, part)
        assert list(table[0]) == ["id", "title", "description"] + ["categories"] * (part == "train")
        assert len(table) == 21 * per_class and {row["id"] for row in table} == set(photos(sample.data, part))
        ids += [row["id"] for row in table]
    assert Counter(row["categories"] for row in rows(sample.data, "train")) == {str(k): 6 for k in range(21)}
    assert len(set(ids)) == len(ids) and all(len(name) == 10 for name in ids)
    assert any(name.isdigit() and name[0] == "0" for name in ids) and any(name.endswith("X") for name in ids)


@pytest.mark.parametrize("part", PARTS)
def test_mess(sample, part: str):
    table, files = rows(sample.data, part), photos(sample.data, part)
    texts = [row["title"] + row["description"] for row in table]
    for mark in ("&amp;", "&#xA0;", "<b>", "<br/>", "https://", "\n", '"', "⭐"):
        assert any(mark in text for text in texts), mark
    assert 0.03 < sum(not row["description"] for row in table) / len(table) < 0.1
    assert all(row["title"] for row in table)
    kinds, modes, sizes = Counter(), Counter(), Counter()
    for file in files.values():
        with Image.open(file) as photo:
            photo.load()
            kinds[photo.format, file.suffix] += 1
            modes[photo.mode] += 1
            sizes[photo.size] += 1
    assert kinds[("PNG", ".png")] == kinds[("PNG", ".jpg")] == kinds[("WEBP", ".webp")] == 1
    assert modes["RGBA"] == modes["CMYK"] == 1 and 0.02 < modes["L"] / len(table) < 0.06
    assert sizes[(100, 100)] < len(table) and sizes.most_common(1)[0][0] == (100, 100)


def test_duplicates_within_train_and_across(sample):
    train, test = rows(sample.data, "train"), rows(sample.data, "test")
    known = {(row["title"], row["description"]): row["categories"] for row in train}
    assert len(known) == len(train) - DUPLICATES
    assert sum((row["title"], row["description"]) in known for row in test) == DUPLICATES
    shas = {
        part: [hashlib.sha256(f.read_bytes()).hexdigest() for f in photos(sample.data, part).values()] for part in PARTS
    }
    assert len(set(shas["train"])) == len(shas["train"]) - DUPLICATES
    assert sum(sha in shas["train"] for sha in shas["test"]) == DUPLICATES


def test_model_loads_and_tells_products_apart(sample):
    model = AutoModel.from_pretrained(sample.model, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(sample.model, local_files_only=True)
    assert type(model).__name__ == "SiglipModel" and type(processor).__name__ == "SiglipProcessor"
    assert sum(p.numel() for p in model.parameters()) < 1_500_000
    texts = ["Nordwind claw hammer", "nordwind CLAW hammer!", "fleece blanket", "", "⭐ saw blade"]
    images = [Image.new("RGB", (100, 100), "white"), Image.new("RGB", (40, 90), "red")]
    inputs = processor(text=texts, images=images, padding="max_length", max_length=64, return_tensors="pt")
    ids = inputs["input_ids"]
    assert ids.shape == (5, 64) and inputs["pixel_values"].shape == (2, 3, 64, 64)
    assert (ids[:, -1] == 1).all() and (ids[3] == 1).all() and torch.equal(ids[0], ids[1])
    decoded = processor.tokenizer.batch_decode(ids[[0, 2]], skip_special_tokens=True)
    assert decoded == ["nordwind claw hammer", "fleece blanket"]
    with torch.inference_mode():
        text = model.get_text_features(input_ids=ids).pooler_output
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    assert torch.isfinite(text).all() and torch.isfinite(image).all()
    assert (text[0] - text[2]).abs().mean() > 0.1 and (image[0] - image[1]).abs().mean() > 0.1


def test_frozen_towers_know_something(sample):
    model = AutoModel.from_pretrained(sample.model, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(sample.model, local_files_only=True)
    table, files = rows(sample.data, "train"), photos(sample.data, "train")
    texts = [f"{row['title']}. {row['description']}" for row in table]
    images = [Image.open(files[row["id"]]).convert("RGB") for row in table]
    inputs = processor(
        text=texts, images=images, padding="max_length", truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        text = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    classes = [CLASSES[int(row["categories"])] for row in table]
    for embeddings, kind in ((image, 1), (text, 2)):
        scaled = torch.nn.functional.normalize((embeddings - embeddings.mean(0)) / embeddings.std(0), dim=1)
        nearest = (scaled @ scaled.T).fill_diagonal_(-1).argmax(1).tolist()
        same = np.mean([classes[row][kind] == classes[other][kind] for row, other in enumerate(nearest)])
        assert same > 0.25, (kind, same)  # by chance 0.08


def test_second_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    paths = {"data": tmp_path / "data", "model": tmp_path / "model"}
    command = [
        "--data",
        str(paths["data"]),
        "--model",
        str(paths["model"]),
        "--train-per-class=2",
        "--test-per-class=1",
    ]
    main(command)
    assert capsys.readouterr().out.startswith("made ")
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    main(command)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "there already, unchanged" in out and "made" not in out
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    first = contents(tmp_path)
    next(iter(photos(paths["data"], "train").values())).unlink()
    main(command)
    out = capsys.readouterr().out
    assert out.startswith(f"made {paths['data']} in") and f"{paths['model']} there already" in out
    assert contents(tmp_path) == first


@pytest.mark.slow
def test_failure_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    data, model = tmp_path / "data", tmp_path / "model"
    make_competition(data, 1, 2, 1)
    before = contents(data)
    with monkeypatch.context() as patch:
        patch.setattr("goods.data.sample._write_table", fail)  # the last step
        patch.setattr("goods.data.sample_model._draw_weights", fail)
        for folder in (data, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                make_competition(folder, 2, 2, 1)
        with pytest.raises(KeyboardInterrupt):
            make_model(model, read_texts(data), 2)
    assert list(tmp_path.iterdir()) == [data] and contents(data) == before


def test_leaves_other_peoples_folders_alone(tmp_path: Path):
    (tmp_path / "train.csv").write_text("id\n")
    with pytest.raises(GoodsError, match="didn't make it"):
        make_competition(tmp_path, 0, 2, 1)
    with pytest.raises(SystemExit, match=r"goods.data.sample: .*didn't make it"):
        main(["--data", str(tmp_path)])
    assert contents(tmp_path) == {"train.csv": b"id\n"}
    with pytest.raises(GoodsError, match="at least 2 products"):
        make_competition(tmp_path / "new", 0, 1, 1)
