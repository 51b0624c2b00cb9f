"""What the system refuses of files and folders is one line and exit status 2; what was computed is shown."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from recbole_llm import disk
from recbole_llm.classic.training import _errors_of_recbole
from recbole_llm.experiment import command, compare
from recbole_llm.settings.data_folder import built_in_folder, find_data, own_properties
from tests.refusals import refused

NUMBERS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)


@pytest.mark.parametrize("number", NUMBERS)
def test_any_command_ends_in_one_line_with_path_and_reason(number, monkeypatch, capsys):
    def fails(words: list[str]) -> None:
        raise OSError(number, os.strerror(number), "/of the user/a.inter")

    monkeypatch.setattr(command, "_do", fails)
    assert command.main(["--model=Pop"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "/of the user/a.inter" in told and os.strerror(number) in told and "; " in told


def test_errors_of_the_system_that_are_faults_of_ours_stay_tracebacks(monkeypatch):
    ours = str(Path(disk.__file__).with_name("gone.yaml"))
    for error in (
        FileNotFoundError(errno.ENOENT, "gone", ours),
        OSError("odd"),
        PermissionError(errno.EACCES, "no name"),
    ):

        def fails(words: list[str], error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(command, "_do", fails)
        with pytest.raises(type(error)):
            command.main(["--model=Pop"])


def test_the_full_disk_is_told_also_where_recbole_s_traceback_cannot_be_written(tmp_path):
    failing = {"__name__": "recbole.model"}
    exec("def fail(error): raise error", failing)  # code of RecBole's, by its name
    with refused("", "environment", "no space is left"), _errors_of_recbole({}, tmp_path / "traceback.txt"):
        failing["fail"](OSError(errno.ENOSPC, "No space left on device"))
    with refused("", "data", "failed on dataset 'shop' with ValueError: odd .*its traceback cannot be written to"):
        with _errors_of_recbole({"model": "BPR", "dataset": "shop"}, tmp_path / "not there" / "traceback.txt"):
            failing["fail"](ValueError("odd"))


def test_a_table_is_shown_before_a_full_disk_refuses_its_files(monkeypatch, tmp_path):
    def full(*words: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shown: list[object] = []
    monkeypatch.setattr(compare, "table_of", lambda *words: "the table")
    for name in ("write_results", "make"):
        with (
            refused("checkpoint_dir", "environment", "no space is left in .* for the table")
            if name != "make"
            else (pytest.raises(OSError, match="No space"))
        ):
            with monkeypatch.context() as patch:
                patch.setattr(compare, "write_results", full)
                make = full if name == "make" else lambda: tmp_path
                compare._write(command.Command(), (), (), make, shown.append)
    assert shown == ["the table"] * 2


@pytest.mark.parametrize("error", [BrokenPipeError(), UnicodeEncodeError("ascii", "±", 0, 1, "not in range")])
def test_a_table_that_cannot_be_shown_is_written(monkeypatch, tmp_path, error):
    def show(table: object) -> None:
        raise error

    written: list[object] = []
    monkeypatch.setattr(compare, "table_of", lambda *words: "the table")
    monkeypatch.setattr(compare, "write_results", lambda runs, table, folder, **options: written.append(table))
    with pytest.raises(type(error)):
        compare._write(command.Command(), (), (), lambda: tmp_path, show)
    assert written == ["the table"]


def test_a_closed_folder_of_data_does_not_hide_what_recbole_brings(monkeypatch, tmp_path):
    def closed(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert find_data("ml-100k", str(tmp_path), is_given=False) == built_in_folder()
    assert own_properties("ml-100k", str(tmp_path)) is None
    with refused("data_path", "file", "cannot be read .Permission denied."):
        find_data("ml-100k", str(tmp_path), is_given=True)


def test_a_data_folder_that_cannot_be_read_is_refused(monkeypatch, tmp_path):
    def closed(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    (tmp_path / "shop").mkdir()
    monkeypatch.setattr(Path, "iterdir", closed)
    with refused("data_path", "file", "shop cannot be read .Permission denied.; make it readable"):
        find_data("shop", str(tmp_path), is_given=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_only_the_closed_folder_that_is_asked_for_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with refused("data_path", "file", "closed cannot be read"):
        find_data("closed", str(tmp_path), is_given=True)
    with refused("data_path", "file", "cannot be read"):
        find_data("shop", str(tmp_path / "closed"), is_given=True)
    with refused("dataset", "unknown", "found there: none"):
        find_data("shop", str(tmp_path), is_given=True)
