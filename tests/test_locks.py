"""Locks say who holds them: a live holder is waited for, a dead one's lock is broken, and never a live one's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock

from recbole_llm import locks
from recbole_llm.locks import OwnedLock, Owner
from tests.processes import fresh_python


def note(path: Path, owner: Owner) -> None:
    path.with_name(path.name + ".owner").write_text(json.dumps(asdict(owner)))


@pytest.fixture
def ended() -> Owner:
    """A process that has been and is no more."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = replace(Owner.of_this_process(), pid=child.pid)
    child.wait()
    return owner


def test_this_process_lives_and_one_that_ended_does_not(ended):
    here = Owner.of_this_process()
    assert not here.is_gone and ended.is_gone
    assert replace(here, started=here.started - 3600).is_gone  # its number has been given to another process
    assert not replace(ended, host="elsewhere").is_gone and not replace(ended, space="pid:[1]").is_gone
    assert f"process {here.pid} on {socket.gethostname()}, since " in str(here)


def test_a_lock_is_held_by_one_and_noted_while_it_is(tmp_path):
    path = tmp_path / "lock"
    with OwnedLock(path, "Stage s"):
        assert Owner.read(tmp_path / "lock.owner").pid == os.getpid()
        assert not OwnedLock(path, "Stage s").take()
    other = OwnedLock(path, "Stage s")
    assert other.take() and Owner.read(tmp_path / "lock.owner").pid == os.getpid()
    other.release()
    assert not (tmp_path / "lock.owner").exists()


def test_a_live_holder_is_waited_for_by_name(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.01)
    caplog.set_level("INFO")
    first, entered = OwnedLock(tmp_path / "lock", "Stage s"), threading.Event()
    first.take()

    def second() -> None:
        with OwnedLock(tmp_path / "lock", "Stage s"):
            entered.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    while not caplog.records:
        time.sleep(0.01)
    assert not entered.is_set()
    first.release()
    waiting.join(10)
    assert entered.is_set()
    assert f"Stage s is being computed by process {os.getpid()} on {socket.gethostname()}, since" in caplog.text
    assert "has ended" not in caplog.text


def test_the_lock_of_a_killed_process_is_free_and_the_log_says_whose_it_was(tmp_path, caplog):
    caplog.set_level("INFO")
    program = f"""
        import os, signal
        from pathlib import Path
        from recbole_llm.locks import OwnedLock
        OwnedLock(Path({str(tmp_path / "lock")!r}), "Stage s").take()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    fresh_python(code=program, status=-signal.SIGKILL)
    pid = Owner.read(tmp_path / "lock.owner").pid
    with OwnedLock(tmp_path / "lock", "Stage s"):
        assert f"Stage s: process {pid} on {socket.gethostname()}, since" in caplog.text and "has ended" in caplog.text
        assert Owner.read(tmp_path / "lock.owner").pid == os.getpid()


@pytest.mark.parametrize("is_dead", [True, False])
def test_a_lock_that_outlives_its_process_is_broken_and_a_live_one_is_not(tmp_path, ended, is_dead):
    """As where a killed process leaves a child behind that still has the lock's file open."""
    path = tmp_path / "lock"
    left = FileLock(path)
    left.acquire()
    note(path, ended if is_dead else Owner.of_this_process())
    found = OwnedLock(path, "Stage s")
    assert found.take() is is_dead
    if is_dead:
        assert not OwnedLock(path, "Stage s").take()  # it is a lock again
        found.release()
    left.release()
    assert OwnedLock(path, "Stage s").take()


def test_a_lock_that_was_just_taken_is_not_broken_for_the_note_of_the_holder_before(tmp_path, ended, monkeypatch):
    """Another process that looks between the two steps of taking it finds them not done, or both."""
    path = tmp_path / "lock"
    note(path, ended)
    first, other = OwnedLock(path, "Stage s"), OwnedLock(path, "Stage s")
    write, found, looking = first._write_note, [], threading.Thread(target=lambda: found.append(other.take()))

    def write_late() -> None:
        looking.start()
        time.sleep(0.2)
        write()

    monkeypatch.setattr(first, "_write_note", write_late)
    assert first.take()
    looking.join(10)
    assert found == [False]
    assert path.stat().st_ino == os.fstat(first._lock._context.lock_file_fd).st_ino


def test_a_note_that_a_killed_process_has_half_written_goes_with_the_next_one(tmp_path):
    (tmp_path / "lock.owner.new").write_text('{"pid": ')
    with OwnedLock(tmp_path / "lock", "Stage s"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"lock", ".locks"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_note_that_cannot_be_read_names_nobody(tmp_path, content):
    (tmp_path / "lock.owner").write_text(content)
    assert Owner.read(tmp_path / "lock.owner") is None
    left = FileLock(tmp_path / "lock")
    left.acquire()
    assert not OwnedLock(tmp_path / "lock", "Stage s").take()
    left.release()
    assert OwnedLock(tmp_path / "lock", "Stage s").take()
