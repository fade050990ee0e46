"""A run on disk: the only code that knows what lies below outputs/<run>/ and what made it.

What is trained, predicted, resumable, and whether it may be gone on from: everybody asks here. Light on purpose (no
torch, no pandas), since pipeline.py asks, too.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goods.advice import check_named_runs, other_name, train_again
from goods.errors import DamagedFileError, GoodsError, OtherRunError
from goods.files import (
    HOLDER_SECONDS,
    atomic_path,
    held,
    read_frame,
    read_json,
    read_json_if_whole,
    resolve,
    write_json,
)
from goods.label_fixes import fixes_stamp
from goods.machine import environment
from goods.model_paths import count_paths, parameter_of, path_of
from goods.params import OUTPUTS, REFIT, RUNTIME_FIELDS, Params

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # of run.json
DONE = ".done.json"  # behind a finished step's name, in the folder of notebooks
MARKERS = frozenset(("run.json", "labels.json"))  # files by which a run is known wherever it lies
FOLDS_FROM = ("n_folds", "seed")  # the parameters that folds are drawn by


class Fold:
    """One fold's folder: weights.safetensors, oof.parquet, test.parquet, metrics.json, log.jsonl, checkpoint/.

    Number REFIT is the model that learns from all rows, in refit/: it holds none back, so it has no oof.parquet.
    """

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number, self.is_refit = run, number, number == REFIT
        self.title = "the refit" if self.is_refit else f"fold {number}"
        self.folder = run.folder / ("refit" if self.is_refit else f"fold{number}")
        self.weights, self.details = self.folder / "weights.safetensors", self.folder / "model.json"
        self.oof, self.test = self.folder / "oof.parquet", self.folder / "test.parquet"
        self.begun_test = self.folder / "test.begun.parquet"  # its first rows, while the others aren't predicted yet
        self.metrics, self.log, self.words = (self.folder / n for n in ("metrics.json", "log.jsonl", "words.parquet"))
        self.checkpoint = self.folder / "checkpoint"
        self.state, self.previous_state = (self.checkpoint / f"{name}.safetensors" for name in ("state", "previous"))
        # Of a training that has not ended: the weights to keep, and what is interpolated from them.
        self.kept_weights, self.mixed_weights = (self.checkpoint / f"{n}.safetensors" for n in ("kept", "mixed"))
        self.choices = self.folder / "choices.safetensors"  # predictions of the rows held back, at each choice
        self.live_log = self.checkpoint / "log.jsonl"  # the epochs so far, beside a trained fold's own log
        self.figures = self.folder / "figures"

    @property
    def trained(self) -> bool:
        """Whether the fold is trained to its end: metrics.json is written last, and must be whole."""
        return self.predicts and (self.is_refit or self.oof.is_file())

    @property
    def predicts(self) -> bool:
        """Whether the model of a training that has ended is there; an export leaves the fold's own tables behind."""
        return bool(self.scores()) and self.weights.is_file()

    @property
    def predicted(self) -> bool:
        """Whether the fold has predicted the test set."""
        return self.test.is_file()

    @property
    def resumable(self) -> bool:
        """Whether a training of the fold has stopped with its state saved."""
        return self.state.is_file() or self.previous_state.is_file()

    def epoch(self, number: int) -> Path:
        """The predictions of the rows held back after an epoch of a training that has not ended."""
        return self.checkpoint / f"epoch{number}.safetensors"

    @property
    def latest_log(self) -> Path:
        """The log of the training that has not ended, or else that of the one that has."""
        return self.live_log if self.live_log.is_file() else self.log

    def scores(self) -> dict[str, Any]:
        """metrics.json; empty when the fold isn't finished or the file isn't whole."""
        found = read_json_if_whole(self.metrics)
        scored = self.is_refit or any(isinstance(found.get(name), dict) for name in OUTPUTS)
        whole = found.get("fold") == self.number and scored
        return found if whole else {}

    def read(self, part: str, ids: Sequence[str] | None = None) -> pd.DataFrame:
        """The fold's predictions, `part` oof or test, of exactly the products `ids`, in their order, where they are
        given.

        Raises DamagedFileError, with what to do, when they aren't that.
        """
        import numpy as np

        path = {"oof": self.oof, "test": self.test}[part]
        again = {"oof": train_again(path),
                 "test": "remove the file, and the fold predicts the test set again"}[part]  # fmt: skip
        frame = read_frame(path, ["id"], again)
        if ids is not None and frame["id"].tolist() != list(ids):
            raise DamagedFileError(f"the ids in {path} are not those of the run's folds and tables; {again}")
        if not np.isfinite(frame.filter(regex=r"_\d+$").to_numpy()).all():
            raise DamagedFileError(f"{path} holds values that are not numbers; {again}")
        return frame

    def made_from(self) -> dict[str, Any]:
        """What the trained fold comes from: "rows" (hash of what it learned), "code" (version of what trained it)."""
        return dict(self.scores().get("made_from", {}))

    def begin_writing(self) -> None:
        """From here on the files of an earlier training are replaced: nothing is trained until `finish`."""
        for path in (self.metrics, self.choices):
            path.unlink(missing_ok=True)

    def finish(self, metrics: Mapping[str, Any], made_from: Mapping[str, str]) -> None:
        """Writes metrics.json, which makes the fold trained, and removes its saved state."""
        for path in (self.test, self.begun_test):  # they would be from weights that are no more
            path.unlink(missing_ok=True)
        if self.live_log.is_file():
            os.replace(self.live_log, self.log)
        write_json(self.metrics, {**metrics, "made_from": dict(made_from)})
        self.run.update(folds={str(self.number): dict(made_from)})
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def held(self) -> AbstractContextManager[None]:
        """Inside, this process alone trains the fold; raises HeldError with who does so already."""
        lock = self.run.locks / f"{self.folder.name}.lock"
        folders = (self.folder, self.checkpoint)
        return held(lock, f"{self.title} of run '{self.run.name}'", folders, HOLDER_SECONDS)


