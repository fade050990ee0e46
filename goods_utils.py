"""What every notebook imports, `import goods_utils as gu`, and the command line. The work is in the package goods."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from goods import members
from goods.advice import command, no_such_run
from goods.data.folds import rare_classes, read_folds
from goods.data.tables import Goods, report_table
from goods.errors import GoodsError
from goods.files import ROOT, read_frame, resolve, sentence
from goods.findings.shown import so, tell
from goods.members import ensemble_run, kind_of, open_run, predict_test, read_goods
from goods.metric_names import SHOWN_AS
from goods.metrics import score
from goods.params import OUTPUTS, Params, load_params, read_params
from goods.predictions import frame_logits, prediction_table
from goods.processes import speak_plainly
from goods.report import settings_table, write_report
from goods.run import Run, saved_files
from goods.settings import parse_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from goods.classify import Job
    from goods.cost.plan import Plan
    from goods.ensemble.label_issues import write_label_issues
    from goods.ensemble.pseudo_labels import make_pseudo_labels
    from goods.ensemble.submission import named_classes, write_submission
    from goods.explain import explain
    from goods.models.embeddings import save_embeddings
    from goods.models.encoders import token_counter
    from goods.models.neighbours import joined, known_already, map_points, neighbours
    from goods.on_ray import Loading
    from goods.predictor import load_predictor
    from goods.review import Review, open_review

pd.set_option("display.html.use_mathjax", False)  # in the tables of notebooks a $ is a price, no formula
gc.freeze()  # what was imported is no garbage
gc.set_threshold(100_000, 50, 1000)  # looking for it after every 700 objects costs what comes later a tenth

__all__ = [
    "OUTPUTS",
    "command",
    "ensemble_run",
    "explain",
    "fit_all",
    "fit_fold",
    "fold_scores",
    "frame_logits",
    "heaviest_words",
    "joined",
    "keep_figure",
    "keep_pairs",
    "known_already",
    "load_predictor",
    "make_pseudo_labels",
    "map_points",
    "mended_run",
    "named_classes",
    "neighbours",
    "open_review",
    "open_run",
    "predict_test",
    "prediction_table",
    "rare_classes",
    "read_folds",
    "read_goods",
    "read_logs",
    "read_oof",
    "read_params",
    "read_pseudo",
    "refit",
    "report_table",
    "review_box",
    "save_embeddings",
    "saved_files",
    "score",
    "settings_table",
    "shared_across_folds",
    "show_plan",
    "so",
    "tell",
    "titles_dir",
    "token_counter",
    "write_label_issues",
    "write_report",
    "write_submission",
]

# What loads torch or scikit-learn is imported when it is first asked for: what needs neither starts 1.5 s earlier.
LATER = {
    "goods.ensemble.label_issues": ("write_label_issues",),
    "goods.ensemble.pseudo_labels": ("make_pseudo_labels",),
    "goods.ensemble.submission": ("named_classes", "write_submission"),
    "goods.explain": ("explain",),
    "goods.models.embeddings": ("save_embeddings",),
    "goods.models.encoders": ("token_counter",),
    "goods.models.neighbours": ("joined", "known_already", "map_points", "neighbours"),
    "goods.predictor": ("load_predictor",),
    "goods.review": ("open_review",),
}


def __getattr__(name: str) -> Any:
    for module, names in LATER.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'goods_utils' has no attribute '{name}'")


# What notebooks ask of a run -----------------------------------------------------------------------------------------


def fit_fold(p: Params, goods: Goods) -> dict:
    """Trains fold p.fold where it isn't trained yet; returns its metrics."""
    members.fit(p, goods, [p.fold])
    return Run.of(p).fold(p.fold).scores()


def fit_all(p: Params, goods: Goods) -> pd.DataFrame:
    """Trains all folds that p chooses and that aren't trained yet; returns a row of scores per fold."""
    members.fit(p, goods)
    return fold_scores(p)


def fold_scores(p: Params) -> pd.DataFrame:
    """The main scores of the trained folds, and what was chosen for each; one row per fold."""
    return members.fold_scores_of(p)


def refit(p: Params, goods: Goods) -> dict:
    """Trains the model that learns from all rows where it isn't trained yet; returns its metrics.json."""
    members.refit(p, goods)
    return Run.of(p).refit.scores()


