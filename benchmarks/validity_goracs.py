"""Does GORACS' proxy objective foretell the test loss? Its rank correlation over subsets of a planted world.

    python -m benchmarks.validity_goracs [--subsets 48] [--json benchmarks/results/validity_goracs.json]

The training rows of the world are drawn by other shares of its user groups than the rows of validation and test. Each
subset has the same number of rows, and the untuned LLM is tuned on it with the same settings, steps and seed; then the
loss of the answers to the test rows is measured. The objective of the subset is that of ``--model=GORACS`` at its
default settings: its embeddings, its gradient norms, its weight.

Subsets are of four kinds, in turn: random draws; GORACS with different weights of the norms and numbers of exchanges,
each among another half of the rows; draws in favour of one group; draws from the rows that lie nearest to, or farthest
from, the validation rows. A correlation over such a mix depends on the mix: every subset is in the file. What is
finished is found again in ``saved/stages`` when the command is given again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.utils import init_seed
from scipy.spatial.distance import cdist
from tqdm import tqdm

from benchmarks.answer_loss import answer_losses
from benchmarks.coresets import check_order
from benchmarks.planted import NAME, PlantedSettings, make_world, write_world
from benchmarks.reports import write_report
from benchmarks.validity import RESULTS, ROOT, rank_correlation, render_report
from recbole_llm.coreset import goracs_select, proxy_objective
from recbole_llm.data.rows import SAMPLE_ID, Rows, load_rows, take_sample
from recbole_llm.model.base import LLMRecommender
from recbole_llm.report import versions
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.row_inputs import RowInputs
from recbole_llm.selection.text_vectors import TextVectors
from recbole_llm.settings.config import Config
from recbole_llm.trainer.llm_trainer import LLMTrainer

REPORT = "validity_goracs"
WORLD = PlantedSettings(n_groups=4, group_visible="item", shift=0.5)  # an encoder of texts can see the groups
# 64 steps on 128 rows; of a few rates and numbers of epochs the best on validation, for a random draw in another world.
TUNING = {"train_batch_size": 16, "epochs": 8, "learning_rate": 1e-3, "warmup_steps": 8, "eval_step": 0}


@dataclass(frozen=True)
class Measured:
    """What subsets are drawn from and evaluated by.

    Attributes:
        vectors: float32 ``[N, d]``, of the training rows that a subset may hold.
        valid_vectors: float32 ``[validation rows, d]``.
        distances: float64 ``[N, validation rows]``, as a share of the largest.
        norms: float64 ``[N]``, of the gradients, as a share of the largest.
        group: int64 ``[N]``, whose rule a row's target follows.
    """

    vectors: np.ndarray
    valid_vectors: np.ndarray
    distances: np.ndarray
    norms: np.ndarray
    group: np.ndarray


def measured(model: LLMRecommender, config: Config, rows: Rows, group: np.ndarray) -> Measured:
    """Embeddings and gradient norms of all rows by the untuned LLM, as a run of GORACS computes them."""
    pool = Pool(rows.train, np.arange(len(rows.train)), rows.valid)
    inputs = RowInputs(model, config, pool, model.token_pairs(rows.train.inter_feat))
    vectors, valid_vectors, norms = map(inputs.get, ("embeddings", "valid_embeddings", "gradient_norms"))
    distances = cdist(vectors, valid_vectors)
    return Measured(vectors, valid_vectors, distances / distances.max(), norms / norms.max(), group)


# -------------------------------------------------------------------------------------------------------- the subsets


def random_rows(found: Measured, size: int, variant: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A draw from all rows."""
    return rng.choice(len(found.norms), size, replace=False), ""


def goracs_rows(found: Measured, size: int, variant: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """GORACS among a random half of the rows."""
    settings = list(itertools.product((0.0, 0.1, 0.5), (0, 100)))
    weight, exchanges = settings[variant % len(settings)]
    half = np.sort(rng.choice(len(found.norms), len(found.norms) // 2, replace=False))
    chosen = goracs_select(
        found.vectors[half], found.valid_vectors, found.norms[half], size, weight, max_exchanges=exchanges
    )
    return half[chosen], f"weight {weight:g}, at most {exchanges} exchanges"


def group_rows(found: Measured, size: int, variant: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Half, three quarters or all of the rows from one group."""
    groups = np.unique(found.group)
    group, share = groups[variant % len(groups)], (0.5, 0.75, 1.0)[variant // len(groups) % 3]
    own, others = (np.flatnonzero(found.group == group), np.flatnonzero(found.group != group))
    n_own = round(share * size)
    parts = [rng.choice(own, n_own, replace=False), rng.choice(others, size - n_own, replace=False)]
    return np.concatenate(parts), f"{share:.0%} of group {group}"


def near_rows(found: Measured, size: int, variant: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A draw from the rows whose nearest validation row is close, or far."""
    share = (0.125, 0.25, 0.5)[variant // 2 % 3]
    order = np.argsort(found.distances.min(axis=1), kind="stable")
    n_rows = max(size, round(share * len(order)))
    part, name = (order[:n_rows], "nearest") if variant % 2 == 0 else (order[-n_rows:], "farthest")
    return rng.choice(part, size, replace=False), f"{name} {share:.1%}"


KINDS: dict[str, Callable[..., tuple[np.ndarray, str]]] = {
    "random": random_rows,
    "goracs": goracs_rows,
    "group": group_rows,
    "near": near_rows,
}


# ------------------------------------------------------------------------------------------------------ the test loss


class Tuning:
    """The same fine-tuning for any subset; a finished one is found again as a stage."""

    def __init__(self, model: LLMRecommender, config: Config, rows: Rows) -> None:
        self.model, self.config, self.rows = model, config, rows
        self.untuned = model.adapter.trainable_state(model.llm)
        self.trainer = LLMTrainer(config, model)

    def __call__(self, chosen: np.ndarray) -> float:
        """Test loss after tuning the untuned LLM on the chosen rows."""
        self.model.adapter.load_trainable_state(self.model.llm, self.untuned)
        part = self.rows.train.copy(self.rows.train.inter_feat[torch.from_numpy(np.sort(chosen))])
        self.trainer.fit(SimpleNamespace(dataset=part), verbose=False)
        return self.loss()

    def loss(self) -> float:
        """Test loss of the model as it stands."""
        return float(answer_losses(self.model, self.rows.test, self.model.training_budget.tokens).mean())


# ------------------------------------------------------------------------------------------------------------ the run


def prepare(world_settings: PlantedSettings, n_pool: int) -> tuple[LLMRecommender, Config, Rows, np.ndarray]:
    """The world on disk, the untuned LLM, and the rows: a sample to train on, with the group of each."""
    world = make_world(world_settings)
    folder = Path("saved") / "worlds" / f"validity-goracs-{world_settings.seed}"
    write_world(world, folder)
    settings = {"data_path": str(folder), "seed": world_settings.seed, "show_progress": False, "coreset": "none"}
    config = Config("GORACS", NAME, [ROOT / "benchmarks" / "planted.yaml"], {**settings, **TUNING})
    rows, planted = load_rows(config, few_shot=False), world.rows("train")
    check_order(rows.train, world, planted)
    train = take_sample(rows.train, n_pool, config["seed"], "train")
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, rows.whole).to(config["device"])
    group = planted.group[train.inter_feat[SAMPLE_ID].numpy()]
    return model, config, Rows(train, rows.valid, rows.test, rows.whole), group


def point(found: Measured, chosen: np.ndarray, weight: float) -> dict[str, float]:
    """The objective of a subset and its two parts."""
    parts = {"objective": weight, "transport": 0.0}
    values = {name: proxy_objective(found.distances, found.norms, chosen, own) for name, own in parts.items()}
    return {**values, "gradient_norm": float(found.norms[chosen].mean())}


def report_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    knobs = replace(WORLD, seed=arguments.seed)
    model, config, rows, group = prepare(knobs, arguments.pool)
    found, weight = measured(model, config, rows, group), config["goracs_gradient_weight"]
    tuning = Tuning(model, config, rows)
    untuned, points = tuning.loss(), []
    for index in tqdm(range(arguments.subsets), "subsets"):
        kind, variant = list(KINDS)[index % len(KINDS)], index // len(KINDS)
        chosen, detail = KINDS[kind](found, arguments.rows, variant, np.random.default_rng([arguments.seed, index]))
        started = time.perf_counter()
        loss = tuning(chosen)
        seconds = round(time.perf_counter() - started, 2)
        points.append(
            {"kind": kind, "detail": detail, **point(found, chosen, weight), "loss": loss, "seconds": seconds}
        )
    encoder = TextVectors(model, config).facts()
    return {
        "settings": {
            "rows of a subset": arguments.rows,
            "rows to choose from": len(found.norms),
            "validation rows": found.distances.shape[1],
            "test rows": len(rows.test),
            **{name: value for name, value in asdict(knobs).items() if value != getattr(PlantedSettings(), name)},
            **{key: config[key] for key in ("goracs_gradient_weight", "effort_weights", "effort_tokens")},
            **TUNING,
            "seed": arguments.seed,
        },
        "embeddings": {"of": "prompt and answer", "coreset_encoder": config["coreset_encoder"], **encoder},
        "world": asdict(knobs),
        "untuned_loss": untuned,
        "points": points,
        "correlations": correlations(points),
        "environment": versions(),
    }


def correlations(points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of the objective and its parts with the test loss, over all subsets; of the objective over random ones alone."""
    parts = {
        "objective and test loss": ("objective", 1.0),
        "transport alone": ("transport", 1.0),
        "minus the mean gradient norm alone": ("gradient_norm", -1.0),
    }
    losses = [own["loss"] for own in points]
    result = {
        name: rank_correlation([sign * own[part] for own in points], losses) for name, (part, sign) in parts.items()
    }
    random = [own for own in points if own["kind"] == "random"]
    if len(random) > 2:
        pairs = ([own[name] for own in random] for name in ("objective", "loss"))
        result["objective and test loss, random draws only"] = rank_correlation(*pairs)
    return result


def render_validity() -> Iterator[str]:
    """Lines of Markdown from the benchmark's file."""
    return render_report(REPORT, _means)


def _means(report: dict[str, Any]) -> str:
    """One sentence on the kinds of subsets."""
    means = []
    for kind in KINDS:
        own = [(found["objective"], found["loss"]) for found in report["points"] if found["kind"] == kind]
        if own:
            objective, loss = np.mean(own, axis=0)
            means.append(f"{kind} ({len(own)}) {objective:.4f} and {loss:.4f}")
    return (
        f"Mean objective and test loss of the subsets: {'; '.join(means)}; untuned loss {report['untuned_loss']:.4f}."
    )


def main() -> None:
    """Measure, print the correlations and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=48, help="in all (default %(default)s)")
    parser.add_argument("--rows", type=int, default=128, help="of a subset (default %(default)s)")
    parser.add_argument("--pool", type=int, default=2048, help="training rows to choose from (default %(default)s)")
    parser.add_argument("--seed", type=int, default=2020, help="of world, LLM and subsets (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{REPORT}.json", help="file to write (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = report_of(arguments)
    print(json.dumps({"untuned_loss": report["untuned_loss"], **report["correlations"]}, indent=2))
    write_report(arguments.json, report)


if __name__ == "__main__":
    main()
