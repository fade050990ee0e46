"""What every notebook imports: `import goods_utils as gu`.

The work is in modules that each use only those before them: goods_params (parameters, run directory), goods_data
(tables, texts, folds, photos), goods_metrics (scores and prediction tables), goods_model (backbone, heads, embeddings),
goods_plan (what a run will cost), goods_checkpoint (the state of an unfinished training), goods_words (words as
features), goods_labels (the rows a fold learns from), goods_task (model, data and recipe of a fold), goods_predict
(predictions of trained models), goods_train (training), goods_embed (embeddings as files, neighbours), goods_linear and
goods_knn (the baselines), goods_blend (members made one), goods_ensemble (folds and runs together), goods_pseudo (test
products labelled for the next run), goods_why (what speaks for a prediction).
Here they meet, and what stands on them all is added: submission and the command line.
"""

# ruff: noqa: E402
from __future__ import annotations

import gc

gc.disable()  # imports leave no garbage, and looking for it among a million objects costs a quarter of their time

import argparse
import json
import os
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from goods_data import (
    Goods,
    PhotoDataset,
    TensorsDataset,
    clean_text,
    duplicate_groups,
    inspect_photos,
    load_photo,
    make_folds,
    rare_classes,
    read_folds,
    read_goods,
    report_table,
)
from goods_embed import joined, map_points, nearest_products, neighbours, save_embeddings
from goods_ensemble import Ensemble, blend_runs, ensemble_folds
from goods_knn import fit_knn
from goods_labels import label_issues
from goods_linear import fit_linear, telling_words
from goods_metrics import frame_logits, logits_frame, outputs_of, prediction_table, score
from goods_model import (
    DualEncoder,
    Embedder,
    GoodsClassifier,
    GoodsHeads,
    Processor,
    load_backbone,
    load_processor,
    load_trained,
    pick_device,
    pick_precision,
    save_trained,
)
from goods_params import (
    OUTPUTS,
    ROOT,
    GoodsError,
    Params,
    atomic_path,
    load_params,
    open_run,
    parse_setting,
    read_params,
    resolve,
    write_json,
    write_text,
)
from goods_plan import Plan, plan
from goods_predict import predict, predict_test
from goods_pseudo import make_pseudo_labels
from goods_task import make_task
from goods_train import fit_fold, read_logs
from goods_why import explain

gc.freeze()  # nor is any looked for among them later, at the end of the process above all
gc.enable()

__all__ = [
    "OUTPUTS",
    "ROOT",
    "DualEncoder",
    "Embedder",
    "Ensemble",
    "Goods",
    "GoodsClassifier",
    "GoodsError",
    "GoodsHeads",
    "Params",
    "PhotoDataset",
    "Plan",
    "Processor",
    "TensorsDataset",
    "blend_runs",
    "clean_text",
    "duplicate_groups",
    "ensemble_folds",
    "explain",
    "fit_baseline",
    "fit_fold",
    "fit_knn",
    "fit_linear",
    "frame_logits",
    "inspect_photos",
    "joined",
    "label_issues",
    "load_backbone",
    "load_params",
    "load_photo",
    "load_processor",
    "load_trained",
    "logits_frame",
    "make_folds",
    "make_pseudo_labels",
    "make_task",
    "map_points",
    "nearest_products",
    "neighbours",
    "open_run",
    "outputs_of",
    "pick_device",
    "pick_precision",
    "plan",
    "predict",
    "predict_test",
    "prediction_table",
    "rare_classes",
    "read_folds",
    "read_goods",
    "read_logs",
    "read_params",
    "report_table",
    "resolve",
    "save_embeddings",
    "save_trained",
    "saved_files",
    "score",
    "telling_words",
    "write_json",
    "write_label_issues",
    "write_submission",
    "write_text",
]


def fit_baseline(p: Params, goods: Goods) -> pd.DataFrame:
    """All folds of a kind that trains in a minute, linear or knn; returns the folds' metrics."""
    return fit_knn(p, goods) if p.kind == "knn" else fit_linear(p, goods)


