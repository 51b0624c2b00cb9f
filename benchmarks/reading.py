"""Does a fine-tuned tiny LLM read the history? Runs below the plateau of blind answers, and NDCG@10, world by world.

    python -m benchmarks.reading                         this commit, into benchmarks/results/reading-after.json
    python -m benchmarks.reading --name=before           the same, under another name
    python -m benchmarks.reading --only=2019 --epochs=4  one world, other settings, to choose by; written nowhere

Plain fine-tuning (BIGRec, ``benchmarks/planted.yaml`` and the sizes below) on a planted world per seed; the seed is the
world's and the run's. A model that has learned the titles and nothing else loses ln(titles) / tokens per token of an
answer: the plateau. A run whose last epoch's training loss stays above 97 % of it has not learned to read. The same
LLM then ranks by the likelihood of titles. Seconds are of one thread: building the LLM, tuning it, and the whole run.

Worlds that the file holds are not run again. What the page calls "before" was measured with this script put into a
checkout of the commit that the file names.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import recbole_llm
from benchmarks.planted import PlantedSettings, make_world, oracle_metrics, popularity_scores, write_world
from benchmarks.planted import judge as judged
from benchmarks.reports import RESULTS
from recbole_llm.report import NOT_RUN, versions
from recbole_llm.settings.command import parse_argv

WORLDS = Path("saved") / "worlds"
SEEDS = tuple(range(2020, 2030))
GROUNDING = "likelihood"
N_USERS = 300
SIZES: dict[str, int] = {  # a world takes about a minute
    "tiny_hidden_size": 64,
    "tiny_steps": 600,
    "epochs": 2,
    "eval_step": 0,
    "valid_sample_size": 50,
}
BLIND = 0.97  # share of the plateau from which on a run counts as blind
METRIC = "ndcg@10"
NAMES = ("before", "after")


def plateau(n_titles: int, tokens: float) -> float:
    """Loss per token of answers of so many tokens that are drawn uniformly from so many titles.

    Example:
        >>> round(plateau(200, 7.0), 3)
        0.757
    """
    return math.log(n_titles) / tokens


def run_world(seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What one world's run left, as plain data."""
    world, folder = make_world(PlantedSettings(n_users=N_USERS, seed=seed)), WORLDS / f"reading-{seed}"
    write_world(world, folder)
    where = {"config_files": ["benchmarks/planted.yaml"], "data_path": str(folder), "show_progress": False}
    given = {**SIZES, **settings, **where, "seed": seed, "grounding": GROUNDING}
    run = recbole_llm.run("BIGRec", "planted", **given)
    model = run.model
    titles = model.catalog.rankable.nonzero()[0].tolist()
    tokens = mean(len(model.prompts.item_response(item)) for item in titles)
    log = next(run.folder.glob("*.log")).read_text(encoding="utf-8")
    found = {
        "seed": seed,
        "test": run.metrics[METRIC],
        "valid": run.valid_metrics[METRIC],
        "loss": [record["train_loss"] for record in run.history],
        "plateau": plateau(len(titles), tokens),
        "reads": re.findall(r"Tiny LLM: (an answer's loss .+)", log),
        "seconds": {
            "building": [float(s) for s in re.findall(r"Tiny LLM: loss .+, (\d+) s\.", log)],
            "tuning": sum(record["seconds"] for record in run.history),
            "whole run": run.result.wall_seconds,
        },
    }
    found["Pop"] = judged(world, popularity_scores(world), [10]).metrics[METRIC]
    found["oracle"] = oracle_metrics(world, [10]).metrics[METRIC]
    return found


def below(world: Mapping[str, Any], epoch: int) -> bool:
    """Whether the training loss of an epoch, counted from 1, is below the plateau."""
    return bool(world["loss"][epoch - 1] < BLIND * world["plateau"])


def read_reports() -> dict[str, dict[str, Any]]:
    """What was measured, by recipe, in the worlds that all recipes have been run in."""
    files = {name: RESULTS / f"reading-{name}.json" for name in NAMES}
    reports = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    if reports:
        shared = set.intersection(*({world["seed"] for world in report["worlds"]} for report in reports.values()))
        for report in reports.values():
            report["worlds"] = [world for world in report["worlds"] if world["seed"] in shared]
    return {name: report for name, report in reports.items() if report["worlds"]}


def render() -> Iterator[str]:
    """Lines of Markdown from the files of ``NAMES``."""
    reports = read_reports()
    if not reports:
        yield f"{NOT_RUN.capitalize()}."
        return
    epochs = range(1, SIZES["epochs"] + 1)
    by_epoch = [f"{what}, epoch {epoch}" for epoch in epochs for what in ("below the plateau", "loss / plateau")]
    names = ["recipe", "commit", "worlds", *by_epoch, METRIC]
    yield "| " + " | ".join(names) + " |"
    yield "|---|---|" + "---:|" * (len(names) - 2)
    for name, report in reports.items():
        worlds = report["worlds"]
        cells = [name, f"`{report['environment']['git_revision']}`", str(len(worlds))]
        for epoch in epochs:
            ratios = [world["loss"][epoch - 1] / world["plateau"] for world in worlds]
            cells.append(f"{sum(below(world, epoch) for world in worlds)} of {len(worlds)}")
            cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
        yield "| " + " | ".join([*cells, f"{mean(world['test'] for world in worlds):.4f}"]) + " |"
    pop, oracle = (mean(world[ranker] for world in worlds) for ranker in ("Pop", "oracle"))
    yield ""
    seeds = ", ".join(str(world["seed"]) for world in worlds)
    yield f"In the same worlds Pop has {pop:.4f}, the oracle {oracle:.4f}. Seeds: {seeds}."
    yield ""
    yield "Command: `python -m benchmarks.reading`, at the commit that the line names."


def main() -> None:
    """Run the worlds and write or print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="after", choices=NAMES, help="of the file (default %(default)s)")
    parser.add_argument("--only", type=int, help="one seed; prints what was found, writes nothing")
    options, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    settings = parse_argv(rest)
    if options.only is not None:
        print(json.dumps(run_world(options.only, settings)))
        return
    if settings:
        parser.error("settings go with --only: a file holds what the commit does by itself")
    file = RESULTS / f"reading-{options.name}.json"
    report: dict[str, Any] = {"environment": versions(), "worlds": []}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["environment"]["git_revision"] != report["environment"]["git_revision"]:
            parser.error(f"{file} is of commit {found['environment']['git_revision']}; delete it to measure this one")
        report = found
    done = {world["seed"] for world in report["worlds"]}
    for seed in sorted(set(SEEDS) - done):
        report["worlds"].append(run_world(seed, {}))
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report["worlds"][-1]), flush=True)


if __name__ == "__main__":
    main()
