"""The accuracy grid: every cell is one command with one seed, kept as JSON, and run once.

    python benchmarks/results.py             runs what is not there yet, then writes the tables into docs/results.md
    python benchmarks/results.py --render    only writes the tables; cells that were not run say so
    python benchmarks/results.py --only=ml-100k-bigrec

A cell's file is ``benchmarks/results/<cell>-<seed>.json``: the command, the table of the command, and the rank of every
judged row. Delete a file to run its cell again.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.report import NOT_RUN, minimal_detectable_difference, ndcg_at, paired_bootstrap

ROOT = Path(__file__).resolve().parent.parent
CELLS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
SEEDS = (2020, 2021, 2022)
METRICS = ("hit@1", "hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@20")
CUTOFF = 10  # of the NDCG that is compared user by user
UNRANKED = 10**9
SPEED = ("speed",)  # written by benchmarks/speed.py


@dataclass(frozen=True)
class Line:
    """One line of a table: a model's row in the result of a command.

    Attributes:
        title: what the table calls it.
        cell: name of the command's cell.
        model: name of the model in the command's own table.
    """

    title: str
    cell: str
    model: str


@dataclass(frozen=True)
class Grid:
    """One table on one data set.

    Attributes:
        name: of the section in the page.
        cells: cell name to the arguments of its command, without the seed.
        lines: the table's lines; the first is what the others are compared with.
        seeds: of every cell.
    """

    name: str
    cells: dict[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    seeds: tuple[int, ...] = SEEDS


GRIDS = (
    Grid(
        name="ml-100k",
        cells={
            "ml-100k-pop": ("--model=Pop", "--dataset=ml-100k"),
            "ml-100k-sasrec": ("--model=SASRec", "--dataset=ml-100k", "--train_sample_size=8192"),
            "ml-100k-untuned": ("--model=BIGRec", "--dataset=ml-100k", "--epochs=0"),
            "ml-100k-bigrec": ("--model=BIGRec", "--dataset=ml-100k"),
        },
        lines=(
            Line("Pop, all interactions", "ml-100k-pop", "Pop"),
            Line("SASRec, all rows", "ml-100k-sasrec", "SASRec"),
            Line("SASRec, 8,192 rows", "ml-100k-sasrec", "SASRec (8192 rows)"),
            Line("BIGRec, untuned", "ml-100k-untuned", "BIGRec"),
            Line("BIGRec", "ml-100k-bigrec", "BIGRec"),
        ),
    ),
)


def cell_file(cell: str, seed: int) -> Path:
    """Where a cell's result is kept."""
    return CELLS / f"{cell}-{seed}.json"


