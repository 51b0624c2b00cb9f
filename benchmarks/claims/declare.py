"""What a claim is made of: two arms, a measure, and the worlds in which it is true and false."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.planted import PlantedSettings


@dataclass(frozen=True)
class Measure:
    """A number per test user, or one per seed where there is no user to it.

    Attributes:
        title: what a table calls it.
        bigger: whether a larger value is better, so that a claim of "better" knows its direction.
        margin: a difference that is smaller, whatever its sign, is no difference: the equivalence margin.
        per_user: whether every test user has a value; else seeds alone are counted.
    """

    title: str
    bigger: bool
    margin: float
    per_user: bool = True


@dataclass(frozen=True)
class Arm:
    """One training that is compared: a model and its settings, over those of the world.

    Attributes:
        title: what a table calls it.
        model: name of the model or preset.
        settings: of the run.
        rows: how the world's marks choose the training rows, a name of ``cells.CHOICES``; empty leaves it to the model.
        teacher_epochs: epochs of the model whose answers are distilled, where they are not those of the run.
    """

    title: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: str = ""
    teacher_epochs: int = 0


@dataclass(frozen=True, eq=False)
class World:
    """A planted world, drawn anew for every seed, and the settings of all arms in it.

    Attributes:
        name: in names of cells.
        text: what is true in it.
        planted: its knobs; the cell's seed replaces theirs.
        settings: of every run in it.
        check: arms that show that the world is what its text says: the first is better on ``check_measure``.
        check_measure: see above.
    """

    name: str
    text: str
    planted: PlantedSettings
    settings: Mapping[str, Any]
    check: tuple[str, str] | None = None
    check_measure: str = "loss"


@dataclass(frozen=True)
class Trial:
    """A claim put to a world.

    Attributes:
        world: its name.
        why: why the claim is true, or false, there.
        measure: of this trial, a name of ``ledger.MEASURES``.
        against: measure of the worse arm, where it is another one.
        arms: the better and the worse one, where they are not the claim's.
        sure: whether the world makes the claim true or false by construction; else that is what the trial asks.
    """

    world: str
    why: str
    measure: str
    against: str = ""
    arms: tuple[str, str] | None = None
    sure: bool = True


@dataclass(frozen=True)
class Real:
    """A claim put to real data, by cells that ``benchmarks/results.py`` runs.

    Attributes:
        grid: name of the grid that holds both lines.
        better: title of the line that the claim says is better.
        worse: title of the other line.
    """

    grid: str
    better: str
    worse: str


@dataclass(frozen=True)
class Claim:
    """What a paper says of two arms.

    Attributes:
        key: short name, unique.
        sentence: the claim.
        source: where the paper says so.
        better: arm that the claim says is better.
        worse: the other arm.
        true: a world in which it is true by construction.
        false: a world in which it is false by construction.
        real: lines of the tables on real data; None where there are none.
    """

    key: str
    sentence: str
    source: str
    better: str
    worse: str
    true: Trial
    false: Trial
    real: Real | None = None

    @property
    def trials(self) -> dict[str, Trial]:
        """What the world makes of the claim, to the trial."""
        return {"true": self.true, "false": self.false}


@dataclass(frozen=True)
class Paper:
    """A paper and its claims: one table, over which p-values are corrected.

    Attributes:
        name: of the method.
        title: with the paper's identifier.
        claims: its own.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
