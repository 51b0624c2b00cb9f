"""Runs of several seeds: found again, gone on with after an interruption, and compared with a baseline."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import recbole_llm
from recbole_llm import ResultTable
from recbole_llm.evaluation import compare_two_level, holm
from recbole_llm.experiment import compare as module
from recbole_llm.experiment.comparison import find_baseline, user_gains
from tests.processes import REPOSITORY
from tests.refusals import refused
from tests.runs import metrics_of, working_in


@pytest.fixture
def settings(small: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {**small, "checkpoint_dir": str(tmp_path / "saved")}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The runs that were really made, in order."""
    made: list[tuple[str, int]] = []
    usual = module.run_one

    def noted(config: Any, label: str, *rest: Any) -> Any:
        run = usual(config, label, *rest)
        made.append((label, config["seed"]))
        return run

    monkeypatch.setattr(module, "run_one", noted)
    return made


def numbers(table: ResultTable) -> list[Any]:
    return [(one.model, one.seed, one.test, one.valid) for one in table.results] + list(table.comparisons)


def folder_of(settings: dict[str, Any]) -> Path:
    (found,) = Path(settings["checkpoint_dir"]).glob("compare-world-*")
    return found


def test_comparisons_are_those_of_the_per_user_files(settings, tmp_path):
    with working_in(tmp_path):
        table = recbole_llm.compare("Pop,SASRec,BPR", "world", seeds=3, seed=7, baseline="SASRec", **settings)
        assert [(one.model, one.seed) for one in table.results] == [
            (model, seed) for model in ("Pop", "SASRec", "BPR") for seed in (7, 8, 9)
        ]
        gains: dict[str, list[np.ndarray]] = {}
        ranks_of: dict[str, list[Any]] = {}
        for one in table.results:
            ranks = recbole_llm.load_run(one.folder).ranks.sort_values("user_id")["rank"].to_numpy(dtype=float)
            own = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
            assert own.mean() == pytest.approx(one.test["ndcg@10"], abs=1e-14)
            gains.setdefault(one.model, []).append(own)
            ranks_of.setdefault(one.model, []).append(ranks.tolist())
    expected = {model: compare_two_level(gains[model], gains["SASRec"]) for model in ("Pop", "BPR")}
    corrected = holm([one.p for one in expected.values()])
    assert [one.model for one in table.comparisons] == list(expected)
    for one, p_holm in zip(table.comparisons, corrected, strict=True):
        own = expected[one.model]
        assert (one.baseline, one.metric, one.n_users, one.n_seeds) == ("SASRec", "ndcg@10", 12, (3, 3))
        found = [one.difference, *one.users, *one.seeds_and_users, one.p, one.detectable, one.p_holm]
        wanted = [own.difference, *own.users, *own.seeds_and_users, own.p, own.detectable, p_holm]
        assert found == pytest.approx(wanted, abs=1e-12)
    assert ResultTable.read(folder_of(settings) / "results.json") == table
    check_markdown(folder_of(settings) / "results.md", ranks_of, expected, corrected)


