"""A search from its command to the best settings: validation rows decide, stages are shared, nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

import recbole_llm
from recbole_llm.classic import epochs
from recbole_llm.experiment.finished import FinishedRuns
from recbole_llm.experiment.run import run_one
from recbole_llm.experiment.tune import _Search
from recbole_llm.experiment.tune_plan import check_plan, parse_plan
from recbole_llm.quick_start import main
from recbole_llm.settings.config import Config
from tests.processes import REPOSITORY
from tests.refusals import refused
from tests.runs import INTERRUPTED, words_for, working_in

SPACE = "--params=learning_rate logrange 1e-3,1e-1; n_layers choice [1, 2]"
FEW = ("--hidden_size=16", "--inner_size=16", "--epochs=2")


@pytest.fixture(scope="module")
def searched(world, tmp_path_factory):
    """The words of a search of three trials, the folder of all runs, and its own folder."""
    saved = tmp_path_factory.mktemp("tune") / "saved"
    words = ["tune", *words_for("SASRec", world, saved, *FEW), SPACE, "--trials=3"]
    with working_in(saved.parent):
        assert main(words) == 0
    (folder,) = saved.glob("tune-SASRec-world-*")
    return words, saved, folder


def trials(folder):
    return json.loads((folder / "trials.json").read_text())


def test_every_score_is_that_of_a_run_with_the_trials_values_and_the_best_one_is_chosen(searched, small):
    _, saved, folder = searched
    found = trials(folder)
    table = pd.read_csv(folder / "trials.csv")
    assert list(table["trial"]) == [1, 2, 3] and set(table["state"]) == {"complete"}
    best = table.iloc[table["valid_ndcg@10"].argmax()]
    assert found["best"] == best["trial"] and f"**{best['trial']}**" in (folder / "trials.md").read_text()
    (line,) = [line for line in found["trials"] if line["trial"] == best["trial"]]
    settings = {**small, "checkpoint_dir": str(saved), "hidden_size": 16, "inner_size": 16, **line["values"]}
    again = recbole_llm.run("SASRec", "world", **settings)
    assert again.valid_metrics["ndcg@10"] == line["score"] == line["valid"]["ndcg@10"]
    assert line["scores"] and max(line["scores"].values()) == pytest.approx(line["score"], abs=1e-4)  # RecBole rounds
    assert {"learning_rate", "n_layers"} < set(yaml.safe_load((folder / "best.yaml").read_text()))
    for picture in ("slices.png", "importances.png"):
        assert (folder / picture).stat().st_size > 0


def test_test_rows_are_evaluated_for_the_best_trial_alone(searched):
    _, saved, folder = searched
    found = trials(folder)
    for line in found["trials"]:
        run = saved.parent / line["folder"]
        assert json.loads((run / "metrics.json").read_text())["test"] == {}
        assert (run / "valid_ranks.csv").exists() and not list(run.glob("test_*"))
    finished = json.loads((folder / "runs.json").read_text()).values()
    (tested,) = [saved / run["folder"] for run in finished if "test_ranks.csv" in run["files"]]
    chosen = yaml.safe_load((folder / "best.yaml").read_text())
    assert yaml.safe_load((tested / "config.yaml").read_text())["learning_rate"] == chosen["learning_rate"]


def test_the_same_command_finds_everything_and_more_trials_go_on(searched, capsys):
    words, saved, folder = searched
    before, table = set(saved.iterdir()), (folder / "trials.csv").read_bytes()
    with working_in(saved.parent):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert set(saved.iterdir()) == before and (folder / "trials.csv").read_bytes() == table
    assert "the test rows were evaluated for this trial alone" in shown and f"results: {folder}" in shown
    with working_in(saved.parent):
        assert main([*words[:-1], "--trials=4"]) == 0
    assert len(pd.read_csv(folder / "trials.csv")) == 4
    assert (folder / "trials.csv").read_bytes().startswith(table)


def test_the_best_settings_are_a_config_file_of_the_same_run(searched, capsys, tmp_path):
    _, saved, folder = searched
    with working_in(tmp_path):
        assert main([f"--config_files={folder / 'best.yaml'}", f"--checkpoint_dir={tmp_path / 'saved'}"]) == 0
    (file,) = (tmp_path / "saved").glob("SASRec-world-*/metrics.json")
    found, best = json.loads(file.read_text()), trials(folder)
    assert found["valid"]["ndcg@10"] == best["trials"][best["best"] - 1]["score"]


def test_a_trial_whose_combination_fails_inside_recbole_fails_alone(world, tmp_path):
    words = [*words_for("SASRec", world, tmp_path / "saved", "--epochs=1", "--inner_size=16"), "--sampler=grid"]
    words.append("--params=hidden_size choice [16, 32]; n_heads choice [2, 3]")
    search = _Search(check_plan(parse_plan(words)))
    with working_in(tmp_path):
        for attempt in search.study.attempts():
            search.run(attempt)
        found = search.end(())
    states = [(line["values"]["n_heads"], line["state"]) for line in found.table.lines]
    assert states == [(2, "complete"), (3, "failed"), (2, "complete"), (3, "failed")]
    assert ["multiple" in line["note"] for line in found.table.lines] == [False, True, False, True]


def test_epochs_that_were_found_are_told_as_those_that_were_computed(small_llm, world, tmp_path):
    """So ASHA decides alike, whatever has been computed before; and what ends a training keeps its epochs."""
    settings = {
        **small_llm,
        "checkpoint_dir": str(tmp_path / "saved"),
        "dataset": "world",
        "model": "BIGRec",
        "epochs": 2,
    }
    told: list[list[tuple[int, float]]] = [[], [], []]

    class Enough(Exception):
        pass

    def stop(epoch: int, score: float) -> None:
        told[0].append((epoch, score))
        raise Enough

    def config() -> Config:
        return Config(config_dict=settings)

    with working_in(tmp_path):
        with pytest.raises(Enough):
            run_one(config(), with_test=False, on_score=stop)
        for own in told[1:]:
            run = run_one(config(), with_test=False, on_score=lambda *one, own=own: own.append(one))
    assert told[1] == told[2] and told[1][:1] == told[0] and [epoch for epoch, _ in told[1]] == [1, 2]
    assert max(score for _, score in told[1]) == run.valid_metrics["ndcg@10"]


@pytest.mark.slow
def test_a_sweep_over_alpha_distils_once(world, tmp_path):
    words = [word for word in words_for("SOFT", world, tmp_path / "saved") if not word.startswith("--alpha")]
    with working_in(tmp_path):
        assert main(["tune", *words, "--params=alpha choice [0, 1, 100]", "--sampler=grid"]) == 0
    there = [folder.name for folder in (tmp_path / "saved" / "stages").iterdir() if folder.is_dir()]
    stages = [name.rpartition("-")[0] for name in there]
    assert stages.count("distil") == stages.count("fine-tune") == 1 and stages.count("curriculum") == 3
    (folder,) = (tmp_path / "saved").glob("tune-*")
    found = trials(folder)["trials"]
    assert [line["values"]["alpha"] for line in found] == [0, 1, 100]
    assert all(line["scores"].keys() == {"1", "2", "3", "4"} for line in found)  # of both tuning stages


def start(folder, words):
    """The search in a process of its own, its output nowhere."""
    folder.mkdir(exist_ok=True)
    command, environment = [sys.executable, "-m", "recbole_llm", "tune", *words], {"PYTHONPATH": str(REPOSITORY)}
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **nowhere)


def table_in(folder):
    (found,) = folder.glob("saved/tune-*/trials.csv")
    return pd.read_csv(found)


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_ends_with_the_same_table(world, tmp_path):
    """By SIGKILL, at another moment each time: as a trial begins, trains, and is told of."""

    def words(name):
        own = words_for("SASRec", world, tmp_path / name / "saved", *FEW, "--epochs=3")
        return [*own, SPACE, "--trials=4", "--pruner=asha", "--asha_reduction=2"]

    def begun():
        return len(list((tmp_path / "killed" / "saved").glob("SASRec-*")))

    assert start(tmp_path / "whole", words("whole")).wait(600) == 0
    for n_runs, delay in ((1, 0.05), (2, 0.4), (4, 0.8)):  # run folders there are, and seconds after the last one
        process = start(tmp_path / "killed", words("killed"))
        while begun() < n_runs and process.poll() is None:
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert start(tmp_path / "killed", words("killed")).wait(600) == 0
    pd.testing.assert_frame_equal(table_in(tmp_path / "killed"), table_in(tmp_path / "whole"))
    assert len(table_in(tmp_path / "whole")) == 4


@pytest.mark.slow
def test_a_trial_goes_on_after_its_last_epoch_and_one_that_is_given_up_leaves_nothing(world, tmp_path, monkeypatch):
    """The first trial, which nothing can fall behind, is stopped in its third epoch of four."""
    monkeypatch.setattr(epochs, "SAVE_SECONDS", 0)
    steps = [0]

    def search(name, dies_at=0):
        steps[0] = 0

        def stepped(*_):
            steps[0] += 1
            if steps[0] == dies_at:
                raise KeyboardInterrupt

        own = words_for("SASRec", world, tmp_path / name / "saved", *FEW, "--epochs=4", "--train_batch_size=32")
        (tmp_path / name).mkdir(exist_ok=True)
        hook = register_optimizer_step_post_hook(stepped)
        try:
            with working_in(tmp_path / name):
                return main(["tune", *own, SPACE, "--trials=4", "--pruner=asha", "--asha_reduction=2"])
        finally:
            hook.remove()

    assert search("whole") == 0
    found, total = table_in(tmp_path / "whole"), steps[0]
    assert {"complete", "pruned"} == set(found["state"])
    per_epoch = total // (found["epochs"].sum() + 4)  # the best trial's settings are trained again
    assert total == per_epoch * (found["epochs"].sum() + 4) and found["epochs"][0] == 4
    assert search("killed", dies_at=2 * per_epoch + 1) == INTERRUPTED
    stages = tmp_path / "killed" / "saved" / "stages"
    assert list(stages.glob(".rows-*"))
    assert search("killed") == 0 and steps[0] == total - 2 * per_epoch
    pd.testing.assert_frame_equal(table_in(tmp_path / "killed"), found)
    assert not list(stages.glob(".rows-*"))


@pytest.mark.slow
def test_processes_that_share_a_search_give_the_trials_of_one(world, tmp_path):
    def words(name):
        own = words_for("SASRec", world, tmp_path / name / "saved", *FEW)
        return [*own, SPACE, "--trials=5", "--sampler=random"]

    processes = [start(tmp_path / name, words(name)) for name in ("shared", "shared", "alone")]
    assert [process.wait(600) for process in processes] == [0, 0, 0]
    pd.testing.assert_frame_equal(table_in(tmp_path / "shared"), table_in(tmp_path / "alone"))


def test_runs_that_several_processes_note_at_once_are_all_noted(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("metrics.json", "run.json", "data.json"):
        (tmp_path / "run" / name).write_text("{}")
    run = SimpleNamespace(folder=tmp_path / "run")

    def note(worker):
        for number in range(10):
            FinishedRuns(tmp_path / "search").add(f"{worker}-{number}", run)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(note, range(6)))
    noted = json.loads((tmp_path / "search" / "runs.json").read_text())
    assert set(noted) == {f"{worker}-{number}" for worker in range(6) for number in range(10)}


def test_a_search_without_a_score_says_why(world, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise recbole_llm.InputError("learning_rate", "the training loss is nan; set a lower one", kind="numeric")

    monkeypatch.setattr("recbole_llm.experiment.tune.run_one", fail)
    settings = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path), "epochs": 1}
    with refused("tune", "conflict", "the training loss is nan"):
        recbole_llm.tune("SASRec", "world", {"learning_rate": [0.1, 0.2]}, sampler="grid", **settings)
