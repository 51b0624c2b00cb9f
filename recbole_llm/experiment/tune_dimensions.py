"""The values that one setting of a search may take: a choice, a range, steps of a range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recbole_llm.settings.values import write_value

if TYPE_CHECKING:
    from optuna.trial import Trial


class Dimension(ABC):
    """The values that one setting may take."""

    @abstractmethod
    def draw(self, trial: Trial, name: str) -> Any:
        """Have Optuna draw for a trial, or give what it has drawn for it before; :meth:`value` makes a value of it."""

    @abstractmethod
    def value(self, drawn: Any) -> Any:
        """The setting's value for what Optuna drew."""

    @property
    @abstractmethod
    def drawn(self) -> Sequence[Any]:
        """Everything that can be drawn, in order; empty where that is infinitely much."""

    @property
    @abstractmethod
    def ends(self) -> Sequence[Any]:
        """The values that are checked before the search begins: all of a choice, the ends of a range."""

    def __str__(self) -> str:
        low, high = self.ends[0], self.ends[-1]
        return f"{low:.4g} to {high:.4g}"


@dataclass(frozen=True)
class Choice(Dimension):
    """One of several values of any kind.

    Attributes:
        values: in the order they were given.
    """

    values: tuple[Any, ...]

    @property
    def words(self) -> list[str]:
        """The values as words, which is what Optuna knows them by."""
        return [write_value(value) for value in self.values]

    def draw(self, trial: Trial, name: str) -> Any:
        """See :class:`Dimension`."""
        return trial.suggest_categorical(name, self.words)

    def value(self, drawn: Any) -> Any:
        """See :class:`Dimension`."""
        return self.values[self.words.index(drawn)]

    @property
    def drawn(self) -> Sequence[Any]:
        """See :class:`Dimension`."""
        return self.words

    @property
    def ends(self) -> Sequence[Any]:
        """See :class:`Dimension`."""
        return self.values

    def __str__(self) -> str:
        return ", ".join(self.words)


@dataclass(frozen=True)
class Range(Dimension):
    """Any number between two.

    Attributes:
        low: the smallest value.
        high: the largest.
        log: whether equal ratios are equally likely, instead of equal distances.
    """

    low: float
    high: float
    log: bool = False

    def draw(self, trial: Trial, name: str) -> Any:
        """See :class:`Dimension`."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """See :class:`Dimension`."""
        return float(drawn)

    @property
    def drawn(self) -> Sequence[Any]:
        """See :class:`Dimension`."""
        return ()

    @property
    def ends(self) -> Sequence[Any]:
        """See :class:`Dimension`."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return super().__str__() + (", logarithmic" if self.log else "")


@dataclass(frozen=True)
class Steps(Dimension):
    """Multiples of a number: hyperopt's ``quniform``, ``round(x / step) * step``.

    Attributes:
        first: the smallest multiple, as a factor.
        last: the largest.
        step: what is multiplied; an integer gives integers.
    """

    first: int
    last: int
    step: float

    def draw(self, trial: Trial, name: str) -> Any:
        """See :class:`Dimension`."""
        return trial.suggest_int(name, self.first, self.last)

    def value(self, drawn: Any) -> Any:
        """See :class:`Dimension`; 3 times 0.1 is 0.3."""
        value = int(drawn) * self.step
        return value if isinstance(self.step, int) else float(f"{value:.12g}")

    @property
    def drawn(self) -> Sequence[Any]:
        """See :class:`Dimension`."""
        return range(self.first, self.last + 1)

    @property
    def ends(self) -> Sequence[Any]:
        """See :class:`Dimension`."""
        return (self.value(self.first), self.value(self.last))

    def __str__(self) -> str:
        return f"{super().__str__()}, multiples of {self.step:g}"
