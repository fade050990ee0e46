"""A call that is refused says so in a sentence, and no byte of the finished run beside it changes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import Sample, Trained, put_together

import goods_utils
import pipeline
from goods.advice import command, no_such_run, train_again
from goods.ensemble.submission import write_submission
from goods.members import open_run

# What is wrong with a call, the words of its refusal, and its arguments: of pipeline.py where an option comes first.
CALLS = {
    "another parameter": ("num_epochs was 40 and is now 41", "--set num_epochs=41"),
    "another seed": ("Give it back, or choose another name for run, such as run=mini-2", "--set seed=7"),
    "a misspelt parameter": ("did you mean 'folds'", "--set fold_s=[1]"),
    "no value": ("write it as name=value", "--set num_epochs"),
    "a value of another type": ("parameter 'num_epochs'", "--set num_epochs=many"),
    "an option as a parameter": ("has an option of its own, --run", "--set run=other"),
    "an idle parameter": ("has no effect", "--set augment_flip=0.5"),
    "a fold that isn't there": ("there is no fold 9 in folds", "--folds 9"),
    "folds without training": ("none of the steps trains any", "--folds 0 --steps ensemble"),
    "a misspelt step": ("did you mean 'ensemble'", "--steps emsemble"),
    "a step twice": ("is named twice", "--steps eda eda"),
    "a refit that isn't asked for": ("set refit=true", "--steps refit"),
    "another backbone": ("made with other files in model_name", "--set model_name={other}"),
    "a run to go on from that is none": ("is not the folder of a run", "--set resume_from={folder}"),
    "a fold out of range": ("fold 7 is out of range", "fit --config {config} --fold 7"),
    "other goods": ("was made with other goods: train changed", "fit --config {config} --set train_csv={changed}"),
    "a report of two runs": ("name the run", "report --run {run} --config {config}"),
    "a report of none": ("there is no run 'nothing'", "report --run nothing"),
    "an unknown card": ("no plan for the GPU 'Z9'", "plan --config {config} --gpu Z9"),
    "no table": ("nowhere.csv", "predict --run {run} --table nowhere.csv --images {images} --out {out}"),
    "an ending": ("must end in .parquet or .csv", "predict --run {run} --table {table} --out {out}.txt"),
    "photos of nowhere": ("looks at photos", "predict --run {run} --table {table} --out {out}"),
    "a precision": ("must lie between 0 and 1", "predict --run {run} --table {table} --out {out} --precision 2"),
    "a parameter of training": ("can't be set", "predict --run {run} --table {table} --out {out} --set num_epochs=3"),
    "an export into a run": ("is no export", "export --run {run} --to {run}"),
}  # fmt: skip


class Finished(NamedTuple):
    """A finished run, and what calls name beside it."""

    run: Path
    places: dict[str, str]


@pytest.fixture(scope="module")
def finished(trained: Trained, sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("refused")
    outputs = Path(shutil.copytree(trained.p.outputs_dir, folder / "outputs"))
    p = trained.p.model_copy(update={"outputs_dir": str(outputs)})
    open_run(p)
    put_together(p, trained.goods)
    write_submission(p, trained.goods)
    values = p.model_dump(mode="json", include=p.model_fields_set | {"outputs_dir"}) | {"run": "mini"}
    (folder / "mini.yaml").write_text(yaml.safe_dump(values))
    other = Path(shutil.copytree(sample.model, folder / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    lines = (sample.data / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "changed.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    places = {"config": folder / "mini.yaml", "other": other, "folder": folder, "changed": folder / "changed.csv",
              "run": p.run_dir, "table": sample.data / "test.csv", "out": folder / "out",
              "images": sample.data / "test_images" / "test_images"}  # fmt: skip
    return Finished(p.run_dir, {name: str(path) for name, path in places.items()})


def contents(folder: Path) -> dict[str, str]:
    """{path: hash} of all that is in a folder, empty folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("wrong", CALLS)
def test_a_refused_call_changes_no_byte_of_the_run(
    finished: Finished, wrong: str, capsys: pytest.CaptureFixture
) -> None:
    words, call = CALLS[wrong]
    arguments = call.format(**finished.places).split()
    before, runs = contents(finished.run), sorted(finished.run.parent.iterdir())
    if arguments[0].startswith("--"):
        assert pipeline.main(["--config", finished.places["config"], *arguments]) == 2
        said = capsys.readouterr().err
    else:
        with pytest.raises(SystemExit) as refused:
            goods_utils.main(arguments)
        said = capsys.readouterr().err + str(refused.value)
        assert refused.value.code not in (0, None)
    assert words in said
    assert contents(finished.run) == before
    assert sorted(finished.run.parent.iterdir()) == runs


def test_a_run_that_is_not_there_is_answered_with_the_nearest_name(finished: Finished) -> None:
    outputs = finished.run.parent
    assert no_such_run("minni", outputs) == f"there is no run 'minni' in {outputs}; did you mean 'mini'?"
    assert no_such_run("xyz", outputs).endswith("there are: mini")


def test_a_report_needs_the_name_of_the_run_alone(finished: Finished, capsys: pytest.CaptureFixture) -> None:
    goods_utils.main(["report", "--run", str(finished.run)])
    assert capsys.readouterr().out == f"{finished.run / 'report.html'}\n"


def test_without_a_config_the_pipeline_says_that_it_runs_the_demo(capsys: pytest.CaptureFixture) -> None:
    assert pipeline.main(["--folds", "9"]) == 2
    assert "so this is the demo on the embedded sample, params/demo.yaml\n" in capsys.readouterr().out


def test_advice_for_one_fold_names_that_fold_alone() -> None:
    assert train_again(Path("outputs/a/fold3/oof.parquet")) == "train the fold again: retrain=true, --folds 3"
    refit = train_again(Path("outputs/fold1/refit/weights.safetensors"))
    assert refit == "train the refit again: retrain=true refit=true, --steps refit"
    assert command("pipeline.py", run="b").endswith("pipeline.py --run b")
