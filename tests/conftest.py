"""What all tests share: an environment of their own, and the embedded sample made once."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pytest

from goods.step import without_link_grammar

if TYPE_CHECKING:  # imported for real only after the environment is set
    from goods.data.tables import Goods
    from goods.ensemble.folds import Ensemble
    from goods.params import Params

# pytest gives it another name than `from conftest import` does; loaded twice, it would make two homes.
sys.modules.setdefault("conftest", sys.modules[__name__])

# Set before any test module imports torch, transformers or jupyter, and inherited by the notebooks that tests run:
# nothing of the user's home (kernels, IPython profiles, caches) takes part, nothing is downloaded, one core is used.
_HOME = tempfile.TemporaryDirectory(prefix="goods-home-")
os.environ |= {
    "HOME": _HOME.name,
    "IPYTHONDIR": f"{_HOME.name}/ipython",
    "JUPYTER_CONFIG_DIR": f"{_HOME.name}/jupyter/config",
    "JUPYTER_DATA_DIR": f"{_HOME.name}/jupyter/data",
    "JUPYTER_RUNTIME_DIR": f"{_HOME.name}/jupyter/runtime",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
for _name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "JUPYTER_PATH"):
    os.environ.pop(_name, None)
without_link_grammar()  # as in a step: nbformat imports it, too


class Sample(NamedTuple):
    """Where the sample lies."""

    data: Path
    model: Path


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A small sample competition (21 classes, 6 + 2 products each) and its tiny SigLIP directory."""
    from goods.data.sample import make_competition, read_texts
    from goods.data.sample_model import make_model

    folder = tmp_path_factory.mktemp("sample")
    made = Sample(folder / "data", folder / "siglip-tiny")
    make_competition(made.data, seed=7, train_per_class=6, test_per_class=2)
    make_model(made.model, read_texts(made.data), seed=7)
    return made


@pytest.fixture(scope="session")
def mini(sample: Sample) -> dict[str, Any]:
    """Parameters of a miniature experiment on the sample: heads on frozen embeddings, three folds, a second each."""
    return {
        "run": "mini", "data_dir": str(sample.data), "model_name": str(sample.model), "tune": "head", "n_folds": 3,
        "image_size": 64, "hidden_dim": 64, "batch_size": 32, "eval_batch_size": 64, "num_workers": 0,
        "num_epochs": 40, "head_learning_rate": 3e-3,
    }  # fmt: skip


class Trained(NamedTuple):
    """A run and its goods."""

    p: Params
    goods: Goods


@pytest.fixture(scope="session")
def trained(mini: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The miniature experiment with all folds trained; read it, and copy it to change it."""
    from goods.data.tables import read_goods
    from goods.members import open_run
    from goods.params import load_params
    from goods_utils import fit_fold

    p = load_params(**mini, outputs_dir=str(tmp_path_factory.mktemp("outputs")))
    open_run(p)
    goods = read_goods(p)
    for fold in p.chosen_folds:
        fit_fold(p.model_copy(update={"fold": fold}), goods)
    return Trained(p, goods)


@pytest.fixture(scope="session")
def kinds(trained: Trained, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Params]:
    """Finished runs of every kind in one folder, down to their submissions, and a blend of them all; to be read."""
    import shutil

    from goods.data.tables import read_goods
    from goods.ensemble.submission import write_submission
    from goods.members import fit, open_run
    from goods.params import load_params

    outputs = tmp_path_factory.mktemp("kinds")
    shutil.copytree(trained.p.run_dir, outputs / "head")
    small = trained.p.model_dump(exclude={"outputs_dir", "run", "model_name", "num_epochs"}) | {
        "outputs_dir": str(outputs), "num_epochs": 1, "last_blocks": 1, "learning_rate": 1e-3, "max_text_length": 48,
    }  # fmt: skip
    given: dict[str, dict[str, Any]] = {
        "head": trained.p.model_dump(exclude={"outputs_dir", "run"}) | {"outputs_dir": str(outputs)},
        "last": small | {"tune": "last", "model_name": trained.p.model_name},
        "bert": small | {"kind": "text", "tune": "full", "model_name": str(encoder_dir)},
        "words": small | {"kind": "linear"},
        "near": small | {"kind": "knn", "model_name": trained.p.model_name, "max_text_length": 64},
        "blend": small | {"kind": "blend", "runs": "head, last, bert, words, near", "blend_method": "weights"},
    }
    params = {name: load_params(None, **values | {"run": name}) for name, values in given.items()}
    record = outputs / "head" / "run.json"
    record.write_text(record.read_text().replace('"run": "mini"', '"run": "head"'))
    for name, p in params.items():
        open_run(p)
        goods = read_goods(p)
        if name != "blend":
            fit(p, goods)
        put_together(p, goods)
        write_submission(p, goods)
    return params


@pytest.fixture(scope="session")
def encoder_dir(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature BERT with a tokenizer of the sample's own words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from goods.data.sample import read_texts

    folder = tmp_path_factory.mktemp("models") / "bert-mini"
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special)
    tokenizer.train_from_iterator(read_texts(sample.data), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=2, intermediate_size=64, max_position_embeddings=300)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make(request: pytest.FixtureRequest, sample: Sample, tmp_path: Path) -> Callable[..., Params]:
    """Parameters of a small run on the sample, the test module's SMALL first, in a folder of the test's own."""
    from goods.members import open_run
    from goods.params import load_params

    def make(**given: Any) -> Params:
        where = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(tmp_path / "out")}
        p = load_params(None, **where | request.module.SMALL | given)
        open_run(p)
        return p

    return make


def fit(p: Params) -> pd.DataFrame:
    """Trains fold p.fold; its out-of-fold table."""
    from goods.data.tables import read_goods
    from goods_utils import fit_fold

    fit_fold(p, read_goods(p))
    return pd.read_parquet(p.run_dir / f"fold{p.fold}" / "oof.parquet")


def put_together(p: Params, goods: Goods) -> Ensemble:
    """What ensemble.ipynb does: all trained folds predict the test set, and become one prediction."""
    from goods.members import ensemble_run, predict_test

    predict_test(p, goods)
    return ensemble_run(p, goods)


def fit_in_stretches(p: Params) -> int:
    """Trains fold p.fold by the same call again and again, each stopped by max_hours; how often it was stopped.

    At each look at the clock 50 ms go by, however busy the machine is.
    """
    stops, clock = 0, count(time.time(), 0.05)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "time", lambda: next(clock))
        patched.delenv("GOODS_STARTED", raising=False)
        while not (p.run_dir / f"fold{p.fold}" / "metrics.json").is_file():
            with pytest.raises(SystemExit) as over:
                fit(p)
                raise SystemExit(0)  # finished
            assert over.value.code == 0
            stops += 1
            assert stops < 60
    return stops


def touch(base: Path, *names: str) -> Path:
    """Makes empty files, and folders where a name ends in a slash."""
    for name in names:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.touch()
    return base


# Files that take minutes; begun last, one worker would finish them alone while the other has nothing left.
SLOW = ("test_docs", "test_real", "test_notebooks", "test_kernel", "test_pipeline", "test_resume")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


class Stopped(Exception):
    """What ends a training in these tests, as a kill would."""


def stopped_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end before this step, with the state after each one saved."""
    from goods.training import loop

    taken = iter(range(steps))

    def step(*arguments) -> float:
        if next(taken, None) is None:
            raise Stopped
        return original(*arguments)

    original = loop.step
    monkeypatch.setattr(loop, "step", step)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Imports leave no garbage: none is looked for while they go on, nor later among what they made."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected
