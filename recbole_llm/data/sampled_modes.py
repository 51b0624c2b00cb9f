"""RecBole's evaluation modes that rank a target among sampled items."""

from __future__ import annotations


def is_sampled(mode: str) -> bool:
    """Whether an evaluation mode ranks a target among sampled items, such as ``uni99``."""
    return mode.startswith(("uni", "pop"))