def write_label_issues(p: Params, ensemble: Ensemble, goods: Goods) -> pd.DataFrame:
    """Products whose given label their out-of-fold prediction contradicts, worst first; also ensemble/label_issues.csv.

    For plots.worst_errors: id, title, text, image, label, prediction (the suggestion; class indices), given, suggested
    (names), margin.
    """
    issues = label_issues(ensemble.oof["label"].to_numpy(), frame_logits(ensemble.oof))
    table = prediction_table(ensemble.oof, goods).iloc[issues["row"]].reset_index(drop=True)
    names = {"given": table["label"], "suggested": issues["suggested"]}
    named = {name: [goods.classes[k] for k in labels] for name, labels in names.items()}
    table = table.assign(prediction=issues["suggested"], margin=issues["margin"], **named)
    with atomic_path(p.run_dir / "ensemble" / "label_issues.csv") as temporary:
        table[["id", "given", "suggested", "margin", "title", "text", "image"]].to_csv(temporary, index=False)
    return table


# ---------------------------------------------------------------------------------------------------------------------
# 19 Submission
# ---------------------------------------------------------------------------------------------------------------------


def write_submission(p: Params, goods: Goods) -> pd.DataFrame:
    """Writes submission.csv and submission_probs.csv from the ensemble; returns id, label, c0 ... c{K-1}.

    One row for each row of test.csv, in its order, with the labels as train.csv writes them; c{k} is the probability
    of class index k. Folds that the ensemble lacks are said aloud. Raises GoodsError when the ensemble is
    missing or doesn't fit test.csv.
    """
    path = p.run_dir / "ensemble" / "test.parquet"
    if not path.is_file():
        raise GoodsError(f"run '{p.run}' has no ensemble yet; run notebooks/ensemble.ipynb first")
    test = pd.read_parquet(path)
    if test["id"].tolist() != goods.test["id"].tolist():
        raise GoodsError(f"the ids in {path} are not those of {p.test_csv}; run notebooks/ensemble.ipynb again")
    probabilities = np.exp(frame_logits(test))  # (n, num_classes)
    if not np.allclose(probabilities.sum(1), 1, atol=1e-6):
        raise GoodsError(f"the probabilities in {path} don't sum to 1; run notebooks/ensemble.ipynb again")
    missing = json.loads(path.with_name("metrics.json").read_text(encoding="utf-8"))["missing_folds"]
    if missing:
        print(f"the ensemble lacks {len(missing)} of {p.n_folds} folds: {', '.join(map(str, missing))}")
    labels = np.asarray(goods.labels, dtype=object)[probabilities.argmax(1)]
    submission = pd.DataFrame({p.id_column: test["id"], p.label_column: labels})
    columns = pd.DataFrame(probabilities, columns=[f"c{k}" for k in range(probabilities.shape[1])])
    with atomic_path(p.run_dir / "submission.csv") as temporary:
        submission.to_csv(temporary, index=False)
    with atomic_path(p.run_dir / "submission_probs.csv") as temporary:
        pd.concat([submission[[p.id_column]], columns], axis=1).to_csv(temporary, index=False, float_format="%.6f")
    return pd.concat([submission, columns], axis=1)


def saved_files(p: Params, *patterns: str) -> pd.DataFrame:
    """The run's files that match the patterns, with their sizes: the last table of a notebook."""
    files = [f for pattern in patterns for f in sorted(p.run_dir.glob(pattern))]
    return pd.DataFrame({"file": [str(f.relative_to(p.run_dir)) for f in files],
                         "kB": [round(f.stat().st_size / 1000, 1) for f in files]})  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 20 Command line
# ---------------------------------------------------------------------------------------------------------------------


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
            print(plan(load_params(options.config, **given), options.gpu))
            return
        p = load_params(options.config, **given, fold=getattr(options, "fold", 0))
        if options.command == "report":
            from goods_report import write_report  # which draws; the others do without matplotlib

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
