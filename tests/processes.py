"""Python in a process of its own: a fresh interpreter, or the fork of a server that has imported libraries and no more.

:func:`fresh_python` is for what an interpreter decides when it starts: what an import loads, hash seeds, warnings.
:func:`forked_python` is for everything else, above all for what comes back from files: nothing of the test's process is
in it, and it need not import torch and transformers again, which takes longer than most tests that start a process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ROUNDING = "RECBOLE_LLM_ROUNDING"  # environment variable: what `--rounding` is in this process


@dataclass(frozen=True)
class Done:
    """What a process left.

    Attributes:
        status: exit status; -n where signal n ended it.
        stdout: all of it, and so is stderr.
    """

    status: int
    stdout: str
    stderr: str


def fresh_python(*words: str | Path, code: str = "", status: int | None = 0, **options: Any) -> Done:
    """A new interpreter.

    Args:
        words: behind ``python``, or behind ``python -c <code>`` if there is code.
        code: a program; what all its lines are indented by is removed.
        status: what it must end with; None: anything.
        **options: ``cwd`` (the repository by default), ``input`` and ``env``: variables beside those of this process.
    """
    program = ["-c", textwrap.dedent(code)] if code else []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **options.pop("env", {})}
    command = [sys.executable, *program, *map(str, words)]
    options = {"cwd": REPOSITORY, "timeout": 600, **options}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
    return _checked(Done(ended.returncode, ended.stdout, ended.stderr), status)


def forked_python(
    code: str, *words: str | Path, cwd: Path = REPOSITORY, status: int | None = 0, env: Mapping[str, str] | None = None
) -> Done:
    """A new process in which torch, transformers and peft are imported already, and nothing of ours.

    Args:
        code: a program; what all its lines are indented by is removed. ``sys.argv[1:]`` are the words.
        words: its arguments.
        cwd: its working folder.
        status: what it must end with; None: anything.
        env: variables beside those of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (textwrap.dedent(code), [str(word) for word in words], str(cwd), folder, dict(env or {}))
        process = server().Process(target=_run, args=arguments)
        process.start()
        process.join(600)
        output = [(Path(folder) / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    assert process.exitcode is not None, "the process has not ended after ten minutes"
    return _checked(Done(process.exitcode, *output), status)


def together(
    code: str, *words: str | Path, count: int = 2, cwd: Path = REPOSITORY, status: int | None = 0, **env: str
) -> list[Done]:
    """Several processes of one program, as a launcher starts them: they find one another by the environment.

    Args:
        code: a program; what all its lines are indented by is removed. ``sys.argv[1:]`` are the words.
        words: its arguments.
        count: of the processes.
        cwd: their working folder.
        status: what each must end with; None: anything.
        **env: variables beside those that launchers set.

    Returns:
        What each left, by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everybody = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = [{**everybody, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]

    def start(rank: int) -> Done:
        variables = {**{name: str(value) for name, value in own[rank].items()}, **env}
        return forked_python(code, *words, cwd=cwd, status=status, env=variables)

    server()
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


@cache
def server() -> ForkServerContext:
    """The server that forks, started by the first who asks; it finds ``tests.libraries`` by PYTHONPATH."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.libraries"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    ensure_running()
    del os.environ["PYTHONPATH"]
    os.environ.update({} if before is None else {"PYTHONPATH": before})
    return context


def _checked(done: Done, status: int | None) -> Done:
    assert status in (None, done.status), f"exit status {done.status}\n{done.stderr[-4000:]}"
    return done


def _run(code: str, words: list[str], cwd: str, folder: str, environment: dict[str, str]) -> None:
    """In the forked process: its output goes to two files, then the program runs as ``__main__``."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = ["-c", *words]
    if os.environ.get(ROUNDING):
        from tests.rounding import OtherRounding

        OtherRounding(int(os.environ[ROUNDING])).__enter__()
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
