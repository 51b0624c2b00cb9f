"""The benchmark of reading: what counts as blind, and which worlds its table compares."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import pytest

from benchmarks import reading


def world(seed: int, *ratios: float, test: float) -> dict[str, object]:
    losses = [ratio * reading.plateau(200, 7) for ratio in ratios]
    return {"seed": seed, "loss": losses, "plateau": log(200) / 7, "test": test, "Pop": 0.02, "oracle": 0.2}


def test_a_run_is_blind_until_its_loss_falls_below_the_plateau() -> None:
    half_blind = world(1, 1.0, 0.98, 0.96, test=0.1)
    assert [reading.below(half_blind, epoch) for epoch in (1, 2, 3)] == [False, False, True]


def test_the_table_compares_worlds_that_both_recipes_were_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "RESULTS", tmp_path)
    assert list(reading.render()) == ["Not run."]
    worlds = {
        "before": [world(1, 1.0, 0.99, test=0.03), world(2, 1.0, 0.89, test=0.05), world(3, 0.5, 0.5, test=0.9)],
        "after": [world(2, 0.9, 0.8, test=0.12), world(1, 0.98, 0.8, test=0.1)],
    }
    for name, own in worlds.items():
        report = {"environment": {"git_revision": f"of {name}"}, "worlds": own}
        (tmp_path / f"reading-{name}.json").write_text(json.dumps(report), encoding="utf-8")
    _, _, before, after, *rest = reading.render()
    assert before == "| before | `of before` | 2 | 0 of 2 | 1.00 (1.00 … 1.00) | 1 of 2 | 0.94 (0.89 … 0.99) | 0.0400 |"
    assert after == "| after | `of after` | 2 | 1 of 2 | 0.94 (0.90 … 0.98) | 2 of 2 | 0.80 (0.80 … 0.80) | 0.1100 |"
    assert rest[1] == "In the same worlds Pop has 0.0200, the oracle 0.2000. Seeds: 2, 1."