def read_oof(p: Params, folds: Sequence[int] | None = None) -> pd.DataFrame:
    """The predictions of the rows that these folds held back; by default those of all trained folds."""
    run = Run.of(p)
    return pd.concat([read_frame(run.fold(k).oof) for k in (run.trained() if folds is None else folds)])


def shared_across_folds(p: Params, goods: Goods) -> pd.DataFrame:
    """Products with a copy in another fold, by what they share, and where the run is trained, what they score."""
    from goods.trust import shared_across_folds

    run = Run.of(p)
    oof = read_frame(run.oof, ["id", "label"]) if run.oof.is_file() else None
    return shared_across_folds(goods, read_folds(goods, p), oof)


def keep_pairs(p: Params, pairs: pd.DataFrame, goods: Goods) -> pd.DataFrame:
    """Keeps the near-copies that goods.trust.near_duplicates has found in the run, as near_duplicates.csv."""
    from goods.trust import write_pairs

    return write_pairs(pairs, goods.classes, Run.of(p).near_duplicates)


def keep_figure(p: Params, name: str, figure: Figure, of: int | str = "ensemble") -> Figure:
    """Keeps a figure in the run, of a fold (its number), the "ensemble" or the "goods"; gives it back to be shown."""
    from goods.figures.style import save_figure

    run = Run.of(p)
    folder = run.fold(of).figures if isinstance(of, int) else {"ensemble": run.figures, "goods": run.goods_figures}[of]
    return save_figure(folder / f"{name}.png", figure)


def read_pseudo(p: Params, fold: int) -> pd.DataFrame:
    """The test products that the run has labelled for a fold: id, label, probability."""
    return read_frame(Run.of(p).pseudo(fold), (), "run pseudo_label.ipynb again")


def read_logs(p: Params, fold: int | None = None) -> pd.DataFrame:
    """The training logs of the run's folds, or of one: fold, epoch, train_loss, valid_loss, p.metric ...

    Raises GoodsError where there is none.
    """
    from goods.training.fold import read_logs

    logs = read_logs(Run.of(p))
    found = logs if fold is None or logs.empty else logs[logs["fold"] == fold]
    if found.empty:
        notebooks = " and ".join(kind_of(p).notebooks)
        raise GoodsError(
            f"run '{p.run}' has no log of training epochs; kind {p.kind} is shown by the notebooks {notebooks}"
        )
    return found


def heaviest_words(p: Params, classes: Sequence[str]) -> pd.DataFrame:
    """The words that speak most for each class, where the run's kind keeps any."""
    from goods.models.tfidf import heaviest_words

    run = Run.of(p)
    return heaviest_words([f.words for f in run.folds() if f.words.is_file()], classes)


def titles_dir(p: Params) -> Path:
    """Where eda.ipynb writes a table of titles for each class."""
    return Run.of(p).titles


def show_plan(p: Params, gpu: str | None = None) -> Plan | str:
    """What the run will cost, or a sentence where nobody can tell beforehand; gpu "here": on this machine's device."""
    kind = kind_of(p)
    if kind.planned is None:
        return f"There is no plan for kind {kind.name}: {kind.what}."
    from goods.cost.plan import plan_run

    return plan_run(p, gpu, sides=kind.planned)


def review_box(p: Params, goods: Goods, review: Review, config: str) -> Any:
    """The application to decide labels with, or where ipywidgets is missing, the command that does without."""
    try:
        from goods.review_widget import ReviewBox
    except ImportError:
        return f"ipywidgets isn't installed; goods_utils.py review --run {p.run} writes a list to fill in by hand"
    from goods.review import training_vectors

    box = ReviewBox(review, goods, training_vectors(p, goods), f"Now train again: {mended_run(p, config)}")
    box.show()
    return box


def mended_run(p: Params, config: str) -> str:
    """The command that trains a further run by the labels that were decided."""
    fixes = os.path.relpath(Run.of(p).labels_fixed, ROOT)
    return f"python pipeline.py --config {config} --run {p.run}-mended --set label_fixes={fixes}"


def export(run: str, to: str, merge: bool) -> str:
    """The command `export`: the finished run of that name, or in that folder, as the folder `to` to hand on."""
    from goods.export import export_run

    return export_run(Run(run_folder(run)), Path(to).absolute(), merge)