def run_cell(cell: str, arguments: Sequence[str], seed: int) -> None:
    """Run one command and keep its table and the rank of every test row."""
    words = [*arguments, f"--seed={seed}", "--show_progress=False"]
    command = [sys.executable, str(ROOT / "run_recbole_llm.py"), *words]
    print(f"--- {cell}, seed {seed}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    folder = ROOT / re.findall(r"^results: (.+)$", done.stdout, flags=re.MULTILINE)[-1]
    table = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    ranks = {result["model"]: read_ranks(ROOT / result["folder"] / "test_ranks.csv") for result in table["results"]}
    CELLS.mkdir(exist_ok=True)
    content = {"command": "python run_recbole_llm.py " + " ".join(words), "table": table, "ranks": ranks}
    cell_file(cell, seed).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read_ranks(file: Path) -> dict[str, int | None]:
    """User to the rank of the target, 1 is best; None where the target was not ranked."""
    with open(file, newline="", encoding="utf-8") as stream:
        return {row["user_id"]: int(row["rank"]) if row["rank"] else None for row in csv.DictReader(stream)}


def read_line(line: Line, seed: int) -> tuple[dict[str, Any], np.ndarray] | None:
    """A line's result and its 0-based ranks [users] in a fixed order of users, or None when the cell was not run."""
    file = cell_file(line.cell, seed)
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    result = next(result for result in content["table"]["results"] if result["model"] == line.model)
    ranks = sorted(content["ranks"][line.model].items())
    return result, np.array([UNRANKED if rank is None else rank - 1 for _, rank in ranks])


def render(grid: Grid) -> Iterator[str]:
    """The lines of a grid's Markdown: means over the seeds that were run, then paired comparisons."""
    read = {line.title: [found for seed in grid.seeds if (found := read_line(line, seed))] for line in grid.lines}
    yield "| model | train rows | seeds | epochs | time | " + " | ".join(METRICS) + " |"
    yield "|---|---:|---:|---:|---:|" + "---:|" * len(METRICS)
    for title, found in read.items():
        if not found:
            yield f"| {title} | " + " | ".join([NOT_RUN] * (4 + len(METRICS))) + " |"
            continue
        results = [result for result, _ in found]
        epochs = "/".join(str(result["epochs"]) for result in results)
        seconds = np.mean([result["wall_seconds"] for result in results])
        cells = [f"{results[0]['train_rows']:,}", str(len(found)), epochs, f"{seconds / 60:.1f} min"]
        cells += [spread([result["test"][metric] for result in results]) for metric in METRICS]
        yield f"| {title} | " + " | ".join(cells) + " |"
    yield ""
    yield from compare({title: found for title, found in read.items() if found})
    yield ""
    yield "Commands, each with " + ", ".join(f"`--seed={seed}`" for seed in grid.seeds) + ":"
    yield ""
    yield from (f"- `python run_recbole_llm.py {' '.join(words)}`" for words in grid.cells.values())


def compare(read: dict[str, list[tuple[dict[str, Any], np.ndarray]]]) -> Iterator[str]:
    """Every pair of lines: difference of NDCG per user, mean over seeds first, with a bootstrap interval over users."""
    gains = {title: np.mean([ndcg_at(ranks, CUTOFF) for _, ranks in found], axis=0) for title, found in read.items()}
    titles = list(gains)
    if len(titles) < 2:
        yield f"Paired comparisons: {NOT_RUN}."
        return
    yield f"| difference in NDCG@{CUTOFF} over users | mean | 95 % interval | p | smallest detectable |"
    yield "|---|---:|---:|---:|---:|"
    for i, second in enumerate(titles):
        for first in titles[i + 1 :]:
            found = paired_bootstrap(gains[first], gains[second])
            smallest = minimal_detectable_difference(gains[first] - gains[second])
            interval = f"{found.low:+.4f} … {found.high:+.4f}"
            numbers = f"{found.mean_difference:+.4f} | {interval} | {found.p_value:.3f} | {smallest:.4f}"
            yield f"| {first} − {second} | {numbers} |"


def spread(values: Sequence[float]) -> str:
    """Mean over seeds, with the standard deviation where seeds differ."""
    mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{mean:.4f} ± {deviation:.4f}" if deviation >= 0.00005 else f"{mean:.4f}"


def render_speed(name: str) -> Iterator[str]:
    """The lines of a speed benchmark's Markdown, from what ``benchmarks/speed.py --json`` wrote."""
    file = CELLS / f"{name}.json"
    if not file.exists():
        yield f"{NOT_RUN.capitalize()}."
        return
    report = json.loads(file.read_text(encoding="utf-8"))
    load = report["load average before"]
    yield f"Threads: {report['threads']}; load of the machine before: {load:.1f}; medians of {report['repeats']} turns."
    yield ""
    yield "| | seconds | times faster | goal | peak MiB |"
    yield "|---|---:|---:|---:|---:|"
    for section in report["sections"].values():
        setting = ", ".join(
            f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.2f}"
            for key, value in section["setting"].items()
        )
        yield f"| **{section['title']}**: {setting} | | | | |"
        for procedure, seconds in section["seconds"].items():
            ratio, peak = section["ratio"].get(procedure), section["peak_mib"][procedure]
            gain = f"{ratio:.1f} | {section['goal']:g}" if ratio else " | "
            yield f"| {procedure} | {seconds:.2f} | {gain} | {peak:.0f} |"


def write_page(page: Path = PAGE) -> None:
    """Put every table between its two marks in the page."""
    text = page.read_text(encoding="utf-8")
    sections = {grid.name: render(grid) for grid in GRIDS} | {name: render_speed(name) for name in SPEED}
    for name, lines in sections.items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(start)
        text = "\n".join([before + start, "", *lines, "", end + rest.partition(end)[2]])
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the cells that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", help="run only the cells whose name starts with this")
    options = parser.parse_args()
    for grid in GRIDS:
        for seed in grid.seeds:
            for cell, arguments in grid.cells.items():
                if not options.render and cell.startswith(options.only) and not cell_file(cell, seed).exists():
                    run_cell(cell, arguments, seed)
                    write_page()
    write_page()


if __name__ == "__main__":
    main()
