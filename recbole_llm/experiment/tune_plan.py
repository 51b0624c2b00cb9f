"""The plan of a search, parsed from the arguments of ``recbole-llm tune`` and checked before torch is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.experiment.tune_dimensions import Choice, Dimension
from recbole_llm.experiment.tune_space import FIXED, Space, parse_space, read_space
from recbole_llm.lazy import needs_package
from recbole_llm.settings.check import check_resolved
from recbole_llm.settings.command import Command, parse_command, parse_words, settings_for
from recbole_llm.settings.defaults import GIVEN, known_keys
from recbole_llm.settings.readers import unread
from recbole_llm.settings.resolve import resolve
from recbole_llm.settings.schema import check_known
from recbole_llm.settings.stage_checks import has_rows
from recbole_llm.settings.values import parse_value

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "asha")
OWN_WORDS = ("params_file", "params", "sampler", "pruner", "trials", "asha_min_epochs", "asha_reduction")
TRIALS = 20  # by default, where the sampler is no grid


@dataclass(frozen=True)
class Plan:
    """A search.

    Attributes:
        command: the model, the data set, and the settings that are not searched.
        space: the settings that are, and their values.
        sampler: ``tpe``, ``random`` or ``grid``.
        pruner: ``asha`` ends trials early that fall behind after as many epochs; ``none`` ends none.
        trials: number of trials; None for the default, all points with a grid.
        asha_min_epochs: validated epochs before ASHA first compares.
        asha_reduction: one in so many trials goes on at each comparison, which come after
            ``asha_min_epochs * asha_reduction**n`` epochs.
    """

    command: Command
    space: Space
    sampler: str = "tpe"
    pruner: str = "none"
    trials: int | None = None
    asha_min_epochs: int = 1
    asha_reduction: int = 3

    @property
    def model(self) -> str:
        """The one model of the search."""
        return self.command.models[0]

    @property
    def n_points(self) -> int | None:
        """Number of points of the space; None where a range has infinitely many values."""
        sizes = [len(one.drawn) for one in self.space.values()]
        return math.prod(sizes) if all(sizes) else None

    @property
    def n_trials(self) -> int:
        """Number of trials, as asked for or by default; a grid has no more than its points."""
        if self.sampler == "grid" and self.n_points is not None:
            return min(self.trials or self.n_points, self.n_points)
        return self.trials or TRIALS

    def point(self, number: int) -> dict[str, Any]:
        """What is drawn for a point of the grid, the last setting changing first."""
        found: dict[str, Any] = {}
        for name, dimension in reversed(list(self.space.items())):
            number, index = divmod(number, len(dimension.drawn))
            found[name] = dimension.drawn[index]
        return dict(reversed(found.items()))

    @property
    def first(self) -> dict[str, Any]:
        """The first value of every setting."""
        return {name: dimension.ends[0] for name, dimension in self.space.items()}

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The user's settings of a run with these values."""
        found = {**settings_for(self.model, self.command), **values}
        if GIVEN in found:  # a run's config.yaml says which of its settings are the user's
            found[GIVEN] = sorted({*found[GIVEN], *values})
        return found


def parse_plan(words: Sequence[str]) -> Plan:
    """The words behind ``recbole-llm tune``: those of a run of one model, and what is searched.

    Raises:
        InputError: a wrong word.
    """
    given = parse_words(words)
    own = {name: given.pop(name) for name in OWN_WORDS if name in given}
    command = parse_command([f"--{key}={value}" for key, value in given.items()])
    if len({"params_file", "params"} & own.keys()) != 1:
        ways = '--params_file=hyper.test, or --params="alpha choice [0, 1]; learning_rate logrange 1e-4,1e-2"'
        if "params" in own:
            raise InputError("params_file", f"it is given beside params; keep one: {ways}", kind="conflict")
        raise InputError("params_file", f"nothing says what is searched; give {ways}", kind="missing")
    space = read_space(own["params_file"]) if "params_file" in own else parse_space(own["params"].split(";"))
    chosen: dict[str, Any] = {name: own[name] for name in ("sampler", "pruner") if name in own}
    for name in ("trials", "asha_min_epochs", "asha_reduction"):
        if name in own:
            chosen[name] = _count(name, own[name])
    return Plan(command, space, **chosen)


