"""What every notebook imports, `import goods_utils as gu`, and the command line. The work is in the package goods."""

# ruff: noqa: E402
from __future__ import annotations

import gc

gc.disable()  # imports leave no garbage, and looking for it among a million objects costs a quarter of their time

import argparse
import os
import sys
from collections.abc import Sequence

from goods.cost.plan import plan_run
from goods.data.folds import rare_classes, read_folds
from goods.data.tables import read_goods, report_table
from goods.ensemble.folds import ensemble_folds
from goods.ensemble.label_issues import write_label_issues
from goods.ensemble.pseudo_labels import make_pseudo_labels
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.explain import explain
from goods.files import ROOT, atomic_path
from goods.members.knn import fit_knn
from goods.members.linear import fit_linear
from goods.metrics import score
from goods.models.backbone import load_processor
from goods.models.embeddings import save_embeddings
from goods.models.neighbours import joined, map_points, nearest_products, neighbours
from goods.models.tfidf import heaviest_words
from goods.params import OUTPUTS, Params, load_params, parse_setting, read_params
from goods.predictions import frame_logits, prediction_table
from goods.run import open_run, saved_files
from goods.training.loop import fit_fold, read_logs

gc.freeze()  # nor is any looked for among them later, at the end of the process above all
gc.enable()

__all__ = [
    "OUTPUTS",
    "ROOT",
    "GoodsError",
    "Params",
    "atomic_path",
    "ensemble_folds",
    "explain",
    "fit_baseline",
    "fit_fold",
    "frame_logits",
    "heaviest_words",
    "joined",
    "load_params",
    "load_processor",
    "make_pseudo_labels",
    "map_points",
    "nearest_products",
    "neighbours",
    "open_run",
    "plan_run",
    "prediction_table",
    "rare_classes",
    "read_folds",
    "read_goods",
    "read_logs",
    "read_params",
    "report_table",
    "save_embeddings",
    "saved_files",
    "score",
    "write_label_issues",
    "write_submission",
]


def fit_baseline(p, goods):
    """All folds of a kind that trains in a minute, linear or knn; returns the folds' metrics."""
    return fit_knn(p, goods) if p.kind == "knn" else fit_linear(p, goods)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains one fold without a notebook, as accelerate launch and torchrun need it; plans a run; reports on it."""
    parser = argparse.ArgumentParser(prog="goods_utils.py", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train a fold: accelerate launch goods_utils.py fit --config ... --fold 2")
    fit.add_argument("--fold", type=int, default=0, help="the fold to hold back")
    cost = commands.add_parser("plan", help="memory, hours and disk of a run, before it")
    cost.add_argument("--gpu", help="T4, L4, A100 ...; the default is the GPU there is, else T4")
    report = commands.add_parser("report", help="report.html of a run, whatever it has so far")
    for command in (fit, cost, report):
        command.add_argument("--config", required=True, help="YAML file, such as params/siglip-so400m-lora.yaml")
        # No --run: torchrun takes it for an option of its own, even behind the script's name.
        command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any other parameter: run=b")
    options = parser.parse_args(arguments)
    try:
        given = dict(parse_setting(text) for text in options.set)
        if options.command == "plan":
            print(plan_run(load_params(options.config, **given), options.gpu))
            return
        p = load_params(options.config, **given, fold=getattr(options, "fold", 0))
        if options.command == "report":
            from goods.report import write_report  # which draws; the others do without matplotlib

            print(write_report(p))
            return
        open_run(p)
        metrics = fit_fold(p, read_goods(p))
    except GoodsError as error:
        sys.exit(f"goods_utils.py: {error}")
    if os.environ.get("RANK", "0") == "0":
        print(
            "  ".join(f"{output} macro-F1 {metrics[output]['macro_f1']:.4f}" for output in OUTPUTS if output in metrics)
        )


if __name__ == "__main__":
    main()
