"""The interface of callbacks, and several called as one; a failing callback does not end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = {"Vaild_score": "Valid/Score"}  # RecBole's spelling
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """What a callback gets at the start of a run.

    Attributes:
        name: name of the run, that of its folder.
        folder: the run folder; ``config.yaml`` is in it already.
        settings: all settings of the run, resolved.
        project: the tracker's project (``callback_project``).
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    project: str


class RunCallback:
    """The base class of callbacks: its methods do nothing; a subclass overrides those it needs.

    Another package adds one by an entry point in the group ``recbole_llm.callback``.

    Example:
        >>> class Printed(RunCallback):
        ...     def on_end(self, metrics, error):
        ...         print(metrics)
        >>> with Callbacks([Printed()]) as callbacks:
        ...     callbacks.start(Started("Pop", Path("saved/Pop"), {}, "mine"))
        ...     callbacks.metrics = {"test/ndcg@10": 0.5}
        {'test/ndcg@10': 0.5}
    """

    def on_start(self, run: Started) -> None:
        """Called once the settings are resolved and before anything is computed."""

    def on_scalar(self, name: str, value: float, step: int) -> None:
        """Called with a number of an epoch, as TensorBoard gets it.

        Args:
            name: such as ``Loss/Train`` or ``Valid/ndcg@10``; of a later stage with the stage before it.
            value: the number.
            step: the epoch, counted within its stage.
        """

    def on_end(self, metrics: Mapping[str, float], error: BaseException | None) -> None:
        """Called at the end of the run.

        Args:
            metrics: ``valid/<metric>``, ``test/<metric>`` and ``summary/<name>``, unrounded; empty if it failed.
            error: the exception that ended it early; None if it finished.
        """


class Callbacks(AbstractContextManager["Callbacks"]):
    """Several callbacks as one. One that fails is not called again, and the log says so; the run continues.

    Args:
        callbacks: the callbacks to call.

    Attributes:
        metrics: passed to the callbacks at the end of the context; see :meth:`RunCallback.on_end`.
    """

    def __init__(self, callbacks: Sequence[RunCallback] = ()) -> None:
        self._callbacks = list(callbacks)
        self.metrics: Mapping[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def start(self, run: Started) -> None:
        """Call all at the start of a run."""
        self._tell(lambda one: one.on_start(run))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Call all with a number."""
        self._tell(lambda one: one.on_scalar(NAMES.get(name, name), float(value), int(step)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(lambda one: one.on_end({} if error else self.metrics, error))

    def _tell(self, tell: Callable[[RunCallback], None]) -> None:
        for one in list(self._callbacks):
            try:
                tell(one)
            except Exception as error:  # whatever a tracker's server does, the run is worth more
                log.warning(
                    "%s failed and is not called again: %s: %s", type(one).__name__, type(error).__name__, error
                )
                self._callbacks.remove(one)


class Scalars:
    """TensorBoard's writer of a trainer, and callbacks that get every scalar it gets.

    Args:
        writer: a ``SummaryWriter``.
        callbacks: callbacks that get the same scalars.
    """

    def __init__(self, writer: Any, callbacks: Callbacks) -> None:
        self._writer, self._callbacks = writer, callbacks

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write a number of an epoch."""
        self._writer.add_scalar(name, value, step)
        self._callbacks.scalar(name, value, step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)