def _count(name: str, word: str) -> int:
    value = parse_value(word)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(name, f"'{word}' is not allowed; give an integer >= 1")
    return value


def check_plan(plan: Plan) -> Plan:
    """Refuse what can be seen to go wrong before the first trial: every value of a choice, both ends of a range.

    Returns:
        The plan, its settings named without the model's name.

    Raises:
        InputError: the first mistake.
    """
    for name, value, allowed in (("sampler", plan.sampler, SAMPLERS), ("pruner", plan.pruner, PRUNERS)):
        if value not in allowed:
            raise InputError(
                name, f"there is no {name} named '{value}'; choose one of {', '.join(allowed)}", kind="unknown"
            )
    for name, number, least in (
        ("trials", 1 if plan.trials is None else plan.trials, 1),
        ("asha_min_epochs", plan.asha_min_epochs, 1),
        ("asha_reduction", plan.asha_reduction, 2),
    ):
        if number < least:
            raise InputError(name, f"{number} is not allowed; give an integer >= {least}")
    command = plan.command
    if len(command.models) != 1:
        raise InputError("model", f"a search is of one model, not of {len(command.models)}; name one", kind="conflict")
    if command.seeds is not None or command.baseline:
        key = "baseline" if command.seeds is None else "seeds"
        raise InputError(
            key, "a search has one run for each trial; compare the best settings afterwards", kind="conflict"
        )
    plan = Plan(**{**vars(plan), "space": _checked_space(plan)})
    if plan.sampler == "grid" and plan.n_points is None:
        name = next(name for name, dimension in plan.space.items() if not dimension.drawn)
        raise InputError(
            name, "a grid needs values that can be counted; give choice or quniform, or sampler=tpe", kind="conflict"
        )
    _check_values(plan)
    if find_spec("optuna") is None:
        raise needs_package("tune", "optuna", "install the extra: pip install 'recbole-llm[tune]'")
    return plan


def unread_in(plan: Plan) -> list[str]:
    """Warnings for what is set or searched and is read at no value that is searched (see ``settings.readers``)."""
    points = [plan.first]
    points += [{**plan.first, name: value} for name, one in plan.space.items() for value in one.ends[1:]]
    resolved = [resolve(plan.model, plan.command.dataset, plan.settings(point)) for point in points]
    return unread([*plan.command.given, *plan.space], resolved)


def _checked_space(plan: Plan) -> dict[str, Dimension]:
    """The space without the model's name before settings; each is one that can be searched."""
    command, space = plan.command, {}
    known = known_keys(plan.model, command.dataset)
    for given, dimension in plan.space.items():
        model, _, name = given.rpartition(".")
        if model not in ("", plan.model):
            raise InputError(given, f"no model named '{model}' is run; the model is {plan.model}", kind="unknown")
        if name in FIXED:
            raise InputError(
                name, "trials are compared by it, or kept by it; leave it out of the search", kind="conflict"
            )
        check_known(name, known, plan.model)
        if name in {**command.shared, **command.per_model.get(plan.model, {})}:
            raise InputError(name, "it is set and searched; leave out one of the two", kind="conflict")
        if name in space:
            raise InputError(name, "it is searched twice; keep one", kind="conflict")
        space[name] = dimension
    return space


def _check_values(plan: Plan) -> None:
    """Resolve a run with every value that is known already, the other settings at their first."""
    first = resolve(plan.model, plan.command.dataset, plan.settings(plan.first))
    check_resolved([first])
    if not has_rows(first.final, "valid"):
        raise InputError(
            "eval_args", "a search chooses on validation rows, of which the split leaves none", kind="conflict"
        )
    for name, dimension in plan.space.items():
        for value in dimension.ends[1:]:
            one = resolve(plan.model, plan.command.dataset, plan.settings({**plan.first, name: value}))
            if isinstance(dimension, Choice):
                check_resolved([one])
