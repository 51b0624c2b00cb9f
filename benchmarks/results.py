"""The accuracy grid: every cell is one command with one seed, kept as JSON, and run once.

    python -m benchmarks.results             runs what is not there yet, then writes the tables into docs/results.md
    python -m benchmarks.results --render    only writes the tables; cells that were not run say so
    python -m benchmarks.results --only=ml-100k-bigrec

The tables are declared in ``benchmarks/grids.py``. A cell's file is ``benchmarks/results/<cell>-<seed>.json``: the
command, the table of the command, and what every evaluated row got. Delete a file to run its cell again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import (
    reading,
    scale_coresets,
    scale_faiss,
    scale_goracs,
    speed_smollm,
    validity_goracs,
    validity_influence,
)
from benchmarks.grids import GRIDS, Grid, Line
from benchmarks.reports import RESULTS as CELLS
from benchmarks.reports import read_report, rendered
from recbole_llm.evaluation import PROTOCOLS, Comparison, compare_two_level, holm
from recbole_llm.experiment.train import REUSED_NOTE
from recbole_llm.report import NOT_RUN
from recbole_llm.report.layout import DOUBT, OTHER, few_seeds_note

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
METRICS = ("hit@1", "hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@20")
UNKNOWN = "unknown"  # the commit of a result
SUMMARIES = {"distinct_answers": "distinct answers", "top_answer": "top answer"}
# Names of scripts.
SPEED = (
    "speed",
    "speed_soft",
    "speed_titles",
    "speed_ilora",
    "speed_dealrec",
    "speed_goracs",
    "speed_trunk",
    "speed_objective",
    "speed_semid",
)
REPORTS = {
    "reading": reading.render,
    "validity_goracs": validity_goracs.render_validity,
    "validity_influence": validity_influence.render_validity,
    "scale_coresets": scale_coresets.render,
    "scale_goracs": scale_goracs.render,
    "scale_faiss": scale_faiss.render,
    "speed_smollm": speed_smollm.render,
}

Found = tuple[dict[str, Any], np.ndarray]  # a line's result and what its rows gained, of one seed


# What the columns of a protocol's table are, and what is kept of a row: the value of a column, or of several.
METRICS_OF = {
    "ranks": METRICS,
    "clicks": ("auc", "logloss"),
    "answers": ("hit_ratio", "valid_ratio", "hit_ratio_valid", "hit_ratio_reference", "valid_ratio_reference"),
}
KEPT = {"ranks": ["rank"], "clicks": ["label", "score"], "answers": ["hit"]}


def gains_of(protocol: str, kept: Sequence[Any]) -> np.ndarray:
    """How well each row went, from what was kept of it. Returns: float [rows]."""
    return PROTOCOLS[protocol].gains(pd.DataFrame(list(kept), columns=KEPT[protocol]))


def cell_file(cell: str, seed: int) -> Path:
    """Where a cell's result is kept."""
    return CELLS / f"{cell}-{seed}.json"


