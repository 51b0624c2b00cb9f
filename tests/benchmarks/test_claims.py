"""The claims ledger: the rule of its verdicts on planted numbers, its declarations, and its page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims import cells, ledger, page
from benchmarks.claims.declare import Measure, Paper, Trial, World
from benchmarks.claims.verdicts import FAILS, HOLDS, UNDECIDED, Tried, compared, verdicts
from benchmarks.grids import GRIDS
from benchmarks.planted import PlantedSettings, make_world

N_USERS = 40
BETTER = Measure("m", bigger=True, margin=0.1)


def arm(mean: float, seeds: int = 10, spread: float = 0.01, start: int = 0) -> dict[int, list[float]]:
    """Values of users whose mean differs from seed to seed with a known spread."""
    rng = np.random.default_rng([seeds, start, round(mean * 1000)])
    offsets = spread * (np.arange(seeds) - (seeds - 1) / 2)
    return {start + seed: (mean + offsets[seed] + rng.normal(0, 0.01, N_USERS)).tolist() for seed in range(seeds)}


def tried(better: Any, worse: Any, measure: Measure = BETTER) -> Tried:
    return compared(better, worse, bigger=measure.bigger, margin=measure.margin, per_user=measure.per_user)


def words(*trials: Tried) -> list[str]:
    return [verdict.word if verdict else "" for verdict in verdicts(trials)]


# ---- the rule


def test_a_claim_holds_on_its_side_and_fails_on_the_other():
    high, low = arm(0.9), arm(0.5)
    assert words(tried(high, low)) == [HOLDS] and words(tried(low, high)) == [FAILS]
    smaller = replace(BETTER, bigger=False)
    assert words(tried(low, high, smaller)) == [HOLDS] and words(tried(high, low, smaller)) == [FAILS]


def test_a_difference_within_the_margin_is_none_even_where_it_is_told_from_chance():
    small = tried(arm(0.52, spread=0.0), arm(0.5, spread=0.0))
    assert small.comparison is not None and small.comparison.p < 0.001
    assert words(small) == [FAILS]
    assert words(replace(small, margin=0.01)) == [HOLDS]  # the same difference, where so small a one counts


def test_a_wide_interval_decides_nothing():
    noisy = arm(0.55, spread=0.2), dict(reversed(arm(0.5, spread=-0.2).items()))
    assert words(tried(*noisy)) == [UNDECIDED]


def test_one_seed_decides_nothing_however_clear_its_users_are():
    alone = tried(arm(0.9, seeds=1), arm(0.1, seeds=1))
    assert alone.comparison is not None and alone.comparison.p < 1e-6 and alone.comparison.seeds_and_users is None
    assert words(alone) == [UNDECIDED]


def test_holm_corrects_over_the_table():
    """A p-value of .03 decides alone, and no longer beside four others that are not smaller."""
    rng = np.random.default_rng(3)
    effects = rng.normal(0, 1, 10)
    effects = (effects - effects.mean()) / effects.std(ddof=1)
    shift = stats.t.isf(0.015, 9) / math.sqrt(10)  # the t test over ten seeds gives p = .03
    scalar = replace(BETTER, per_user=False, margin=0.0)
    one = tried({s: float(e + shift) for s, e in enumerate(effects)}, dict.fromkeys(range(10), 0.0), scalar)
    assert one.comparison is not None and one.comparison.p == pytest.approx(0.03)
    assert words(one) == [HOLDS]
    assert words(one, one, one, one, one) == [UNDECIDED] * 5
    assert verdicts([one, one])[0].p == pytest.approx(0.06)


def test_a_number_per_seed_is_compared_by_the_t_test_over_seeds():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 0.3, 6), rng.normal(0.7, 0.3, 6)
    found = tried(*(dict(enumerate(own.tolist())) for own in (first, second)), replace(BETTER, per_user=False))
    expected = stats.ttest_rel(first, second)
    assert found.comparison is not None
    assert found.comparison.p == pytest.approx(expected.pvalue)
    assert found.comparison.users == pytest.approx(tuple(expected.confidence_interval()))


def test_only_seeds_of_both_arms_are_compared_and_without_any_there_is_no_verdict():
    found = tried(arm(0.9, seeds=4), arm(0.5, seeds=3, start=2))
    assert list(found.seeds) == [2, 3]
    nothing = tried(arm(0.9, seeds=2), arm(0.5, seeds=2, start=5))
    assert nothing.comparison is None
    assert verdicts([nothing, tried(arm(0.9), arm(0.5))])[0] is None
    assert verdicts([nothing, tried(arm(0.9), arm(0.5))])[1].word == HOLDS


# ---- the declarations


def test_claims_name_worlds_arms_measures_and_lines_that_there_are():
    keys = [claim.key for paper in ledger.PAPERS for claim in paper.claims]
    assert len(set(keys)) == len(keys)
    for paper in ledger.PAPERS:
        for claim in paper.claims:
            assert {claim.better, claim.worse} <= ledger.ARMS.keys()
            assert claim.true.world != claim.false.world
            for trial in claim.trials.values():
                assert trial.world in ledger.WORLDS and trial.measure in ledger.MEASURES
                assert set(trial.arms or ()) <= ledger.ARMS.keys()
                assert claim.better != claim.worse or trial.against not in ("", trial.measure)
            if claim.real is not None:
                (grid,) = (grid for grid in GRIDS if grid.name == claim.real.grid)
                assert {claim.real.better, claim.real.worse} <= {line.title for line in grid.lines}
    assert all(set(world.check or ()) <= ledger.ARMS.keys() for world in ledger.WORLDS.values())
    assert all(own.rows in ("", *cells.CHOICES) for own in ledger.ARMS.values())


def test_arms_that_are_compared_at_equal_cost_take_as_many_steps():
    for world, own in ledger.cells():
        settings = {**world.settings, **ledger.ARMS[own].settings}
        n_rows = settings.get("train_sample_size") or len(make_world(world.planted).rows("train").target)
        if own in ("all", "random"):
            size = settings["coreset_size"] if "coreset" in settings else n_rows
            assert math.ceil(size / settings["train_batch_size"]) * settings["epochs"] == 32
        if own == "tuned":  # both stages of SOFT together
            assert settings["epochs"] == 2 * world.settings["epochs"]


def test_cells_were_run_with_the_settings_of_the_ledger():
    for world, own in ledger.cells():
        for seed in ledger.SEEDS:
            if found := cells.read_cell(world.name, own, seed):
                arm = ledger.ARMS[own]
                assert found["model"] == arm.model and found["settings"] == {**world.settings, **arm.settings}


def test_no_cell_is_left_over():
    known = {cells.cell_file(world.name, own, seed).name for world, own in ledger.cells() for seed in ledger.SEEDS}
    assert {file.name for file in cells.CELLS.glob("*")} <= known


def test_rules_of_a_world_differ_by_seed_and_titles_do_not():
    for world in ledger.WORLDS.values():
        first, second = (make_world(replace(world.planted, seed=seed)) for seed in ledger.SEEDS[:2])
        assert first.rules.titles == second.rules.titles
        assert not np.array_equal(first.rules.next_category, second.rules.next_category)


# ---- the page


def test_the_page_is_what_the_files_say(tmp_path):
    copy = tmp_path / "claims.md"
    copy.write_text(page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    page.write_page(copy)
    assert copy.read_text(encoding="utf-8") == page.PAGE.read_text(encoding="utf-8")


@pytest.fixture
def planted_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paper:
    """A paper of one claim whose better arm is right twice as often in both of its worlds, three seeds each."""
    monkeypatch.setattr(cells, "CELLS", tmp_path)
    monkeypatch.setattr(page.results, "cell_file", lambda name, seed: tmp_path / f"real-{name}-{seed}.json")
    claim = replace(
        ledger.PAPERS[0].claims[0], true=Trial("noisy", "so", "item"), false=Trial("exact", "not so", "item")
    )
    for trial in claim.trials.values():
        for name, mean in ((claim.better, 0.8), (claim.worse, 0.4)):
            for seed, values in zip(ledger.SEEDS, arm(mean, seeds=3).values(), strict=False):
                measures = dict.fromkeys(("loss", "category", "item", "ndcg@10"), values)
                content = {
                    "environment": {"git_revision": "abc1234"},
                    "cost": {"seconds": 1.25, "rows": 256, "tokens": 5000},
                    "values": measures,
                    "shares": {"mislabelled": 0.25},
                }
                cells.cell_file(trial.world, name, seed).write_text(json.dumps(content), encoding="utf-8")
    return replace(ledger.PAPERS[0], claims=(claim,))


def test_a_papers_table_shows_what_was_compared(planted_cells: Paper):
    own = page.trials_of(planted_cells)
    judged = dict(zip(own, verdicts(list(own.values())), strict=True))
    lines = list(page.of_paper(planted_cells, own, judged))
    true, false, real = (line for line in lines if line.startswith("| soft |"))
    found = own["soft", "true"].comparison
    assert found is not None
    assert f"| {found.difference:+.4f} | 3 | {page.results.interval(found.users)} |" in true
    assert found.seeds_and_users is not None and page.results.interval(found.seeds_and_users) in true
    assert true.endswith("| 0.03 | **holds** |") and false.endswith("| **holds** |")
    assert real.endswith("| not run |")


def test_the_first_table_counts_what_comes_out_as_built(planted_cells: Paper, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "PAPERS", (planted_cells,))
    lines = list(page.render())
    (line,) = (line for line in lines if line.startswith("| SOFT | "))
    assert line.endswith("| holds | holds | not run |")
    told = "Of 2 trials in worlds built for them 1 come out as the world was built, 0 are undecided, 1 contradict it."
    assert any(line.startswith(told) for line in lines)
    worlds = [line for line in lines if line.startswith("| SOFT, α = 10 | 3 | ")]
    assert len(worlds) == 2 and all(line.endswith("| 25.0% | 256 | 5,000 | 1.2 |") for line in worlds)
    assert "Measured with abc1234 (6 cells)." in lines


@pytest.mark.parametrize(
    "commit, counts", [("abc1234", True), ("abc1234-dirty", False), ("not a checkout", False), (None, False)]
)
def test_real_results_count_where_their_commit_can_measure_them_again(commit: str | None, counts: bool):
    facts = {} if commit is None else {"git_revision": commit}
    assert page.is_repeatable({"table": {"environment": facts}}) is counts
    assert not page.is_repeatable({})


# ---- the cells


@pytest.mark.slow
def test_a_cell_keeps_what_its_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cells, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(cells, "HOME", tmp_path / "home")
    knobs = PlantedSettings(
        n_users=24, n_categories=4, items_per_category=3, min_length=5, max_length=6, mislabelled=0.3, items_seed=1
    )
    small = {"MAX_ITEM_LIST_LENGTH": 1, "epochs": 2, "num_beams": 1, "train_batch_size": 16, "coreset_size": 8}
    world = World("small", "", knobs, small)
    chosen = [(world, name, 2020) for name in ("random", "clean")]
    assert cells.missing(chosen) == chosen
    for _, name, seed in chosen:
        cells.run_cell(world, name, ledger.ARMS[name], seed, {"git_revision": "abc1234"})
    assert cells.missing(chosen) == []
    random, clean = (cells.read_cell("small", name, 2020) for name in ("random", "clean"))
    for found in (random, clean):
        assert {len(values) for values in found["values"].values() if isinstance(values, list)} == {24}
        assert found["cost"]["rows"] == 8 and found["cost"]["tokens"] > 2 * 8 * 5
        right = np.array(found["values"]["item"])
        assert (right <= np.array(found["values"]["category"])).all() and (right <= found["values"]["ndcg@10"]).all()
        assert min(found["values"]["loss"]) > 0
    assert clean["shares"]["mislabelled"] == 0 < make_world(replace(knobs, seed=2020)).rows("train").mislabelled.mean()
    assert random["shares"].keys() == clean["shares"].keys()
