"""``Stage``: the facts a result depends on, how it is computed, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

Result = TypeVar("Result")


class Stage(ABC, Generic[Result]):
    """A result that is computed once: what it depends on, how it is computed, and how it is read back.

    Attributes:
        name: the first part of the folder's name.
    """

    name: str
    is_resumable: ClassVar[bool] = False
    """Whether :meth:`compute` can continue from what a killed run left in the folder; else the folder is emptied."""
    is_joint: bool = False
    """Whether several processes of a command compute it together, of which the main one writes; else it works alone."""
    format_number: ClassVar[int] = 1
    """Of the files and of what their numbers mean: one more whenever a reader of the old ones would go wrong. A stage
    of another number is rebuilt; the versions of packages are recorded too, but do not count."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Everything the result depends on and nothing later, as plain data."""

    @abstractmethod
    def compute(self, folder: Path) -> None:
        """Write the result into a folder."""

    @abstractmethod
    def load(self, folder: Path) -> Result:
        """Read the result from the folder it was written into, by this run or another."""


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Name what a result depends on: 16 hex digits of the SHA-256 of the facts as canonical JSON.

    Raises:
        TypeError: a fact is not plain data (str, number, bool, None, list or dict of these).
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stage_seed(seed: int, *names: str | int) -> int:
    """A seed of a stage's own, so that a computed and a loaded stage lead to the same next one."""
    return int(fingerprint({"seed": seed, "names": list(names)})[:15], 16)
