"""Does a fine-tuned tiny LLM read the history? Runs below the plateau of blind answers, and NDCG@10, world by world.

    python -m benchmarks.reading                         this commit, into benchmarks/results/reading-after.json
    python -m benchmarks.reading --name=before           the same, under another name
    python -m benchmarks.reading --only=2019 --epochs=4  one world, other settings, to choose by; written nowhere

Plain fine-tuning (BIGRec, ``benchmarks/planted.yaml`` and the sizes below) on a planted world per seed; the seed is the
world's and the run's. A model that has learned the titles and nothing else loses ln(titles) / tokens per token of an
answer: the plateau. A run whose last epoch's training loss stays above 97 % of it has not learned to read. The same
tuned LLM is then ranked by each grounding. Seconds are of one thread: building the LLM, tuning it, and the whole run.

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
from recbole_llm.report import versions
from recbole_llm.settings.command import parse_argv

WORLDS = Path("saved") / "worlds"
SEEDS = tuple(range(2020, 2030))
GROUNDINGS = ("embedding", "likelihood")
N_USERS = 300
SIZES = {  # a world takes about a minute
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
    """Tune on one world and rank by every grounding; the tuned LLM is computed once."""
    world, folder = make_world(PlantedSettings(n_users=N_USERS, seed=seed)), WORLDS / f"reading-{seed}"
    write_world(world, folder)
    where = {"config_files": ["benchmarks/planted.yaml"], "data_path": str(folder), "show_progress": False}
    found: dict[str, Any] = {"seed": seed, "test": {}, "valid": {}}
    for grounding in GROUNDINGS:
        given = {**SIZES, **settings, **where, "seed": seed, "grounding": grounding}
        run = recbole_llm.run("BIGRec", "planted", **given)
        found["test"][grounding] = run.metrics[METRIC]
        found["valid"][grounding] = run.valid_metrics[METRIC]
        if "loss" not in found:
            model = run.model
            titles = model.catalog.rankable.nonzero()[0].tolist()
            tokens = mean(len(model.prompts.item_response(item)) for item in titles)
            log = next(run.folder.glob("*.log")).read_text(encoding="utf-8")
            found["loss"] = [record["train_loss"] for record in run.history]
            found["plateau"] = plateau(len(titles), tokens)
            found["reads"] = re.findall(r"Tiny LLM: (an answer's loss .+)", log)
            found["seconds"] = {
                "building": [float(s) for s in re.findall(r"Tiny LLM: loss .+, (\d+) s\.", log)],
                "tuning": sum(record["seconds"] for record in run.history),
                "whole run": run.result.wall_seconds,
            }
    found["Pop"] = judged(world, popularity_scores(world), [10]).metrics[METRIC]
    found["oracle"] = oracle_metrics(world, [10]).metrics[METRIC]
    return found


def below(world: Mapping[str, Any]) -> bool:
    """Whether the last epoch's loss is below the plateau."""
    return bool(world["loss"][-1] < BLIND * world["plateau"])


def render() -> Iterator[str]:
    """Lines of Markdown from the files of ``NAMES``."""
    reports = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name in NAMES
        if (file := RESULTS / f"reading-{name}.json").exists()
    }
    if not reports:
        yield "Not run."
        return
    metrics = [f"{METRIC}, {grounding}" for grounding in GROUNDINGS]
    names = ["recipe", "commit", "worlds", "below the plateau", "loss / plateau", *metrics, "building", "tuning"]
    yield "| " + " | ".join(names) + " |"
    yield "|---|---|" + "---:|" * (len(names) - 2)
    for name, report in reports.items():
        worlds = report["worlds"]
        ratios = [world["loss"][-1] / world["plateau"] for world in worlds]
        built = [seconds for world in worlds for seconds in world["seconds"]["building"]]
        cells = [
            name,
            f"`{report['environment']['git_revision']}`",
            str(len(worlds)),
            f"{mean(map(below, worlds)):.0%}",
            f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})",
            *(f"{mean(world['test'][grounding] for world in worlds):.4f}" for grounding in GROUNDINGS),
            f"{median(built):.0f} s" if built else "-",
            f"{median(world['seconds']['tuning'] for world in worlds):.0f} s",
        ]
        yield "| " + " | ".join(cells) + " |"
    worlds = next(iter(reports.values()))["worlds"]
    yield ""
    pop, oracle = (mean(world[ranker] for world in worlds) for ranker in ("Pop", "oracle"))
    yield f"In the same worlds Pop has {pop:.4f}, the oracle {oracle:.4f}."
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
        report = json.loads(file.read_text(encoding="utf-8"))
    done = {world["seed"] for world in report["worlds"]}
    for seed in sorted(set(SEEDS) - done):
        report["worlds"].append(run_world(seed, {}))
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report["worlds"][-1]), flush=True)


if __name__ == "__main__":
    main()