def check_markdown(file: Path, ranks: dict[str, list[Any]], expected: dict[str, Any], corrected: list[float]) -> None:
    """Every metric and every comparison that the page states, from the per-user files."""
    lines = [line.strip("| ").split(" | ") for line in file.read_text().splitlines() if line.startswith("|")]
    head, rows = lines[0], {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2 : 2 + len(ranks)]}
    metrics = [name for name in head if "@" in name]
    assert len(metrics) == 12 and metrics[0] == "NDCG@10"
    for model, own in ranks.items():
        values = [metrics_of(one, (1, 5, 10)) for one in own]
        for name in metrics:
            found = [value[name.lower()] for value in values]
            cell = f"{statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}"
            assert rows[model][name].strip("*") == cell, (model, name)
    compared = {row[0]: row[1:] for row in lines[4 + len(ranks) :]}
    for (model, own), p_holm in zip(expected.items(), corrected, strict=True):
        ends = [f"{low:+.4f} … {high:+.4f}" for low, high in (own.users, own.seeds_and_users)]
        numbers = [f"{own.difference:+.4f}", *ends, f"{own.p:.3f}", f"{p_holm:.3f}"]
        assert [cell.rstrip("*") for cell in compared[model]] == numbers


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_ends_with_the_same_table(settings, ran, tmp_path, monkeypatch):
    given = {"models": "Pop,SASRec", "dataset": "world", "seeds": [3, 1], **settings}
    counted = module.run_one

    def stopped(*arguments: Any) -> Any:
        if len(ran) == 3:
            raise KeyboardInterrupt
        return counted(*arguments)

    with working_in(tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_one", stopped)
            with pytest.raises(KeyboardInterrupt):
                recbole_llm.compare(**given)
        assert not (folder_of(settings) / "results.json").exists()
        table = recbole_llm.compare(**given)
        assert ran == [("Pop", 3), ("SASRec", 3), ("Pop", 1), ("SASRec", 1)]
        again = recbole_llm.compare(**given)
        assert len(ran) == 4 and again == table
        whole = recbole_llm.compare(**{**given, "checkpoint_dir": str(tmp_path / "other")})
    assert numbers(whole) == numbers(table) and len(ran) == 8


def test_more_seeds_and_models_only_add_runs_and_settings_that_matter_repeat_them(settings, ran, tmp_path):
    with working_in(tmp_path):
        recbole_llm.compare("Pop,SASRec", "world", seeds=[1, 2], **settings)
        recbole_llm.compare("Pop,SASRec,BPR", "world", seeds=[1, 2, 3], **{**settings, "eval_batch_size": 7})
        assert ran[4:] == [("BPR", 1), ("BPR", 2), ("Pop", 3), ("SASRec", 3), ("BPR", 3)]
        recbole_llm.compare("Pop,SASRec", "world", seeds=[1, 2], **settings, **{"SASRec.learning_rate": 0.01})
        assert ran[9:] == [("SASRec", 1), ("SASRec", 2)]


def test_a_run_that_was_changed_or_deleted_and_other_data_are_run_again(settings, ran, tmp_path):
    world = shutil.copytree(Path(settings["data_path"]) / "world", tmp_path / "data" / "world")
    given = {**settings, "data_path": str(world.parent)}
    with working_in(tmp_path):
        table = recbole_llm.compare("Pop,SASRec", "world", seeds=[1, 2], **given)
        ranks = Path(table.results[0].folder) / "test_ranks.csv"
        ranks.write_text(ranks.read_text().replace("u1,", "u2,", 1))
        shutil.rmtree(table.results[3].folder)
        assert numbers(recbole_llm.compare("Pop,SASRec", "world", seeds=[1, 2], **given)) == numbers(table)
        assert ran[4:] == [("Pop", 1), ("SASRec", 2)]
        item = world / "world.item"
        item.write_text(item.read_text() + "i999\tNew\t\n")
        recbole_llm.compare("Pop,SASRec", "world", seeds=[1, 2], **given)
        assert len(ran) == 10


def test_the_command_takes_seeds_and_a_baseline(settings, tmp_path, capsys):
    from recbole_llm.quick_start import main

    words = [f"--{key}={value}" for key, value in settings.items()]
    with working_in(tmp_path):
        assert main(["--model=SASRec,Pop", "--dataset=world", "--seeds=2", "--baseline=Pop", *words]) == 0
    shown = capsys.readouterr().out
    assert f"results: {folder_of(settings)}" in shown
    stored = json.loads((folder_of(settings) / "results.json").read_text())
    assert [one["seed"] for one in stored["results"]] == [2020, 2021] * 2
    assert [(one["model"], one["baseline"]) for one in stored["comparisons"]] == [("SASRec", "Pop")]
    for one in stored["results"]:
        facts = json.loads((Path(one["folder"]) / "run.json").read_text())
        assert facts["revision"] == one["revision"] != "" and facts["environment"]["torch"]


def test_one_run_of_each_is_compared_over_users_alone(settings, tmp_path):
    with working_in(tmp_path):
        table = recbole_llm.compare("Pop,SASRec", "world", **settings)
    (one,) = table.comparisons
    assert (one.model, one.baseline, one.n_seeds, one.seeds_and_users) == ("SASRec", "Pop", (1, 1), None)


@pytest.mark.parametrize(
    ("given", "message", "key", "kind"),
    [
        ({"seed": [1, 2, 3]}, "--seed takes one integer; for several runs use --seeds=1,2,3", "seed", "value"),
        (
            {"seeds": 2020},
            "seeds: 2020 runs of every model are more than 100; for one seed use --seed=2020",
            "seeds",
            "value",
        ),
        (
            {"seeds": [1, 2], "seed": 5},
            "seed: the seeds of all models are given by seeds; leave it out",
            "seed",
            "conflict",
        ),
        (
            {"seeds": 2, "SASRec.seed": 5},
            r"SASRec\.seed: the seeds of all models are given by seeds",
            "SASRec.seed",
            "conflict",
        ),
        ({"models": "Pop,SASRec,Pop"}, "model: 'Pop,SASRec,Pop' names a model twice", "model", "conflict"),
        ({"baseline": "SASREC"}, "baseline: no model of the table is named 'SASREC'.*SASRec", "baseline", "unknown"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(settings, ran, tmp_path, given, message, key, kind):
    with working_in(tmp_path), refused(key, kind, message):
        recbole_llm.compare(**{"models": "Pop,SASRec", "dataset": "world", **settings, **given})
    assert not ran


def test_a_single_run_takes_no_seeds(settings, tmp_path):
    with refused("seeds", "conflict", "seeds: a run has no such setting"):
        recbole_llm.run("Pop", "world", **settings, seeds=3)


def test_a_baseline_that_was_skipped_is_replaced_by_the_usual_one():
    runs = [
        SimpleNamespace(result=SimpleNamespace(model=name), config={"model": name})
        for name in ("BIGRec", "SASRec", "Pop")
    ]
    assert find_baseline("Pop", runs) == "Pop" and find_baseline("", runs) == "SASRec"
    assert find_baseline("SASRec (9 rows)", runs) == "SASRec" and find_baseline("", runs[:1]) == "BIGRec"


def test_the_usual_baseline_is_of_recbole_and_learned_from_no_other_model():
    names = {"SOLID": "SOLID", "BIGRec": "BIGRec", "SASRec from BIGRec": "SASRec", "Pop": "Pop"}
    runs = [
        SimpleNamespace(result=SimpleNamespace(model=label), config={"model": name}) for label, name in names.items()
    ]
    assert find_baseline("", runs) == "Pop" and find_baseline("", runs[:3]) == "SOLID"
    assert find_baseline("SASRec from BIGRec", runs) == "SASRec from BIGRec"


def test_a_user_of_several_rows_stands_for_all_of_them():
    import pandas as pd

    ids, gains = user_gains(pd.Series(["b", "a", "b", "b"]), np.array([1.0, 0.5, 0.0, 1.0]))
    assert ids.tolist() == ["a", "b"] and gains.mean() == pytest.approx(2.5 / 4)
    assert gains[1] == 4 * gains[0]


@pytest.mark.slow
@pytest.mark.parametrize("n_finished", [0, 1, 3])
def test_a_killed_command_goes_on_and_ends_with_the_same_table(settings, tmp_path, n_finished):
    """Killed in the middle of a run, after so many others; the table is that of a command that was left alone."""
    settings = {**settings, "epochs": 30}
    words = ["--model=SASRec,Pop", "--dataset=world", "--seeds=2"]
    words += [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, str(REPOSITORY / "run_recbole_llm.py"), *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not n_done(settings) > n_finished and process.poll() is None:
            if n_done(settings) == n_finished and has_begun(settings, n_finished):
                process.kill()
                break
            time.sleep(0.01)
        process.wait()
    assert process.returncode == -signal.SIGKILL and n_done(settings) == n_finished
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stderr.count("found in") >= n_finished
    table = ResultTable.read(folder_of(settings) / "results.json")
    other = {**settings, "checkpoint_dir": str(tmp_path / "other")}
    with working_in(tmp_path):
        whole = recbole_llm.compare("SASRec,Pop", "world", seeds=2, **other)
    assert numbers(table) == numbers(whole)


def n_done(settings: dict[str, Any]) -> int:
    """Runs that the comparison has noted."""
    files = list(Path(settings["checkpoint_dir"]).glob("compare-world-*/runs.json"))
    return len(json.loads(files[0].read_text())) if files else 0


def has_begun(settings: dict[str, Any], n_before: int) -> bool:
    """Whether a run after so many others has a folder with a log."""
    return len(list(Path(settings["checkpoint_dir"]).glob("*-world-*/*.log"))) > n_before