def run_folder(run: str) -> Path:
    """The folder of a run that is given by its name or as a folder."""
    folder = resolve(Params().outputs_dir) / run
    if Run(Path(run)).exists or len(Path(run).parts) > 1:
        return Path(run).absolute()
    if not Run(folder).exists:
        raise GoodsError(f"--run: {no_such_run(run, Params().outputs_dir)}")
    return folder


def params_of(run: str, given: dict[str, Any]) -> Params:
    """The parameters of a run, given by its name or as a folder: as its run.json has them, but where it lies now."""
    folder = run_folder(run)
    known = {name: value for name, value in Run(folder).parameters().items() if name in Params.model_fields}
    here = {"outputs_dir": str(folder.parent), "run": folder.name.removesuffix("-debug" if known["debug"] else "")}
    return load_params(None, **known | here | given)


def add_predict(commands: Any) -> None:
    """The arguments of `predict`."""
    command = commands.add_parser("predict", help="classify a table of products by a finished run")
    command.add_argument("--run", required=True, help="name of a run in outputs/, or the folder of one")
    command.add_argument("--table", required=True, help="the products, a table of any kind that trains")
    command.add_argument("--images", help="folder of their photos; none: predict without")
    command.add_argument("--image-column", help="what names or holds their photos; the run's own by default")
    command.add_argument("--out", required=True, help="the predictions: .parquet, .csv, or a folder of parts")
    command.add_argument("--shard", help="the parts of a share of the table: 3/16 is the third of sixteen")
    command.add_argument("--engine", choices=("local", "ray"), default="local", help="who works: this process, or Ray")
    command.add_argument("--actors", type=int, help="of ray, side by side; one for each GPU, else each CPU, by default")
    command.add_argument("--precision", type=float, default=0.95, help="how many of the accepted are to be right")
    command.add_argument("--probabilities", action="store_true", help="add the probability of every class")
    command.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="where a model directory is now; embeddings_files=PATH: the vectors of these products",
    )
    command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="such as eval_batch_size=64")


def add_compare(commands: Any) -> None:
    """The arguments of `compare`."""
    command = commands.add_parser("compare", help="all runs in one table and one page; two of them side by side")
    command.add_argument("runs", nargs="*", metavar="RUN", help="two runs, to see what the first gains on the second")
    command.add_argument("--outputs", default=Params().outputs_dir, help="the folder of the runs (default: outputs)")
    command.add_argument("--metric", help="the metric to compare by; by default the one most runs were chosen by")


def compare(options: argparse.Namespace) -> str:
    """The command `compare`: index.html of all runs, or the page of two; returns what there is to say."""
    from goods.compare import finding, summary
    from goods.compare_page import write_index, write_pair

    if options.runs:
        if len(options.runs) != 2:
            raise GoodsError(f"compare takes two runs or none, not {len(options.runs)}: compare blend linear")
        path, pair, said = write_pair(options.outputs, *options.runs, options.metric)
        return f"{said}\n{pair.counted}\n{path}"
    path, all_runs = write_index(options.outputs, options.metric)
    return f"{finding(all_runs)}\n\n{summary(all_runs).to_string()}\n\n{path}"


def path_from_here(given: str) -> str:
    """A path, or several with commas between them, from the folder that the command is given in."""
    parts = [given] if os.path.exists(given) else given.split(",")
    return ",".join(os.path.abspath(part) for part in parts)


