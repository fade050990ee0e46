"""A scoring re-run only predicts: attached weights of every kind, blends included, and a hidden test set."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from backbones import say_how
from conftest import put_together
from kaggle_server import Kaggle, hide_more_products, mount, on_demand, run_here, run_offline

from goods import members
from goods.data.folds import read_folds
from goods.data.tables import read_goods
from goods.ensemble.pseudo_labels import make_pseudo_labels
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError, OtherRunError
from goods.export import export_run
from goods.files import ROOT, write_json, write_text
from goods.members import open_run
from goods.params import Params
from goods.run import Run
from goods.training.rows import read_pseudo_labels
from kaggle_kernel import build, in_kernel, push

pytestmark = pytest.mark.slow

# The runs that are trained at home, and what their kernels are given.
SMALL = {"n_folds": 3, "num_workers": 0, "image_size": 64}
HEAD = {"tune": "head", "num_epochs": 5, "extra_embeddings": ["models/bert-mini", "models/bert-cls"]}
GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "head": ("params/demo.yaml", {"run": "head", "model_name": "models/siglip-tiny", **HEAD, **SMALL}),
    "words": ("params/linear.yaml", {"run": "words", **SMALL}),
    "near": ("params/knn.yaml", {"run": "near", "model_name": "models/siglip-tiny", **SMALL}),
    "both": ("params/blend.yaml", {"run": "both", "runs": "head,words,near", "blend_method": "weights", **SMALL}),
}
RUNS = ("head", "words", "near")


class Home(NamedTuple):
    """Where the runs were trained."""

    runs: dict[str, Params]
    models: dict[str, Path]


@pytest.fixture(scope="module")
def home(sample: Any, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Finished runs of the kinds dual (with other text encoders), linear and knn, and a blend of them."""
    other = say_how(Path(shutil.copytree(encoder_dir, tmp_path_factory.mktemp("models") / "bert-cls")),
                    {"embedding_dimension": 32, "pooling_mode": "cls"})  # fmt: skip
    models = {"siglip-tiny": sample.model, "bert-mini": encoder_dir, "bert-cls": other}
    outputs, runs = tmp_path_factory.mktemp("home"), {}
    here = {"model_name": str(sample.model), "extra_embeddings": [str(encoder_dir), str(other)]}
    for name, (config, given) in GIVEN.items():
        own = {"model_name": Params().model_name} | given | {key: path for key, path in here.items() if key in given}
        if name == "both":
            runs[name] = run_blend(runs["head"], outputs, own)
        else:
            runs[name] = run_here(sample, outputs, [0, 1, 2], config, **own)
    return Home(runs, models)


def run_blend(p: Params, outputs: Path, given: dict[str, Any]) -> Params:
    blend = Params(**given | {"runs": RUNS, "kind": "blend", "outputs_dir": str(outputs)})
    data = ("data_dir", "train_csv", "test_csv", "train_images_dir", "test_images_dir")
    blend = blend.model_copy(update={name: getattr(p, name) for name in data})
    finish_blend(blend)
    return blend


def finish_blend(p: Params) -> None:
    """What the pipeline's two notebooks of a blend do."""
    open_run(p)
    goods = read_goods(p)
    put_together(p, goods)
    write_submission(p, goods)


Prepare = Callable[..., in_kernel.Session]


