"""The page of the ledger: verdicts at a glance, then each paper's claims with their numbers, worlds and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import results
from benchmarks.claims import ledger
from benchmarks.claims.cells import read_cell
from benchmarks.claims.declare import Measure, Paper, Real, Trial, World
from benchmarks.claims.verdicts import FAILS, HOLDS, LEVEL, Tried, Verdict, compared, verdicts
from benchmarks.grids import GRIDS
from benchmarks.planted import PlantedSettings
from recbole_llm.report import NOT_RUN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
START, END = "<!-- ledger -->", "<!-- end ledger -->"
REAL, REAL_MEASURE = "ml-100k", "ndcg@10"
AS_BUILT = {"true": HOLDS, "false": FAILS}
UNSURE = " *"
Key = tuple[str, str]  # of a claim, and what its world makes of it: "true", "false" or "real"


def write_page(page: Path = PAGE) -> None:
    """Put the ledger between its two marks in the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    page.write_text("\n".join([before + START, "", *render(), "", END + rest.partition(END)[2]]), encoding="utf-8")


def render() -> Iterator[str]:
    """The lines of the ledger."""
    tried = {paper.name: trials_of(paper) for paper in ledger.PAPERS}
    judged = {name: dict(zip(own, verdicts(list(own.values())), strict=True)) for name, own in tried.items()}
    yield from at_a_glance(judged)
    for paper in ledger.PAPERS:
        yield from of_paper(paper, tried[paper.name], judged[paper.name])
    yield "## Worlds"
    yield ""
    for world in ledger.WORLDS.values():
        yield from of_world(world)


# --------------------------------------------------------------------------------------------------------- trials


def trials_of(paper: Paper) -> dict[Key, Tried]:
    """What every trial of a paper's claims found."""
    found: dict[Key, Tried] = {}
    for claim in paper.claims:
        for name, trial in claim.trials.items():
            found[claim.key, name] = planted_trial(trial, *(trial.arms or (claim.better, claim.worse)))
        if claim.real is not None:
            found[claim.key, "real"] = real_trial(claim.real)
    return found


def planted_trial(trial: Trial, better: str, worse: str) -> Tried:
    """A claim in a planted world, on the seeds that both arms were run with."""
    measure = ledger.MEASURES[trial.measure]
    values = (
        values_of(trial.world, better, trial.measure),
        values_of(trial.world, worse, trial.against or trial.measure),
    )
    return _compared(values, measure)


def values_of(world: str, arm: str, measure: str) -> dict[int, Any]:
    """Seed to what a measure gave: a list over users, or a number."""
    cells = {seed: read_cell(world, arm, seed) for seed in ledger.SEEDS}
    return {seed: cell["values"][measure] for seed, cell in cells.items() if measure in cell.get("values", ())}


def real_trial(real: Real) -> Tried:
    """A claim on real data, from results that a commit without further changes can measure again."""
    grid = next(grid for grid in GRIDS if grid.name == real.grid)
    lines = {line.title: line for line in grid.lines}
    values: list[dict[int, Any]] = []
    for title in (real.better, real.worse):
        line = lines[title]
        own = {
            seed: found[1].tolist()
            for seed in grid.seeds
            if is_repeatable(results.read_cell(line.cell, seed)) and (found := results.read_line(grid, line, seed))
        }
        values.append(own)
    return _compared((values[0], values[1]), ledger.MEASURES[REAL_MEASURE])


def is_repeatable(content: Mapping[str, Any]) -> bool:
    """Whether a result names a commit, and was measured with that and nothing else."""
    commit = results.revision(content)
    return bool(content) and not commit.endswith("-dirty") and commit.isalnum() and commit != results.UNKNOWN


def _compared(values: tuple[Mapping[int, Any], Mapping[int, Any]], measure: Measure) -> Tried:
    return compared(*values, bigger=measure.bigger, margin=measure.margin, per_user=measure.per_user)


# ------------------------------------------------------------------------------------------------------ at a glance


def at_a_glance(judged: Mapping[str, Mapping[Key, Verdict | None]]) -> Iterator[str]:
    """One line per claim: the verdict in each of its worlds."""
    yield "## At a glance"
    yield ""
    yield f"| paper | claim | where it is true | where it is false | {REAL} |"
    yield "|---|---|---|---|---|"
    counts: Counter[str] = Counter()
    for paper in ledger.PAPERS:
        for claim in paper.claims:
            words = []
            for name in ("true", "false", "real"):
                verdict = judged[paper.name].get((claim.key, name))
                words.append(verdict.word if verdict else "-" if name == "real" and claim.real is None else NOT_RUN)
                if name in AS_BUILT and not claim.trials[name].sure:
                    words[-1] += UNSURE
                if name in AS_BUILT and verdict and claim.trials[name].sure:
                    counts["as built" if verdict.word == AS_BUILT[name] else verdict.word] += 1
            yield f"| {paper.name} | {claim.sentence} | " + " | ".join(words) + " |"
    run = sum(counts.values())
    yield ""
    yield (
        f"Of {run} trials in worlds built for them {counts['as built']} come out as the world was built, "
        f"{counts['undecided']} are undecided, {counts[HOLDS] + counts[FAILS]} contradict it. "
        "A star marks worlds that do not settle the claim by construction."
    )
    yield ""


# ------------------------------------------------------------------------------------------------------- one paper


