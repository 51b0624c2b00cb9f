"""Providers of selectors' inputs: how an input is declared, and how it becomes a stage.

A provider is a class with one method per input. The decorator :func:`row_input` declares the method: the names it is
asked for by, and what its values depend on besides the rows. Nothing else routes an input to its provider. Which runs
can give an input is said in :mod:`recbole_llm.settings.stage_checks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from recbole_llm.disk import write_json
from recbole_llm.distributed import process
from recbole_llm.report import peak_mib
from recbole_llm.settings.config import Config
from recbole_llm.stages import Stage

if TYPE_CHECKING:
    from recbole_llm.selection.row_inputs import RowInputs

Compute = TypeVar("Compute", bound=Callable[[Any], Any])
VALUES, FACTS = "values.npy", "facts.json"
_MARK = "_row_input"  # attribute of a declared method


@dataclass(frozen=True)
class RowInput:
    """One input, as its provider declares it.

    Attributes:
        name: name of the method, and of the stage.
        compute: the method.
        also: further names of :class:`recbole_llm.coreset.Input` that it stands for.
        chosen_by: key and value of the setting under which it stands for these; always without.
        settings: keys that its values depend on.
        of_loss: whether they depend on the loss of the LLM's answers.
    """

    name: str
    compute: Callable[[Any], Any]
    also: tuple[str, ...] = ()
    chosen_by: tuple[str, str] | None = None
    settings: tuple[str, ...] = ()
    of_loss: bool = False

    def stands_for(self, name: str, config: Config) -> bool:
        """Whether it is what a config means by a name other than its own."""
        return name in self.also and (self.chosen_by is None or config[self.chosen_by[0]] == self.chosen_by[1])


def row_input(*also: str, **declared: Any) -> Callable[[Compute], Compute]:
    """Declare a method of a :class:`Provider` as the input of its name; arguments as :class:`RowInput` has them."""

    def declare(method: Compute) -> Compute:
        setattr(method, _MARK, RowInput(method.__name__, method, also, **declared))
        return method

    return declare


class Provider:
    """Computes inputs of selectors from one source, such as the LLM."""

    is_kept: ClassVar[bool] = True
    """Whether its inputs are stages of their own, which selectors, budgets and seeds of the draw share."""
    is_joint: ClassVar[bool] = False
    """Whether several processes share the batches of a computation; else the main one computes."""
    declared: ClassVar[Mapping[str, RowInput]] = {}
    """Its inputs by their own names."""

    def __init__(self) -> None:
        self.reported: dict[str, dict[str, Any]] = {}  # input to what its computation tells besides the values

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Collect the methods that are declared, inherited ones included."""
        super().__init_subclass__(**kwargs)
        methods = (getattr(cls, name) for name in dir(cls))
        found = [mark for method in methods if isinstance(mark := getattr(method, _MARK, None), RowInput)]
        cls.declared = {one.name: one for one in found}

    @classmethod
    def of(cls, rows: RowInputs) -> Provider:
        """The provider for the rows of a selection."""
        raise NotImplementedError

    @classmethod
    def find(cls, name: str, config: Config) -> RowInput | None:
        """What stands for an input under a config: the method of its name, else one that stands for it too."""
        standing = [one for one in cls.declared.values() if one.stands_for(name, config)]
        return cls.declared.get(name) or next(iter(standing), None)

    def facts(self, declared: RowInput) -> dict[str, Any]:
        """What an input depends on, as JSON values."""
        raise NotImplementedError


Found = tuple[type[Provider], RowInput]


def find_input(name: str, providers: Sequence[type[Provider]], config: Config) -> Found | None:
    """The provider of an input and what it has declared; None if no provider has it.

    Raises:
        ValueError: more than one provider does.
    """
    found = [(kind, declared) for kind in providers if (declared := kind.find(name, config)) is not None]
    if len(found) > 1:
        raise ValueError(f"{name} is provided by {' and by '.join(kind.__name__ for kind, _ in found)}")
    return found[0] if found else None


class RowInputStage(Stage[np.ndarray]):
    """Values of one input for the rows to choose from, beside what their computation reports.

    Args:
        provider: computes them.
        declared: the input to compute.

    Attributes:
        reported: what the computation told, whenever that was; known after :meth:`load`.
        peak_mib: the most memory that its process held until it ended.
    """

    def __init__(self, provider: Provider, declared: RowInput) -> None:
        self.name = declared.name.replace("_", "-")
        self._provider, self._declared = provider, declared
        self.is_joint = provider.is_joint
        self.reported: dict[str, Any] = {}
        self.peak_mib = 0.0

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return self._provider.facts(self._declared)

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        values = self._declared.compute(self._provider)
        if not process().is_main:
            return
        np.save(folder / VALUES, values)
        reported = self._provider.reported.get(self._declared.name, {})
        write_json(folder / FACTS, {**reported, "peak_mib": peak_mib()})

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: one entry per row."""
        self.reported = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.peak_mib = self.reported.pop("peak_mib")
        values: np.ndarray = np.load(folder / VALUES)
        return values
