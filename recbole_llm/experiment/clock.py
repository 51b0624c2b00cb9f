"""How long the runs of a command may still take."""

from __future__ import annotations


class Clock:
    """Says how many runs of a command are done, and how long the others may take.

    Args:
        n_runs: of the command.

    Example:
        >>> clock = Clock(2)
        >>> clock.left(60.0)
        'about 1 min left'
    """

    def __init__(self, n_runs: int) -> None:
        self.n_runs, self.n_done = n_runs, 0
        self._seconds: list[float] = []

    def left(self, seconds: float | None) -> str:
        """What is left once a run is done.

        Args:
            seconds: that it took; None for a run that was found.
        """
        self.n_done += 1
        self._seconds += [] if seconds is None else [seconds]
        rest = self.n_runs - self.n_done
        if not rest or not self._seconds:
            return f"{rest} left"
        expected = rest * sum(self._seconds) / len(self._seconds)
        return f"about {expected:.0f} s left" if expected < 60 else f"about {expected / 60:.0f} min left"
