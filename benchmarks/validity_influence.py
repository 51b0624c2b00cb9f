"""Does DEALRec's influence foretell what leaving rows out does to a SASRec? Its rank correlation over half-subsets.

    python -m benchmarks.validity_influence [--subsets 50] [--json benchmarks/results/validity_influence.json]

RecBole's SASRec is trained on some rows of ml-100k, and again on random halves of them: the same initial weights, seed
and number of epochs, the last epoch counts. Influence, of the SASRec of all rows, estimates the rise of the mean loss
over all rows if a row were removed. So the loss after training on a half is predicted to be higher the smaller the sum
of influence over the rows that were kept. The correlation is that of the predicted with the measured loss, under the
weights that ``--model=DEALRec`` looks at by default, and under all of them.

Training itself has chance in it (dropout, the order of the rows). So everything is trained with several seeds, the mean
loss over seeds counts, and the correlation of the losses of two seeds says how much of a loss is the subset's doing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.reports import write_report
from benchmarks.validity import RESULTS, rank_correlation, render_report
from recbole_llm.classic.training import fit_classic
from recbole_llm.data.rows import Rows, load_rows, take_sample
from recbole_llm.report import versions
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.recommender_inputs import RecommenderInputs, full_losses
from recbole_llm.settings.config import Config

REPORT = "validity_influence"
DATA = "ml-100k"
TRAINING = {"epochs": 40, "train_batch_size": 256, "eval_step": 0, "stopping_step": 0}
WEIGHTS = {"the default weights": {}, "all weights": {"influence_weights": "all"}}


class Retraining:
    """Trains the surrogate on any part of the rows.

    Args:
        config: of a run of DEALRec.
        n_rows: training rows that are looked at, a draw from the data set's.
    """

    def __init__(self, config: Config, n_rows: int) -> None:
        self.config = config
        surrogate = config.for_auxiliary(config["recommender"])
        rows = load_rows(surrogate, few_shot=False)
        train = take_sample(rows.train, n_rows, config["seed"], "train")
        self.rows = Rows(train, rows.valid, rows.test, rows.whole)
        self.all = np.arange(len(train))

    def __call__(self, kept: np.ndarray, seed: int) -> Any:
        """The model after training on some rows, in eval mode."""
        config = self.config.for_auxiliary(self.config["recommender"])
        config["seed"], config["show_progress"] = seed, False
        part = self.rows.train.copy(self.rows.train.inter_feat[torch.from_numpy(np.sort(kept))])
        with tempfile.TemporaryDirectory() as folder:
            rows = Rows(part, self.rows.valid, self.rows.test, self.rows.whole)
            return fit_classic(config, rows, Path(folder) / "model.pth").model.eval()

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """Mean cross entropy over all rows, kept and left out."""
        feat, size = self.rows.train.inter_feat, self.config["eval_batch_size"]
        parts = [full_losses(model, feat[part].to(model.device)) for part in torch.from_numpy(self.all).split(size)]
        return float(torch.cat(parts).double().mean())

    def influence(self, model: Any, settings: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Influence of every row as a run of DEALRec computes it, and what its computation reports."""
        config = make_config(self.config["seed"], settings)
        auxiliary = SimpleNamespace(model=model)  # influence asks for no more of it
        inputs = RecommenderInputs(auxiliary, config, Pool(self.rows.train, self.all))
        return inputs.influence(), inputs.reported["influence"]


def make_config(seed: int, settings: dict[str, Any]) -> Config:
    """Settings of a run of DEALRec whose surrogate is trained shortly."""
    given = {"seed": seed, "show_progress": False, "recommender_config": {**TRAINING, "seed": seed}, **settings}
    return Config("DEALRec", DATA, config_dict=given)


def report_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    config = make_config(arguments.seed, {})
    retraining = Retraining(config, arguments.rows)
    seeds = [arguments.seed + index for index in range(arguments.seeds)]
    base = retraining(retraining.all, seeds[0])
    whole = retraining.loss(base)
    scores, facts = {}, {}
    for name, settings in WEIGHTS.items():
        started = time.perf_counter()
        scores[name], facts[name] = retraining.influence(base, settings)
        facts[name] |= {"weights": len(facts[name]["weights"]), "seconds": round(time.perf_counter() - started, 1)}
    points = []
    for index in tqdm(range(arguments.subsets), "subsets"):
        rng, n_rows = np.random.default_rng([arguments.seed, index]), len(retraining.all)
        kept = rng.choice(n_rows, n_rows // 2, replace=False)
        started = time.perf_counter()
        losses = [retraining.loss(retraining(kept, seed)) for seed in seeds]
        seconds = round(time.perf_counter() - started, 2)
        sums = {name: float(own[kept].sum()) for name, own in scores.items()}
        points.append({"influence_kept": sums, "losses": losses, "seconds": seconds})
    used = ("influence_method", "damping_ratio", "influence_target", "influence_weights")
    return {
        "settings": {
            "recommender": config["recommender"],
            "data": DATA,
            "rows": len(retraining.all),
            "rows kept": len(retraining.all) // 2,
            **TRAINING,
            "seeds": ", ".join(map(str, seeds)),
            **{key: config[key] for key in used},
        },
        "loss_all_rows": whole,
        "influence": facts,
        "points": points,
        "correlations": correlations(points),
        "environment": versions(),
    }


def correlations(points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of predicted and measured loss, by the weights looked at; and of the losses of the first two seeds."""
    losses = np.array([own["losses"] for own in points])
    result = {
        f"influence by {name}": rank_correlation([-own["influence_kept"][name] for own in points], losses.mean(axis=1))
        for name in WEIGHTS
    }
    if losses.shape[1] > 1:
        result["no prediction: the losses of two training seeds"] = rank_correlation(losses[:, 0], losses[:, 1])
    return result


def render_validity() -> Iterator[str]:
    """Lines of Markdown from the benchmark's file."""
    return render_report(REPORT, _sentence)


def _sentence(report: dict[str, Any]) -> str:
    losses = np.array([own["losses"] for own in report["points"]]).mean(axis=1)
    found = (
        f"{name}: eigenvalues {own['smallest_eigenvalue']:.3g} to {own['largest_eigenvalue']:.3g}, damping "
        f"{own['damping']:.3g}, {own['seconds']:.0f} s"
        for name, own in report["influence"].items()
    )
    return (
        f"Mean loss {report['loss_all_rows']:.3f} after training on all rows, {losses.min():.3f} to "
        f"{losses.max():.3f} on halves. Influence by {'; by '.join(found)}."
    )


def main() -> None:
    """Measure, print the correlations and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=50, help="halves of the rows (default %(default)s)")
    parser.add_argument("--rows", type=int, default=2000, help="training rows (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each subset (default %(default)s)")
    parser.add_argument("--seed", type=int, default=2020, help="the first, and that of the draws (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{REPORT}.json", help="file to write (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = report_of(arguments)
    print(json.dumps(report["correlations"], indent=2))
    write_report(arguments.json, report)


if __name__ == "__main__":
    main()