class Run:
    """A run's folder, known by its path alone; nothing is read or made before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.record_file, self.locks = folder / "run.json", folder / ".locks"
        self.data_report, self.labels, self.bad_images, self.folds_table = (
            folder / name for name in ("data_report.json", "labels.json", "bad_images.csv", "folds.parquet")
        )
        self.notebooks, self.tracking = folder / "notebooks", folder / "wandb"
        self.ensemble, self.compressed = folder / "ensemble", folder / "compressed"
        self.oof, self.test = self.ensemble / "oof.parquet", self.ensemble / "test.parquet"
        self.metrics, self.method = self.ensemble / "metrics.json", self.ensemble / "method.json"
        self.blend_weights = self.ensemble / "weights.safetensors"  # what a blend has learned beside method.json
        self.figures, self.label_issues = self.ensemble / "figures", self.ensemble / "label_issues.csv"
        # What a person has decided of its labels, and the decisions of that kind that it has itself learned from.
        self.labels_fixed, self.label_fixes = folder / "labels_fixed.csv", folder / "label_fixes.csv"
        self.submission, self.submission_probs = folder / "submission.csv", folder / "submission_probs.csv"
        self.predictions = folder / "predictions.parquet"  # of the table that predict.ipynb was given
        self.report, self.goods_figures = folder / "report.html", folder / "figures"
        self.near_duplicates = folder / "near_duplicates.csv"
        self.export_record, self.card = folder / "export.json", folder / "README.md"  # of an exported one

    @classmethod
    def of(cls, p: Params) -> Run:
        """The run that the parameters name."""
        return cls(p.run_dir)

    @classmethod
    def named(cls, p: Params, name: str) -> Run:
        """Another run of the same outputs_dir."""
        return cls(resolve(p.outputs_dir) / name)

    def member(self, name: str) -> Run:
        """A run that this one is put together from: inside its folder where it was exported, else beside it."""
        inside = self.inner(name)
        return inside if inside.exists else Run(self.folder.parent / name)

    def inner(self, name: str) -> Run:
        """The place of a member inside an exported blend."""
        return Run(self.folder / "runs" / name)

    def fold(self, number: int) -> Fold:
        """A fold of the run, whether it is there or not."""
        return Fold(self, number)

    def folds(self) -> list[Fold]:
        """The folds that have a folder, the refit apart."""
        numbers = [path.name.removeprefix("fold") for path in self.folder.glob("fold*") if path.is_dir()]
        return [self.fold(number) for number in sorted(int(n) for n in numbers if n.isdecimal())]

    def trained(self) -> list[int]:
        """The numbers of the folds that are trained to their end."""
        return [fold.number for fold in self.folds() if fold.trained]

    @property
    def refit(self) -> Fold:
        """The model that learns from all rows, whether it is there or not."""
        return self.fold(REFIT)

    def predicting_folds(self, p: Params) -> list[Fold]:
        """The trained folds that predict products which none of them saw: with p.refit the refit alone.

        Raises GoodsError when that isn't trained yet.
        """
        if not p.refit:
            return [fold for fold in self.folds() if fold.trained]
        if not self.refit.trained:
            raise GoodsError(f"the refit of run '{self.name}' isn't trained yet; run notebooks/refit.ipynb, or leave "
                             "out refit to predict with the folds")  # fmt: skip
        return [self.refit]

    def pseudo(self, fold: int) -> Path:
        """The test products that the run has labelled for a fold of the next one."""
        return self.folder / "pseudo" / f"fold{fold}.parquet"

    def embeddings(self, part: str) -> Path:
        """The embeddings of train or test that embed.ipynb saves."""
        return self.folder / "embeddings" / f"{part}.safetensors"

    @property
    def neighbours(self) -> Path:
        """The embeddings of the training products among which kind knn looks."""
        return self.folder / "neighbours.safetensors"

    @property
    def titles(self) -> Path:
        """The folder with a table of titles for each class."""
        return self.folder / "classes"

    @property
    def pipeline_lock(self) -> Path:
        """What the only pipeline of the run holds."""
        return self.locks / "pipeline.lock"

    def steps_done(self) -> list[Path]:
        """What the pipeline has noted of each step that it has finished: its key and seconds, as JSON."""
        return sorted(self.notebooks.glob(f"*{DONE}"))

    def executed_notebooks(self) -> list[str]:
        """The names of the executed notebooks, that of one under way included; not what is left of failed ones."""
        names = {path.name.replace(".running.", ".") for path in self.notebooks.glob("*.ipynb")}
        return sorted(name for name in names if not name.endswith(".unfinished.ipynb"))

    def model_files(self, folds: Sequence[int]) -> list[Path]:
        """The files that predict further products with these folds' models, or put its runs together."""
        shared = [self.record_file, self.labels, self.method, self.metrics, self.blend_weights, self.neighbours]
        own = [path for f in map(self.fold, folds) for path in (f.weights, f.details, f.metrics)]
        return [path for path in shared + own if path.is_file()]

    def taught_files(self) -> list[Path]:
        """The test products that the run has labelled for the folds of a next one, and those folds; [] without."""
        labelled = sorted(self.pseudo(0).parent.glob(f"*{self.pseudo(0).suffix}"))
        return [self.folds_table, *labelled] if labelled and self.folds_table.is_file() else []

    @property
    def exported(self) -> bool:
        """Whether it is the export of a run: its model and scores, and nothing to train on from."""
        return self.export_record.is_file()

    @property
    def put_together(self) -> bool:
        """Whether it has come to its end: an ensemble of its folds, or of its runs."""
        return self.method.is_file()

    def tidy(self) -> None:
        """Removes what nobody reads once no process is at work: locks, unfinished writings, the last state but one."""
        shutil.rmtree(self.locks, ignore_errors=True)
        for fold in (*self.folds(), self.refit):
            if fold.state.is_file():
                fold.previous_state.unlink(missing_ok=True)
        for litter in self.folder.rglob(".*.tmp"):
            litter.unlink(missing_ok=True)

    @property
    def exists(self) -> bool:
        """Whether there is such a run."""
        return self.record_file.is_file()

    @property
    def taken(self) -> bool:
        """Whether something has been trained under this name, so that its parameters are fixed."""
        return self.metrics.is_file() or any(fold.trained or fold.resumable for fold in self.folds())

    # What made it ----------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """run.json: parameters, tables, models, folds, environment; empty before the run is opened."""
        if not self.exists:
            return {}
        return read_json(self.record_file, f"get it back from a copy, or {other_name(self.folder)}")

    def parameters(self) -> dict[str, Any]:
        """The parameters it was made with; one that is younger than the run had its default then."""
        return Params().model_dump(mode="json") | self.record().get("parameters", {})

    def update(self, **parts: Mapping[str, Any]) -> None:
        """Adds to parts of run.json ("tables", "folds"); folds side by side wait for each other."""
        with held(self.locks / "record.lock", f"run.json of run '{self.name}'"):
            record = self.record()
            write_json(
                self.record_file, record | {name: record.get(name, {}) | values for name, values in parts.items()}
            )

    def open(self, p: Params, models: Mapping[str, str]) -> None:
        """Makes the run's folder and run.json, or checks that the run may be gone on from.

        `models`: hash of each model directory that the kind reads, by the parameter that names it; a directory that
        isn't there is left out. The paths themselves don't count: another machine's path to the same files is the same
        backbone. Raises OtherRunError when something was trained with other parameters or models, ParameterError when
        the parameters name a run that isn't there.
        """
        self._refuse_old_layout()
        if self.taken:
            self._compare(p, models)
            return
        check_named_runs(p)
        parameters, fixes = p.model_dump(mode="json"), fixes_stamp(p.label_fixes)
        facts = {"version": VERSION, "parameters": parameters, "environment": environment()}
        facts |= {"label_fixes": fixes} if fixes else {}
        with held(self.locks / "record.lock", f"run.json of run '{self.name}'"):
            if self.taken:  # by a process beside this one, just now
                return
            before = read_json_if_whole(self.record_file).get("parameters", {})
            if any(name in before and before[name] != parameters[name] for name in FOLDS_FROM):
                self.folds_table.unlink(missing_ok=True)  # of a call that has trained nothing
            write_json(self.record_file, facts | {"tables": {}, "models": dict(models), "folds": {}})

    def _refuse_old_layout(self) -> None:
        if (self.folder / "params.yaml").is_file() and not self.exists:
            raise OtherRunError(
                f"run '{self.name}' was made by an earlier version of this project; {other_name(self.folder)}"
            )

    def _compare(self, p: Params, models: Mapping[str, str]) -> None:
        if differ := self.differing(p):
            them = "it" if len(differ) == 1 else "them"
            raise OtherRunError(f"run '{self.name}' was made with other parameters: {self._changes(p, differ)}. "
                                f"Give {them} back, or {other_name(self.folder)}")  # fmt: skip
        known = self.record().get("models", {})
        for name, now in models.items():
            if known.get(name, now) != now:
                raise OtherRunError(
                    f"run '{self.name}' was made with other files in {name}: their hash was {known[name]}, and that of "
                    f"{path_of(dict(p), name)} is {now}. Put the files back, or {other_name(self.folder)}"
                )

    def _changes(self, p: Params, names: Sequence[str]) -> str:
        before, now = self.parameters(), p.model_dump(mode="json")
        before["label_fixes"] = str(self.label_fixes) if "label_fixes" in self.record() else None
        return ", ".join(f"{name} was {before[name]!r} and is now {now[name]!r}" for name in names)

    def differing(self, p: Params) -> list[str]:
        """The parameters that count and differ from those the run was made with; models and fixes count by contents."""
        before, now = self.parameters(), p.model_dump(mode="json")
        runtime = RUNTIME_FIELDS | {"run"}
        by_contents = {parameter_of(name) for name in self.record().get("models", {})}

        def differs(name: str) -> bool:
            if name in by_contents:
                return count_paths(before[name]) != count_paths(now[name])
            return name not in runtime and before[name] != now[name]

        other_fixes = self.record().get("label_fixes") != fixes_stamp(p.label_fixes)
        return [*filter(differs, Params.model_fields), *(["label_fixes"] if other_fixes else [])]

    def check_tables(self, contents: Mapping[str, str]) -> list[str]:
        """The tables ("train", "test") that changed since something was trained; before that they are recorded."""
        known = self.record().get("tables", {})
        if known == dict(contents) or not self.exists:
            return []
        if self.taken and known:
            return [name for name in contents if known.get(name) != contents[name]]
        self.update(tables=contents)
        return []

    # Going on from another run ---------------------------------------------------------------------------------------

    def adopt(self, p: Params, other: Run, with_test: bool = True) -> list[int]:
        """Copies all folds that `other` has trained or begun and this run lacks; returns their numbers.

        The other run is only read; of several processes one copies and the others wait. `with_test` False leaves the
        predictions of the test set behind. Raises OtherRunError when it isn't a run or was made with other parameters.
        """
        if not other.exists:
            raise OtherRunError(f"resume_from {other.folder} is not the folder of a run: it has no run.json")
        if names := other.differing(p):
            raise OtherRunError(f"resume_from {other.folder} was made with other parameters: "
                                f"{other._changes(p, names)}. Give them back, or leave out resume_from")  # fmt: skip
        own, theirs = (run.record().get("models", {}) for run in (self, other))
        if names := [name for name in own if theirs.get(name, own[name]) != own[name]]:
            name = names[0]
            raise OtherRunError(f"resume_from {other.folder} was made with other files in {name}: their hash was "
                                f"{theirs[name]}, and that of {path_of(dict(p), name)} is {own[name]}")  # fmt: skip
        found = []
        with held(self.locks / "adopt.lock", f"run '{self.name}', which goes on from {other.folder},", seconds=600):
            self._adopt_folds_table(other)
            if other.neighbours.is_file() and not self.neighbours.is_file():
                with atomic_path(self.neighbours) as temporary:
                    shutil.copyfile(other.neighbours, temporary)
            for theirs in (*other.folds(), other.refit):
                own = self.fold(theirs.number)
                if not (theirs.trained or theirs.resumable) or own.trained or own.resumable:
                    continue
                copy = self.folder / f".{own.folder.name}.adopted"
                shutil.rmtree(copy, ignore_errors=True)  # of a call that was killed
                left = (".*",) if with_test else (".*", theirs.test.name, theirs.begun_test.name)
                shutil.copytree(theirs.folder, copy, ignore=shutil.ignore_patterns(*left))
                shutil.rmtree(own.folder, ignore_errors=True)
                os.replace(copy, own.folder)
                found.append(own.number)
            if found:
                made_from = {str(k): other.fold(k).made_from() for k in found}
                self.update(folds=made_from, models=other.record().get("models", {}))
        return found

    def _adopt_folds_table(self, other: Run) -> None:
        """Takes over folds.parquet, which read_folds compares with the tables; another one of its own is an error."""
        if not other.folds_table.is_file():
            raise OtherRunError(f"resume_from {other.folder} has no folds.parquet; name a run that has trained folds")
        if not self.folds_table.is_file():
            with atomic_path(self.folds_table) as temporary:
                shutil.copyfile(other.folds_table, temporary)
        elif not read_frame(self.folds_table).equals(read_frame(other.folds_table)):
            raise OtherRunError(
                f"resume_from {other.folder} has other folds than {self.folder}: the training tables differ"
            )


def runs_in(outputs: Path) -> list[Run]:
    """The runs of an outputs_dir, by name."""
    return [Run(path.parent) for path in sorted(outputs.glob("*/run.json"))]


def deadline(p: Params) -> float | None:
    """The moment (seconds since 1970) at which to stop: max_hours after the pipeline's start, or after now."""
    return float(os.environ.get("GOODS_STARTED") or time.time()) + p.max_hours * 3600 if p.max_hours else None


def saved_files(p: Params, *patterns: str) -> pd.DataFrame:
    """The run's files that match the patterns, with their sizes: the last table of a notebook."""
    import pandas as pd

    files = [f for pattern in patterns for f in sorted(p.run_dir.glob(pattern))]
    return pd.DataFrame({"file": [str(f.relative_to(p.run_dir)) for f in files],
                         "kB": [round(f.stat().st_size / 1000, 1) for f in files]})  # fmt: skip