def of_paper(paper: Paper, tried: Mapping[Key, Tried], judged: Mapping[Key, Verdict | None]) -> Iterator[str]:
    """A paper's claims, why they are true and false where they are, and the table of all trials."""
    yield f"## {paper.title}"
    yield ""
    for claim in paper.claims:
        arms = (
            f"{_title(claim.better)} against {_title(claim.worse)}"
            if claim.better != claim.worse
            else _title(claim.better)
        )
        yield f"- **{claim.key}**: {claim.sentence} ({claim.source}; {arms})"
        for name, trial in claim.trials.items():
            yield f"    - {name if trial.sure else f'perhaps {name}'} in *{trial.world}*: {trial.why}"
    yield ""
    names = ["claim", "world", "measure", "means", "towards the claim", "seeds", "over users", "over seeds and users"]
    names += ["p", "Holm", "detectable", "margin", "verdict"]
    yield "| " + " | ".join(names) + " |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    for claim in paper.claims:
        for name, trial in claim.trials.items():
            where = f"*{trial.world}* ({name})"
            measure = ledger.MEASURES[trial.measure].title
            yield _trial_line([claim.key, where, measure], tried[claim.key, name], judged[claim.key, name])
        if claim.real is not None:
            first = [claim.key, REAL, ledger.MEASURES[REAL_MEASURE].title]
            yield _trial_line(first, tried[claim.key, "real"], judged[claim.key, "real"])
    yield ""


def _trial_line(first: Sequence[str], trial: Tried, verdict: Verdict | None) -> str:
    found = trial.comparison
    if found is None or trial.means is None or verdict is None:
        return "| " + " | ".join([*first, *[NOT_RUN] * 10]) + " |"
    both = found.seeds_and_users if trial.counts_users else found.users
    cells = [*first, f"{trial.means[0]:.4f} / {trial.means[1]:.4f}", f"{found.difference:+.4f}", str(len(trial.seeds))]
    cells.append(results.interval(found.users) if trial.counts_users else "-")
    cells.append(results.interval(both) if both else "-")
    cells += [
        f"{found.p:.3f}",
        f"{verdict.p:.3f}",
        f"{found.detectable:.4f}",
        f"{trial.margin:g}",
        f"**{verdict.word}**",
    ]
    return "| " + " | ".join(cells) + " |"


def _title(arm: str) -> str:
    return ledger.ARMS[arm].title


# -------------------------------------------------------------------------------------------------------- one world


def of_world(world: World) -> Iterator[str]:
    """A world: what is true in it, what an oracle sees, and what its arms reached and cost."""
    yield f"### {world.name}"
    yield ""
    yield world.text
    yield ""
    usual = asdict(PlantedSettings())
    knobs = [f"--{name}={value}" for name, value in asdict(world.planted).items() if value != usual[name]]
    yield f"`python -m benchmarks.planted {' '.join(knobs)} --seed={{seed}} --out=<folder>`"
    yield ""
    arms = {arm: cells for own, arm in ledger.cells() if own is world and (cells := _cells(world, arm))}
    if not arms:
        yield f"{NOT_RUN.capitalize()}."
        yield ""
        return
    if world.check is not None:
        yield _check_line(world)
        yield ""
    measures = [name for name, measure in ledger.MEASURES.items() if measure.per_user]
    marks = list(dict.fromkeys(mark for cells in arms.values() for cell in cells for mark in cell["shares"]))
    names = ["arm", "seeds", *(ledger.MEASURES[name].title for name in measures), *(f"rows: {mark}" for mark in marks)]
    yield "| " + " | ".join([*names, "rows", "tokens", "seconds"]) + " |"
    yield "|---|" + "---:|" * (len(names) + 2)
    for arm, cells in arms.items():
        numbers = [f"{mean(mean(cell['values'][name]) for cell in cells):.4f}" for name in measures]
        shares = [f"{mean(cell['shares'].get(mark, 0) for cell in cells):.1%}" for mark in marks]
        costs = {name: mean(cell["cost"][name] for cell in cells) for name in ("rows", "tokens", "seconds")}
        tail = [f"{costs['rows']:,.0f}", f"{costs['tokens']:,.0f}", f"{costs['seconds']:.1f}"]
        yield "| " + " | ".join([_title(arm), str(len(cells)), *numbers, *shares, *tail]) + " |"
    yield ""
    commits = Counter(results.revision(cell) for cells in arms.values() for cell in cells)
    yield "Measured with " + ", ".join(f"{commit} ({count} cells)" for commit, count in commits.most_common()) + "."
    yield ""


def _cells(world: World, arm: str) -> list[dict[str, Any]]:
    return [cell for seed in ledger.SEEDS if (cell := read_cell(world.name, arm, seed))]


def _check_line(world: World) -> str:
    """What the oracle's arm gains: the world does reward what its text says."""
    assert world.check is not None
    first, second = world.check
    tried = planted_trial(Trial(world.name, "", world.check_measure), first, second)
    found = tried.comparison
    if found is None:
        return f"What an oracle gains: {NOT_RUN}."
    interval = results.interval(found.seeds_and_users or found.users)
    return (
        f"What an oracle gains ({_title(first)}, against {_title(second)}; "
        f"{ledger.MEASURES[world.check_measure].title}): {found.difference:+.4f}, {interval} over seeds and users, "
        f"{'' if found.p < LEVEL and found.difference > 0 else 'not '}significant."
    )