class Kernel(NamedTuple):
    """A fake /kaggle with nothing but the competition."""

    root: Path
    home: Home

    def attach(self, *names: str) -> None:
        """Encoders by their names, and outputs of runs; "export of NAME" is what make kaggle-weights sends."""
        for name in names:
            run = name.removeprefix("export of ")
            if name in self.home.models:
                shutil.copytree(self.home.models[name], self.root / "input" / "datasets" / "me" / name)
            elif run == name:
                own = self.root / "input" / "notebooks" / "me" / f"{name}-kernel" / "outputs" / name
                shutil.copytree(self.home.runs[name].run_dir, own)
            else:
                export_run(Run.of(self.home.runs[run]), self.root / "input" / f"{run}-weights")

    def prepare(self, name: str, **more: Any) -> in_kernel.Session:
        config, given = GIVEN[name]
        return in_kernel.prepare(self.root, config, **given | more)

    def hide(self, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        return hide_more_products(self.root / "input" / "goods-classification")

    def probabilities(self, session: in_kernel.Session) -> np.ndarray:
        return probabilities_of(session.p)


def probabilities_of(p: Params) -> np.ndarray:
    return pd.read_csv(p.run_dir / "submission_probs.csv").filter(regex=r"^c\d+$").to_numpy()


@pytest.fixture
def kernel(home: Home, sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """In a project folder of its own, where no model lies that isn't attached; and nothing is trained."""
    root = mount(sample, tmp_path / "kaggle", "goods-classification", "unseen")
    shutil.rmtree(root / "input" / "unseen")
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
    monkeypatch.setattr(members, "fit", None)
    return Kernel(root, home)


def check_rerun(kernel: Kernel, session: in_kernel.Session, hidden: pd.DataFrame, first: Params) -> None:
    """A whole submission of the hidden products, of which the first are those of the first run."""
    assert session.predictor and not session.command
    in_kernel.run(session)
    outputs, before = kernel.root / "working" / "outputs", pd.read_csv(first.run_dir / "submission.csv", dtype=str)
    submission = pd.read_csv(kernel.root / "working" / "submission.csv", dtype=str)
    assert submission["id"].tolist() == hidden["id"].tolist() and submission["categories"].notna().all()
    assert submission["categories"].tolist()[: len(before)] == before["categories"].tolist()
    found, expected = kernel.probabilities(session), probabilities_of(first)
    assert len(found) == 3 * len(expected) and not np.isnan(found).any()
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=1.5e-6)  # written with six digits
    assert [path.name for path in outputs.iterdir()] == [session.p.run]
    assert list(in_kernel.scores(session).columns)[:2] == ["macro_f1", "accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_of_each_kind_with_no_more_than_its_weights(kernel: Kernel, home: Home, name: str, monkeypatch) -> None:
    hidden = kernel.hide(monkeypatch)
    kernel.attach(f"export of {name}", *home.models)
    check_rerun(kernel, kernel.prepare(name), hidden, home.runs[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "attached",
    [("export of both",), ("both", *RUNS), RUNS, ("export of head", "export of words", "near")],
    ids=["its weights", "its own output", "the outputs of its runs", "the weights of its runs"],
)
def test_of_a_blend_whatever_of_it_is_attached(kernel: Kernel, home: Home, attached, monkeypatch) -> None:
    hidden = kernel.hide(monkeypatch)
    kernel.attach(*attached, *home.models)
    check_rerun(kernel, kernel.prepare("both"), hidden, home.runs["both"])


@pytest.mark.slow
def test_the_kernel_of_a_blend_runs_as_at_home_and_then_again(kernel: Kernel, home: Home, monkeypatch) -> None:
    """With the outputs of its runs attached, both times."""
    with pytest.raises(GoodsError, match="needs the run 'head', and no attached output has it"):
        kernel.prepare("both")
    kernel.attach(*RUNS, *home.models)
    session = kernel.prepare("both")
    assert not session.predictor and 'runs="head,words,near"' in session.command
    finish_blend(session.p)
    in_kernel.run(session._replace(command=[sys.executable, "-c", ""]))
    assert [path.name for path in (kernel.root / "working" / "outputs").iterdir()] == ["both"]
    own = kernel.root / "working" / "submission.csv"
    assert own.read_bytes() == (home.runs["both"].run_dir / "submission.csv").read_bytes()
    hidden, first = kernel.hide(monkeypatch), session.p.model_copy(update={"outputs_dir": str(kernel.root / "first")})
    shutil.move(kernel.root / "working" / "outputs", kernel.root / "first")
    own.unlink()
    check_rerun(kernel, kernel.prepare("both"), hidden, first)


@on_demand
@pytest.mark.slow
def test_the_pushed_notebook_of_a_blend_predicts_the_hidden_test_set(
    kernel: Kernel, home: Home, kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it comes back from the server, offline, in a process that has nothing else of the project."""
    config, given = GIVEN["both"]
    parameters = {"config": config, "run": "both", "settings": {k: v for k, v in given.items() if k != "run"}}
    kernel.attach("export of both", *home.models)
    hidden, folder = kernel.hide(monkeypatch), tmp_path / "kaggle_kernel"
    folder.mkdir()
    monkeypatch.setattr("goods.files.ROOT", ROOT)
    defaults = build.read_parameters((ROOT / "kaggle_kernel" / "main.ipynb").read_text())
    write_text(folder / "main.ipynb", build.make_notebook(defaults | parameters))
    write_json(folder / "kernel-metadata.json", build.make_metadata("me"))
    kaggle.answers["SaveKernel"] = {"ref": "/me/goods-classification", "url": "https://kaggle", "versionNumber": 7}
    assert "Kernel version 7 successfully pushed" in push.push(folder)
    assert not run_offline(kaggle.calls[0][1]["text"], kernel.root, config=config)
    working, first = kernel.root / "working", home.runs["both"]
    submission = pd.read_csv(working / "submission.csv", dtype=str)
    before = pd.read_csv(first.run_dir / "submission.csv", dtype=str)
    assert submission["id"].tolist() == hidden["id"].tolist() and submission["categories"].notna().all()
    assert submission["categories"].tolist()[: len(before)] == before["categories"].tolist()
    found = probabilities_of(first.model_copy(update={"outputs_dir": str(working / "outputs")}))
    expected = probabilities_of(first)
    assert len(found) == 3 * len(expected) and not np.isnan(found).any()
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=1.5e-6)


@pytest.mark.slow
def test_what_is_not_attached_is_said_before_the_work(kernel: Kernel, home: Home, monkeypatch) -> None:
    kernel.hide(monkeypatch)
    kernel.attach("export of both")
    with pytest.raises(GoodsError, match=r"run 'head' .* in model_name \(siglip-tiny\), and no weights are attached"):
        kernel.prepare("both")
    kernel.attach("siglip-tiny")
    with pytest.raises(GoodsError, match=r"in extra_embeddings \(bert-mini\), and attached are others: .*siglip-tiny"):
        kernel.prepare("both")
    kernel.attach("bert-mini")
    with pytest.raises(GoodsError, match=r"in extra_embeddings_2 \(bert-cls\), and attached are others: .*bert-mini"):
        kernel.prepare("both")
    kernel.attach("bert-cls")
    weights = Run(kernel.root / "input" / "both-weights").inner("near").fold(2).weights
    weights.rename(weights.with_suffix(".away"))
    with pytest.raises(GoodsError, match=r"'near' in .* is not whole: its ensemble is of fold 2, too"):
        kernel.prepare("both")
    weights.with_suffix(".away").rename(weights)
    with pytest.raises(OtherRunError, match="was made with other parameters: blend_method"):
        kernel.prepare("both", blend_method="mean")
    session = kernel.prepare("both")
    (kernel.root / "input" / "goods-classification" / "test.csv").write_text("id,title\n1,a\n1,b\n")
    with pytest.raises(GoodsError, match=r"test\.csv lacks description"):
        in_kernel.run(session)


@pytest.mark.slow
def test_an_export_predicts_in_any_version_and_unfinished_folds_in_a_rerun(kernel, home: Home, monkeypatch) -> None:
    kernel.attach("export of words")
    in_kernel.run(kernel.prepare("words"))
    submission = kernel.root / "working" / "submission.csv"
    assert submission.read_bytes() == (home.runs["words"].run_dir / "submission.csv").read_bytes()
    shutil.rmtree(kernel.root / "input" / "words-weights")
    kernel.attach("words")
    attached = Run(kernel.root / "input" / "notebooks" / "me" / "words-kernel" / "outputs" / "words")
    assert not kernel.prepare("words").predictor  # goes on from it: another fold may be wanted
    shutil.rmtree(attached.ensemble)
    kernel.hide(monkeypatch)
    session = kernel.prepare("words", folds=[1])
    assert not session.predictor and "--folds" not in session.command
    assert session.command[session.command.index("--steps") + 1 :][:2] == ["ensemble", "submission"]
    assert Run.of(session.p).trained() == [0, 1, 2]


# What a training reads -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_text_encoder_is_linked_and_missed_as_the_backbone_is(kernel: Kernel, home: Home) -> None:
    kernel.attach("siglip-tiny")
    with pytest.raises(GoodsError, match="needs the weights of bert-mini, but attached are those of another"):
        kernel.prepare("head")
    kernel.attach("bert-mini", "bert-cls")
    session = kernel.prepare("head")
    assert not session.predictor and 'extra_embeddings=["models/bert-mini", "models/bert-cls"]' in session.command
    found = set(members.kind_of(session.p).model_hashes(session.p))
    assert found == {"model_name", "extra_embeddings", "extra_embeddings_2"}


@pytest.mark.slow
def test_pseudo_labels_go_with_the_weights_and_are_learned_from(kernel, home: Home, tmp_path, monkeypatch) -> None:
    with pytest.raises(GoodsError, match="needs the run 'words', and no attached output has it"):
        kernel.prepare("words", run="next", pseudo_from="words")
    kernel.attach("words")
    with pytest.raises(
        GoodsError, match=r"attached run 'words' has no pseudo.fold0\.parquet, so .* kaggle-weights RUN=words"
    ):
        kernel.prepare("words", run="next", pseudo_from="words")
    shutil.rmtree(kernel.root / "input" / "notebooks")

    teacher = home.runs["words"].model_copy(update={"outputs_dir": str(tmp_path / "outputs"), "pseudo_precision": 0.1})
    shutil.copytree(home.runs["words"].run_dir, teacher.run_dir)
    make_pseudo_labels(teacher, read_goods(teacher))
    sent: dict[str, Path] = {}
    monkeypatch.setattr(push, "ROOT", tmp_path)
    monkeypatch.setattr(push, "STAGE", tmp_path / "stage" / "kaggle")
    monkeypatch.setattr(push, "read_metadata", lambda _: {"id": "me/goods"})
    monkeypatch.setattr(push, "send_dataset", lambda name, root, files: sent.update({name: root}) or name)
    assert "WEIGHTS=me/words-weights" in push.send_weights(tmp_path, "words")
    shutil.copytree(sent["me/words-weights"], kernel.root / "input" / "words-weights")

    session = kernel.prepare("words", run="next", pseudo_from="words")
    open_run(session.p)
    goods = read_goods(session.p)
    assert len(read_pseudo_labels(session.p, goods, read_folds(goods, session.p), 0))
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    with pytest.raises(GoodsError, match="learns from pseudo-labels of the public test set, which can't be trained"):
        kernel.prepare("words", run="next", pseudo_from="words")
