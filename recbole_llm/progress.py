"""Progress bars: only the outermost one is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """tqdm's bar, which shows nothing while another one is open, RecBole's own included.

    Args:
        iterable: what is gone through, if the bar is to count by itself.
        desc: what stands before the bar.
        **options: tqdm's; ``disable=True`` shows nothing at all.

    Example:
        >>> sum(Bar([1, 2, 3], desc="add", disable=True))
        6
    """

    def __init__(self, iterable: Iterable[Any] | None = None, desc: str | None = None, **options: Any) -> None:
        others = [one for one in self._instances if one is not self]  # tqdm's own list of what is drawn
        # None, which means "where this is no terminal", stays None.
        super().__init__(iterable, desc, **{**options, "disable": True if others else options.get("disable", False)})