def predict(options: argparse.Namespace) -> None:
    """The command `predict`; what it is given relative is looked for from here. Ends with status 2 on bad input."""
    from goods.classify import named_paths, prepare_job
    from goods.on_ray import Loading

    here = {name: getattr(options, name) for name in ("table", "out", "images") if getattr(options, name)}
    paths = {name: path if path == "none" else os.path.abspath(path) for name, path in here.items()}
    try:
        settings = parse_settings(options.set)
        models = {name: path_from_here(path) for name, path in named_paths(options.models).items()}
        loading = Loading(run_folder(options.run), models, settings)
        predictor = loading.load()
        gc.freeze()  # its words, a million of them, are no garbage either
        job = prepare_job(predictor, image_column=options.image_column, precision=options.precision,
                          probabilities=options.probabilities, **paths)  # fmt: skip
        print(f"{job.acceptance.sentence()}\n{_done(job, options, loading)}")
    except (GoodsError, OSError) as error:
        print(f"goods_utils.py: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def _done(job: Job, options: argparse.Namespace, loading: Loading) -> str:
    """What has become of a job, in the file or the folder that was asked for."""
    from goods import catalogue, on_ray

    ray = options.engine == "ray"
    if options.actors is not None and not (ray and options.actors > 0):
        raise GoodsError(f"--actors {options.actors} has no meaning: with --engine ray it is how many, at least 1")
    if not job.out.suffix:
        classify = partial(on_ray.classified, job, loading, actors=options.actors) if ray else None
        return catalogue.report(job, catalogue.run_shard(job, catalogue.Shard.parse(options.shard or "1/1"), classify))
    if options.shard or ray:
        what = "--shard" if options.shard else "--engine ray"
        raise GoodsError(f"--out {job.out} is a file; {what} writes a folder of parts: name one")
    return job.report(job.run())


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a fold without a notebook, as accelerate launch and torchrun need it; plans, reports on and uses a run."""
    speak_plainly()
    parser = argparse.ArgumentParser(prog="goods_utils.py", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train a fold: accelerate launch goods_utils.py fit --config ... --fold 2")
    fit.add_argument("--fold", type=int, default=0, help="the fold to hold back")
    fit.add_argument("--refit", action="store_true", help="hold back none: the model of all rows, after the folds")
    cost = commands.add_parser("plan", help="memory, hours and disk of a run, before it")
    cost.add_argument("--gpu", help="T4, L4, A100 ..., or here; the default is the GPU there is, else T4")
    report = commands.add_parser("report", help="report.html of a run, whatever it has so far")
    report.add_argument("--run", help="name of a run in outputs/, or the folder of one; no config is needed then")
    handed = commands.add_parser("export", help="a finished run as a folder to hand on: its models and a model card")
    handed.add_argument("--run", required=True, help="name of a run in outputs/, or the folder of one")
    handed.add_argument("--to", required=True, help="the folder to make")
    handed.add_argument("--merge", action="store_true", help="add LoRA adapters into the weights that they change")
    review = commands.add_parser("review", help="the labels in doubt as a table to decide by hand: labels_fixed.csv")
    review.add_argument("--run", required=True, help="name of a run in outputs/, or the folder of one")
    add_predict(commands)
    add_compare(commands)
    for each in (fit, cost, report):
        # No --run for fit: torchrun takes it for an option of its own, even behind the script's name.
        each.add_argument("--config", required=each is not report, help="YAML file, such as params/linear.yaml")
        each.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other parameters: run=b")
    options = parser.parse_args(arguments)
    if options.command == "predict":
        predict(options)
        return
    try:
        if options.command == "export":
            print(export(options.run, options.to, options.merge))
            return
        if options.command == "review":
            from goods.review import write_review_list

            print(write_review_list(Run(run_folder(options.run))))
            return
        if options.command == "compare":
            print(compare(options))
            return
        own = {"config": "--config"} | ({"fold": "--fold"} if hasattr(options, "fold") else {})
        given = parse_settings(options.set, own)
        if options.command == "plan":
            print(show_plan(load_params(options.config, **given), options.gpu))
            return
        if options.command == "report" and bool(options.config) == bool(options.run):
            raise GoodsError("report: name the run, by --run, or by the --config that made it")
        if options.command == "report" and options.run:
            print(write_report(params_of(options.run, given)))
            return
        p = load_params(options.config, **{"fold": getattr(options, "fold", 0)} | given)
        if options.command == "report":
            print(write_report(p))
            return
        open_run(p)
        metrics = refit(p, read_goods(p)) if options.refit else fit_fold(p, read_goods(p))
    except (GoodsError, OSError) as error:
        sys.exit(f"goods_utils.py: {sentence(error)}")
    if os.environ.get("RANK", "0") == "0":
        shown = SHOWN_AS[p.metric]
        scores = [f"{output} {shown} {metrics[output][p.metric]:.4f}" for output in OUTPUTS if output in metrics]
        print("  ".join(scores) or f"the refit learned from {metrics['rows']} rows")


if __name__ == "__main__":
    main()
