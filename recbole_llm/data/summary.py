"""Counts of every line of a data set: read, kept, or left out and why."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

K_CORE = "outside user_inter_num_interval or item_inter_num_interval"
DUPLICATES = "repeated user and item (rm_dup_inter)"
BY_VALUE = "outside val_interval"
NO_LINE = "user or item without a line of its own (filter_inter_by_user_or_item)"
NO_ID = "no user or item"


@dataclass
class FileSummary:
    """What one file held.

    Attributes:
        name: the file.
        lines: lines below the header, blank ones left out.
        rows: lines that were taken.
        dropped: why lines were left out, and how many.
        filled: missing numbers by column; RecBole puts the column's mean there.
    """

    name: str
    lines: int
    rows: int
    dropped: Counter[str]
    filled: dict[str, int]

    def __str__(self) -> str:
        """One line of the log."""
        text = f"{self.name}: {self.lines:,} lines, {self.rows:,} read"
        for counts, what in ((self.dropped, "left out"), (self.filled, "filled with the mean")):
            if counts:
                text += f"; {what}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        return text


@dataclass
class ReadSummary:
    """What became of the lines of a data set.

    Attributes:
        files: the files, in the order in which they were read.
        interactions: rows of the files of interactions.
        kept: interactions that the data set holds after all filters.
        dropped: why interactions were left out, and how many.
        notes: what else a reader should know, with its log level.
    """

    files: list[FileSummary] = field(default_factory=list)
    interactions: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def drop(self, reason: str, count: int) -> None:
        """Count interactions that a filter left out."""
        if count:
            self.dropped[reason] += count

    @property
    def unexplained(self) -> int:
        """Interactions that are missing although no filter of RecBole left them out."""
        return self.interactions - sum(self.dropped.values()) - self.kept

    def lines(self) -> list[str]:
        """The summary as lines of a log or report."""
        text = f"interactions: {self.interactions:,} read, {self.kept:,} kept"
        if self.dropped:
            text += "; left out: " + ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return [*map(str, self.files), text, *(note for _, note in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain data, and as the lines that a report shows (``lines``)."""
        files = [{**vars(file), "dropped": dict(file.dropped)} for file in self.files]
        counts = {"interactions": self.interactions, "kept": self.kept, "dropped": dict(self.dropped)}
        return {"files": files, **counts, "notes": [note for _, note in self.notes], "lines": self.lines()}

    def log(self, logger: logging.Logger) -> None:
        """Write the summary, notes at their own level."""
        n_notes = len(self.notes)
        for line in self.lines()[: -n_notes or None]:
            logger.info(line)
        for level, note in self.notes:
            logger.log(level, note)
