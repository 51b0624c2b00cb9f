"""Commands that are killed at a planted point, in forks of one process that has imported everything.

A point lies before and behind everything that is written, moved or removed, in the middle of what is written in one
piece, behind every step of an optimiser, and around every batch of answers. The process counts them and kills itself at
the one it was told.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.processes import ROUNDING, server


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status; -n where signal n ended it.
        points: the names of the points it passed, the last one that of its death where it was killed.
        output: what it wrote to both streams.
    """

    status: int
    points: list[str]
    output: str

    @property
    def was_killed(self) -> bool:
        """Whether the planted signal ended it; a SIGTERM that the command notices is an exit status."""
        return self.status in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)


class Warm:
    """A process that has imported everything of ours too, and forks for each command; as a context, it ends with it."""

    def __enter__(self) -> Warm:
        self._pipe, theirs = Pipe()
        self._process = server().Process(target=_serve, args=[theirs])
        self._process.start()
        theirs.close()  # so that it ends with this process's end of the pipe
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join(60)

    def run(self, words: Sequence[str], folder: Path, at: int = 0, by: int = signal.SIGKILL) -> Ended:
        """Run a command in a fork.

        Args:
            words: of the command line.
            folder: its working folder.
            at: the point at which it kills itself, from 1; 0 lets it live.
            by: the signal.
        """
        self._pipe.send((list(words), str(folder), at, int(by)))
        status: int = self._pipe.recv()  # EOFError: the process that forks has ended
        points = (folder / "points").read_text().splitlines()
        return Ended(status, points, (folder / "output").read_text(errors="replace"))


# ------------------------------------------------------------------------------------------------- in the warm process


def _serve(pipe: Connection) -> None:
    """Fork for every command that is sent, and tell how it ended."""
    from recbole_llm import compat

    compat.apply()
    import recbole_llm.experiment.compare
    import recbole_llm.quick_start
    import recbole_llm.trainer.preference
    import recbole_llm.trainer.teaching  # noqa: F401

    with suppress(EOFError):
        while command := pipe.recv():
            child = os.fork()
            if child == 0:
                _run(*command)
            _, status = os.waitpid(child, 0)
            pipe.send(os.waitstatus_to_exitcode(status))


def _run(words: list[str], folder: str, at: int, by: int) -> None:
    """In a fork: run a command, and leave without cleaning up what is the parent's."""
    status = 1
    try:
        os.dup2(os.open(f"{folder}/output", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.chdir(folder)
        if rounding := os.environ.get(ROUNDING):
            from tests.rounding import OtherRounding

            OtherRounding(int(rounding)).__enter__()
        _plant(Points(f"{folder}/points", at, by))
        os.fsync = lambda file: None  # nothing cuts the power
        from recbole_llm.quick_start import main
        from tests.pictures import undrawn

        with undrawn():
            status = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Points:
    """Counts points, notes their names, and kills the process at one of them."""

    def __init__(self, file: str, at: int, by: int) -> None:
        self._file, self._left, self._by = open(file, "w", buffering=1), at, by

    def at(self, name: str) -> bool:
        """Note a point. Returns: whether it is the one to die at."""
        self._file.write(name + "\n")
        self._left -= 1
        return self._left == 0

    def die(self) -> None:
        """Where the command minds a signal it raises, and the command ends by itself."""
        os.kill(os.getpid(), self._by)

    def pass_by(self, name: str) -> None:
        """Die here, if it is the point."""
        if self.at(name):
            self.die()


def _plant(points: Points) -> None:
    import shutil

    import numpy as np
    import safetensors.torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from recbole_llm.classic import epochs
    from recbole_llm.kept import KeptRows

    epochs.SAVE_SECONDS = 0  # a state after every epoch, so that there are the same points in every run
    register_optimizer_step_post_hook(lambda *_: points.pass_by("step"))
    _surround(points, os, "replace")
    _surround(points, shutil, "rmtree")
    _surround(points, shutil, "copytree")
    _surround(points, np, "save", torn=lambda arguments: arguments[0])
    _surround(points, Path, "write_text", torn=lambda arguments: arguments[0])
    save_file = safetensors.torch.save_file
    _surround(points, safetensors.torch, "save_file", torn=lambda arguments: arguments[1])
    _surround(points, KeptRows, "batch")
    for module in [module for name, module in sys.modules.items() if name.startswith("recbole_llm")]:
        if getattr(module, "save_file", None) is save_file:
            module.save_file = safetensors.torch.save_file  # type: ignore[attr-defined]


def _surround(points: Points, owner: Any, name: str, torn: Callable[[tuple[Any, ...]], Any] | None = None) -> None:
    """Put points before and behind a function; and one in the middle of the file that it writes."""
    function = getattr(owner, name)

    def surrounded(*arguments: Any, **options: Any) -> Any:
        points.pass_by(f"before {name}")
        found = function(*arguments, **options)
        if torn is not None and points.at(f"in the middle of {name}"):
            os.truncate(file := torn(arguments), os.path.getsize(file) // 2)
            points.die()
        points.pass_by(f"behind {name}")
        return found

    setattr(owner, name, surrounded)
