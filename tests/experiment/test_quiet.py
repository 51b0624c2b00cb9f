"""What a command shows: lines, not dumps, no colours where nobody sees them, and a way on after Ctrl-C."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import recbole_llm
from recbole_llm.experiment import compare as module
from recbole_llm.experiment.moved import paths_now
from recbole_llm.logs import SHOWN, console_log
from recbole_llm.quick_start import main
from recbole_llm.settings.config import Config
from recbole_llm.settings.data_folder import built_in_folder
from tests.processes import fresh_python
from tests.refusals import refused
from tests.runs import check_stages, working_in


@pytest.fixture
def words(small: dict[str, Any], tmp_path: Path) -> list[str]:
    own = {**small, "checkpoint_dir": str(tmp_path / "saved"), "epochs": 3, "verbose": True}
    return ["--model=Pop,SASRec", "--dataset=world", *(f"--{key}={value}" for key, value in own.items())]


def test_a_setting_that_nothing_reads_is_told_of_once(words, small, tmp_path, capsys):
    """By a command for all of its models, and by a run in Python."""
    line = "rerank_topn has no effect: Pop and SASRec have rerank=none; set --rerank, or leave rerank_topn out."
    with working_in(tmp_path):
        assert main([*words, "--rerank_topn=50"]) == 0
        assert capsys.readouterr().err.count(line) == 1
        recbole_llm.run("Pop", "world", **{**small, "checkpoint_dir": str(tmp_path / "saved")}, rerank_topn=50)
    assert capsys.readouterr().err.count(line.replace("Pop and SASRec have", "Pop has")) == 1


def test_the_console_has_lines_and_the_log_of_a_run_has_everything(words, tmp_path, capsys):
    with working_in(tmp_path):
        assert main(words) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out
    assert "hidden_size = 64" not in shown.err and "Embedding(" not in shown.err and "Saving current" not in shown.err
    assert all(line[2:3] == " " for line in shown.err.splitlines())  # each line begins with a date
    assert "Settings that differ from their defaults: checkpoint_dir = " in shown.err and "epochs = 3" in shown.err
    assert shown.err.count("epoch 2 training") == 1 and "1 of 2 runs done, 1 left" in shown.err  # SASRec never ran
    assert "SASRec, stage 2 of 3: train (done: prepare; next: evaluate)\n" in shown.err
    assert shown.err.count("verbose has no effect") == 2
    assert len(shown.err.splitlines()) < 40
    for folder in (tmp_path / "saved").glob("[PS]*-world-2*"):
        check_stages(folder)
    log = next((tmp_path / "saved").glob("SASRec-*/*.log")).read_text()
    assert "hidden_size = 64" in log and "Embedding(" in log and "\x1b" not in log
    assert not (tmp_path / "log_tensorboard").exists()
    assert len(list((tmp_path / "saved").glob("SASRec-*/tensorboard/events.out.*"))) == 1


def test_the_same_command_again_tells_the_time_left_from_the_start(words, tmp_path, capsys):
    """What the stages took stands in the run folders; another seed takes as long, other epochs do not."""
    with working_in(tmp_path):
        assert main(words) == 0
        assert "about" not in capsys.readouterr().err
        assert main([*words, "--seed=7"]) == 0
        again = capsys.readouterr().err
        assert main([*(word for word in words if "epochs" not in word), "--epochs=2"]) == 0
    for line in ("Pop, stage 1 of 3: prepare", "SASRec, stage 3 of 3: evaluate", "1 of 2 runs done"):
        own = next(told for told in again.splitlines() if line in told)
        assert re.search(r", about \d+ s left$", own)
    assert "about" not in capsys.readouterr().err


def test_bars_are_for_terminals_and_for_those_who_ask(small, monkeypatch):
    own = {key: value for key, value in small.items() if key != "show_progress"}
    assert Config("Pop", "world", settings=own)["show_progress"] is False  # pytest's standard error is no terminal
    assert Config("Pop", "world", settings={**own, "show_progress": True})["show_progress"] is True
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert Config("Pop", "world", settings=own)["show_progress"] is True


def test_quiet_shows_the_table_alone(words, tmp_path, capsys):
    with working_in(tmp_path):
        assert main([*(word for word in words if "verbose" not in word), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.startswith("Model") and "report: " in shown.out
    assert "INFO" in next((tmp_path / "saved").glob("SASRec-*/*.log")).read_text()


def test_ctrl_c_names_the_command_that_goes_on(words, tmp_path, capsys, monkeypatch):
    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_one", stopped)
    with working_in(tmp_path):
        assert main(words) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("recbole-llm: stopped;") and "recbole-llm --model=Pop,SASRec --dataset=world" in last


def test_a_reader_that_goes_ends_the_command_without_a_traceback():
    code = """
        import os, sys
        from recbole_llm.experiment.command import main
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.exit(main(["--help"]))
    """
    assert fresh_python(code=code, status=141).stderr == ""


def test_several_lines_are_shown_where_they_ask_for_it(capsys):
    log = logging.getLogger("recbole_llm.test")
    with console_log():
        log.info("a\nb")
        log.info("\x1b[1;35mone\x1b[0m line")
        log.info("a table:\n1 2", extra=SHOWN)
        log.warning("two\nlines")
    shown = capsys.readouterr().err
    assert "b\n" not in shown.replace("table", "") and "one line" in shown and "1 2" in shown and "two\nlines" in shown
    with console_log(quiet=True):
        log.info("nothing")
        log.warning("something")
    shown = capsys.readouterr().err
    assert "something" in shown and "nothing" not in shown


@pytest.mark.parametrize("model", ["SASRec", "BIGRec"])
def test_a_project_that_was_moved_as_a_whole_is_found_by_itself(model, small, small_llm, tmp_path, world):
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(world, before / "dataset" / "world")
    llm = shutil.copytree(small_llm["llm_path"], before / "llm")
    own = {**(small_llm if model == "BIGRec" else small), "checkpoint_dir": str(before / "saved")}
    own |= {"data_path": str(before / "dataset"), "epochs": 1} | ({"llm_path": str(llm)} if model == "BIGRec" else {})
    with working_in(tmp_path):
        run = recbole_llm.run(model, "world", **own)
    expected = run.recommend(["i1", "i2"], k=3)
    before.rename(after)
    again = recbole_llm.load_run(after / "saved" / run.folder.name)
    assert again.recommend(["i1", "i2"], k=3).equals(expected)
    assert again.config["checkpoint_dir"] == str(after / "saved") and not before.exists()
    (after / "dataset").rename(after / "data")
    with refused("data_path", "file", f"the data of this run are no longer in {before / 'dataset'}"):
        recbole_llm.load_run(again.folder)
    words = ["recommend", str(again.folder), "--history=i1; i2", "--k=3", f"--data-path={after / 'data'}"]
    assert main([*words, f"--out={tmp_path / 'recs.csv'}"]) == 0
    assert pd.read_csv(tmp_path / "recs.csv")["item_id"].tolist() == expected["item_id"].tolist()


def test_the_data_that_recbole_brings_are_found_wherever_it_is_installed(tmp_path):
    recorded = {
        "dataset": "ml-100k",
        "data_path": "/elsewhere/recbole/dataset_example/ml-100k",
        "checkpoint_dir": "/elsewhere",
    }
    assert Path(paths_now(recorded, tmp_path / "run")["data_path"], "ml-100k.inter").is_file()


def test_what_recbole_brings_stands_for_no_other_ml_100k(tmp_path):
    own, empty = tmp_path / "ml-100k", tmp_path / "empty"
    empty.mkdir()
    recorded = {"dataset": "ml-100k", "data_path": str(own), "checkpoint_dir": str(tmp_path / "saved")}
    with refused("data_path", "file", f"the data of this run are no longer in {own}"):
        paths_now(recorded, tmp_path / "saved" / "run")
    own.mkdir()
    for given in (None, empty):
        with refused("data_path", "file", "no data set 'ml-100k' in .*, which this run was trained on"):
            paths_now(recorded, tmp_path / "saved" / "run", given)
    (own / "ml-100k.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n")
    assert "data_path" not in paths_now(recorded, tmp_path / "saved" / "run")
    for folder in (tmp_path, Path(built_in_folder()).parent):  # the folder above that of the data
        assert paths_now(recorded, tmp_path / "saved" / "run", folder)["data_path"] == os.path.abspath(folder)


def test_a_run_is_loaded_where_its_data_have_moved(small, tmp_path, world):
    data = shutil.copytree(world.parent, tmp_path / "before")
    with working_in(tmp_path):
        own = {**small, "checkpoint_dir": str(tmp_path / "saved"), "data_path": str(data)}
        run = recbole_llm.run("Pop", "world", **own)
    moved = data.rename(tmp_path / "after")
    again = recbole_llm.load_run(run.folder, data_path=moved)
    assert again.recommend(users=again.users[0], k=3)["item_id"].tolist()[0] in again.ranks["top_items"][0].split()