def run_cell(grid: Grid, cell: str, seed: int) -> None:
    """Run one command and keep its table, what every test row got, and what a curriculum or a coreset did."""
    words = [*grid.cells[cell], f"--seed={seed}", "--show_progress=False"]
    command = [sys.executable, str(ROOT / "run_recbole_llm.py"), *words]
    print(f"--- {cell}, seed {seed}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    folder = ROOT / re.findall(r"^results: (.+)$", done.stdout, flags=re.MULTILINE)[-1]
    table = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = {result["model"]: read_rows(ROOT / result["folder"], grid.protocol) for result in table["results"]}
    CELLS.mkdir(exist_ok=True)
    content = {"command": "python run_recbole_llm.py " + " ".join(words), "table": table, grid.protocol: rows}
    for result in table["results"]:
        folder = ROOT / result["folder"]
        for name in ("history", "curriculum", "distilled", "coreset"):
            file = folder / f"{name}.json"
            if file.exists():
                content.setdefault(name, {})[result["model"]] = json.loads(file.read_text(encoding="utf-8"))
    cell_file(cell, seed).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read_rows(folder: Path, protocol: str) -> dict[str, Any]:
    """User to what is kept of the user's test row."""
    rows = PROTOCOLS[protocol].read(folder, "test")
    kept = rows[KEPT[protocol]].astype(object)
    values = kept.where(kept.notna(), None).values.tolist()
    return {user: own if len(own) > 1 else own[0] for user, own in zip(rows["user_id"], values, strict=True)}


def read_cell(cell: str, seed: int) -> dict[str, Any]:
    """What a cell's file holds; nothing where the cell was not run."""
    return read_report(cell_file(cell, seed))


def read_line(grid: Grid, line: Line, seed: int) -> Found | None:
    """A line's result and its rows' gains [users] in a fixed order of users, or None when the cell was not run."""
    content = read_cell(line.cell, seed)
    if not content:
        return None
    result = next(result for result in content["table"]["results"] if result["model"] == line.model)
    rows = [kept for _, kept in sorted(content[grid.protocol][line.model].items())]
    return result, gains_of(grid.protocol, rows)


def revision(content: Mapping[str, Any]) -> str:
    """The commit that a result was measured with; what is not of a checkout tells its version alone."""
    facts = content.get("table", content).get("environment", {})
    found = facts.get("git_revision", UNKNOWN)
    return f"{found}, version {facts.get('recbole-llm', UNKNOWN)}" if found == "not a checkout" else str(found)


def revisions(grid: Grid) -> tuple[str, dict[str, list[str]]]:
    """The commit of most of a table's results, and the other commits by line."""
    found = {
        line.title: [revision(one) for seed in grid.seeds if (one := read_cell(line.cell, seed))] for line in grid.lines
    }
    counts = Counter(commit for commits in found.values() for commit in commits)
    most = counts.most_common(1)[0][0] if counts else UNKNOWN
    others = {title: list(dict.fromkeys(one for one in commits if one != most)) for title, commits in found.items()}
    return most, {title: commits for title, commits in others.items() if commits}


def render(grid: Grid) -> Iterator[str]:
    """The lines of a grid's Markdown: means over the seeds that were run, then paired comparisons."""
    read = {line.title: [found for seed in grid.seeds if (found := read_line(grid, line, seed))] for line in grid.lines}
    usual, others = revisions(grid)
    metrics = [*METRICS_OF[grid.protocol], *grid.metrics]
    summary = [
        name
        for name in SUMMARIES
        if any(name in result.get("summary", {}) for own in read.values() for result, _ in own)
    ]
    heads = ["train rows", "seeds", "epochs", "time", *metrics, *(SUMMARIES[name] for name in summary)]
    yield f"| model | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    for title, found in read.items():
        results = [result for result, _ in found]
        marks = [DOUBT] * any(result.get("warnings") for result in results) + [OTHER] * (title in others)
        cells = line_cells(results, metrics, summary) if found else [NOT_RUN] * len(heads)
        yield f"| {' '.join([title, *marks])} | {' | '.join(cells)} |"
    yield ""
    yield from warned({title: [result for result, _ in found] for title, found in read.items()})
    if any(read.values()):
        yield f"Measured with commit {usual}." + "".join(
            f" {OTHER} {title}: {', '.join(commits)}." for title, commits in others.items()
        )
        yield ""
    run = {title: found for title, found in read.items() if found}
    yield from compare(run, grid.compared_with, PROTOCOLS[grid.protocol].gain)
    yield ""
    yield from curricula(grid)
    yield from coresets(grid)
    seeds = ", ".join(f"`--seed={seed}`" for seed in grid.seeds)
    yield f"Commands, with {seeds} as far as the table counts seeds:"
    yield ""
    yield from (f"- `python run_recbole_llm.py {' '.join(words)}`" for words in grid.cells.values())


def line_cells(results: Sequence[Mapping[str, Any]], metrics: Sequence[str], summary: Sequence[str]) -> list[str]:
    """The cells of a line of a table, means over its seeds."""
    minutes = np.mean([result["wall_seconds"] for result in results]) / 60
    at_least = (
        "≥ " if any(note.startswith(REUSED_NOTE) for result in results for note in result.get("notes", ())) else ""
    )
    cells = [f"{results[0]['train_rows']:,}", str(len(results)), "/".join(str(result["epochs"]) for result in results)]
    cells.append(f"{at_least}{minutes:.1f} min")
    cells += [spread([result["test"].get(metric) for result in results]) for metric in metrics]
    return cells + [share([result.get("summary", {}).get(name) for result in results]) for name in summary]


def warned(read: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The warnings of the runs that a table marks, each line's of the first seed that has any."""
    for title, results in read.items():
        own = [result for result in results if result.get("warnings")]
        if own:
            seeds = f"{len(own)} of {len(results)} seeds, such as {own[0]['seed']}"
            which = seeds if len(results) > 1 else f"seed {own[0]['seed']}"
            yield f"- {DOUBT} {title}, {which}: {'; '.join(own[0]['warnings'])}."
    if any(result.get("warnings") for results in read.values() for result in results):
        yield ""


def curricula(grid: Grid) -> Iterator[str]:
    """What the curricula of a grid did: weights, distances, and the distilled answers."""
    lines = []
    for line in grid.lines:
        for seed in grid.seeds:
            content = read_cell(line.cell, seed)
            facts = content.get("curriculum", {}).get(line.model)
            if facts is None:
                continue
            history, distilled = content["history"][line.model], content["distilled"][line.model]
            cells = [
                line.title,
                str(seed),
                f"{facts['alpha']:g}" if "alpha" in facts else "-",
                " ".join(f"{record['weight']:.3g}" for record in history),
                " ".join(f"{d:.2f}" for d in [facts["initial_distance"], *(r["distance"] for r in history)] if d),
                f"{distilled['true_title']:.1%} / {distilled['nearest_is_target']:.1%}",
            ]
            lines.append("| " + " | ".join(cell or "-" for cell in cells) + " |")
    if not lines:
        return
    yield "| curriculum | seed | alpha | weight by epoch | distance | distilled answers right |"
    yield "|---|---:|---:|---|---|---:|"
    yield from lines
    yield ""
    yield (
        "Distance: before training, then after each epoch but the last. Right: the share of distilled answers that "
        "are the true title / whose nearest item is the target."
    )
    yield ""


def coresets(grid: Grid) -> Iterator[str]:
    """What the coresets of a grid hold, and what they cost next to the fine-tuning on them."""
    lines = []
    for line in grid.lines:
        found = {seed: content for seed in grid.seeds if (content := read_cell(line.cell, seed))}
        if not any("coreset" in content for content in found.values()):
            continue
        cells = [line.title, str(len(found))]
        costs = [content["coreset"][line.model].get("seconds", {}) for content in found.values()]
        tuning = [sum(record["seconds"] for record in content["history"][line.model]) for content in found.values()]
        parts = [f"{part} {np.mean([cost[part] for cost in costs]):.0f} s" for part in costs[0]]
        total = np.mean([sum(cost.values()) for cost in costs])
        cells += [f"{total:.0f} s", ", ".join(parts) or "-", f"{np.mean(tuning):.0f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return
    yield "| coreset | seeds | selection | of it | fine-tuning on it |"
    yield "|---|---:|---:|---|---:|"
    yield from lines
    yield ""
    yield (
        "Selection: what its parts took when they were computed; all sizes share the scores. Fine-tuning: all epochs, "
        "without validation."
    )
    yield ""


def compare(read: Mapping[str, Sequence[Found]], compared_with: Sequence[str], gain: str) -> Iterator[str]:
    """Pairs of lines: difference of a user's gain on the seeds of both, with intervals over users, and seeds too."""
    gains = {title: {result["seed"]: own for result, own in found} for title, found in read.items()}
    titles = list(gains)
    if len(titles) < 2:
        yield f"Paired comparisons: {NOT_RUN}."
        return
    pairs: dict[str, Comparison] = {}
    for i, second in enumerate(titles):
        others = titles[i + 1 :]
        if compared_with:
            others = [title for title in titles if title != second] if second in compared_with else []
        for first in others:
            both = sorted(gains[first].keys() & gains[second].keys())
            if both and f"{second} − {first}" not in pairs:
                own, other = ([gains[title][seed] for seed in both] for title in (first, second))
                pairs[f"{first} − {second}"] = compare_two_level(own, other)
    counted = {name: corrected for name, corrected in zip(pairs, holm([one.p for one in pairs.values()]), strict=True)}
    yield f"| difference in {gain} | mean | seeds | over users | over seeds and users | p | Holm | detectable |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in pairs.items():
        both = interval(found.seeds_and_users) if found.seeds_and_users else "-"
        cells = [f"{found.difference:+.4f}", str(found.n_seeds[0]), interval(found.users), both]
        cells += [f"{found.p:.3f}", f"{counted[name]:.3f}", f"{found.detectable:.4f}"]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    once = any(not found.counts_seeds for found in pairs.values())
    yield (
        "95 % intervals; p counts seeds and users, Holm corrects it for all comparisons of the table."
        + (" Where there is one seed, p is over users only." if once else "")
        + (f" {few}" if (few := few_seeds_note(one.n_seeds for one in pairs.values())) else "")
    )


def interval(ends: tuple[float, float]) -> str:
    """Both ends of an interval."""
    return f"{ends[0]:+.4f} … {ends[1]:+.4f}"


def spread(values: Sequence[float | None]) -> str:
    """Mean over seeds, with the standard deviation where seeds differ; a dash where a run did not measure it."""
    if None in values:
        return "-"
    mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{mean:.4f} ± {deviation:.4f}" if deviation >= 0.00005 else f"{mean:.4f}"


def share(values: Sequence[float | None]) -> str:
    """Mean of shares over seeds, in percent; a dash where a run has none."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.1%}" if known else "-"


def render_speed(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a speed benchmark's Markdown, from what ``benchmarks/speed.py --json`` wrote."""
    load = report["load average before"]
    turns = f"medians of {report['repeats']} turns" if report["repeats"] else "each ran once"
    yield f"Threads: {report['threads']}; load of the machine before: {load:.1f}; {turns}."
    yield ""
    for section in report["sections"].values():
        setting = ", ".join(
            f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.3g}"
            for key, value in section["setting"].items()
        )
        yield f"**{section['title']}**: {setting}"
        yield ""
        yield "| | seconds | peak MiB |"
        yield "|---|---:|---:|"
        for procedure, seconds in section["seconds"].items():
            peak = section["peak_mib"].get(procedure)
            yield f"| {procedure} | {seconds:.3f} | {'–' if peak is None else f'{peak:.0f}'} |"
        yield ""
        for goal in section["goals"]:
            yield f"- {goal['slow']} / {goal['fast']}: {goal['ratio']:.2f} (goal: at least {goal['at_least']:g})"
        yield ""


def write_page(page: Path = PAGE) -> None:
    """Put every table between its two marks in the page."""
    text = page.read_text(encoding="utf-8")
    sections = {grid.name: render(grid) for grid in GRIDS}
    sections |= {name: rendered(CELLS / f"{name}.json", render_speed) for name in SPEED}
    sections |= {name: lines() for name, lines in REPORTS.items()}
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
    parser.add_argument("--seeds", default="", help="run only these, comma-separated")
    options = parser.parse_args()
    wanted = {int(seed) for seed in options.seeds.split(",") if seed}
    for grid in GRIDS:
        for seed in grid.seeds if not wanted else sorted(wanted.intersection(grid.seeds)):
            for cell in grid.cells:
                if not options.render and cell.startswith(options.only) and not cell_file(cell, seed).exists():
                    run_cell(grid, cell, seed)
    write_page()


if __name__ == "__main__":
    main()
