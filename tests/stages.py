"""Stages of tests: facts and a function that writes the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recbole_llm.stages import Stage, StageStore


class GivenStage(Stage[Path]):
    """A stage of given facts that a given function computes; its result is its folder."""

    def __init__(
        self,
        name: str,
        facts: Mapping[str, Any],
        compute: Callable[[Path], Any],
        resumable: bool = False,
        format_number: int = 1,
    ) -> None:
        self.name, self._facts, self._compute = name, facts, compute
        self.is_resumable, self.format_number = resumable, format_number  # type: ignore[misc]

    def facts(self) -> Mapping[str, Any]:
        """See :class:`Stage`."""
        return self._facts

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        self._compute(folder)

    def load(self, folder: Path) -> Path:
        """See :class:`Stage`."""
        return folder


def run_stage(store: StageStore, *given: Any, **options: Any) -> Path:
    """The folder of a :class:`GivenStage`, computed where it is not there."""
    return store.run(GivenStage(*given, **options))
