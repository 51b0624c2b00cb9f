"""One setting: its meaning, its allowed values, and the messages that refuse others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from recbole_llm.errors import InputError

TYPE_NAMES: Mapping[type, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
LARGEST = 2**63 - 1
"""Largest integer of a setting: arrays and tensors hold no larger one."""
NO_DEFAULT: Any = object()
"""The default of a setting whose component has none."""


@dataclass(frozen=True)
class Setting:
    """What a setting means and which values it takes; its type is that of the field it annotates.

    Attributes:
        meaning: one line for the user, without a full stop.
        low: smallest value of a number, and of the numbers in a list.
        high: largest value of a number.
        above: value that a number must exceed.
        below: value that a number must stay under.
        choices: the only texts accepted; a mapping adds what each means.
        null: what ``~`` (None) means, where it is accepted.
        note: what else to know, after the range: which other setting it depends on, say.
        pattern: regular expression that a whole text must match, blanks left out.
        accept: a test that a value must pass beside its type.
        like: what is accepted, in words, where ``pattern`` or ``accept`` decides: ``text like [3,inf)``.
        share: whether the value is an amount: an integer is a count from ``low`` (1 by default), a decimal a share of
            at most 1, above 0 where counts are.
        scope: axis values under which alone it is read; a selector's and an adapter's own setting has its name.
        axis: the axis whose values it names: :func:`recbole_llm.registry.choices` says which there are.
        apart: whether it is read whatever value the axis of its component has.
        key: the whole name of the setting; by default the component's prefix and the name of the field.
    """

    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | Mapping[str, str] = ()
    null: str = ""
    note: str = ""
    pattern: str = ""
    accept: Callable[[Any], bool] | None = None
    like: str = ""
    share: bool = False
    scope: str = ""
    axis: str = ""
    apart: bool = False
    key: str = ""


@dataclass(frozen=True)
class Key:
    """One setting as it is declared: its name, types, range and default.

    Attributes:
        name: name of the setting.
        types: accepted Python types; ``float`` takes integers too, ``int`` takes no True and False.
        null: whether ``~`` (None) is accepted.
        setting: meaning and range.
        default: default of the component; :data:`NO_DEFAULT` where it has none.
        owner: the component: the class that declares it.
    """

    name: str
    types: tuple[type, ...]
    null: bool
    setting: Setting
    default: Any = NO_DEFAULT
    owner: type = object

    @property
    def text_only(self) -> bool:
        """Whether a value is text whatever it looks like: the folder ``2024``, the interval ``[3,5]``."""
        return self.types == (str,) and not self.setting.choices

    def accepts(self, value: object) -> bool:
        """Whether the value has an accepted type and lies in range."""
        if value is None:
            return self.null
        if not self._right_type(value) or not (self.setting.accept is None or self.setting.accept(value)):
            return False
        if isinstance(value, str):
            if "\0" in value:  # no name of a file, column or encoding has one, and no line of a file
                return False
            matches = not self.setting.pattern or re.fullmatch(self.setting.pattern, value.replace(" ", ""))
            return bool(matches) and (not self.setting.choices or value in self.setting.choices)
        if isinstance(value, list | tuple):
            item = replace(self, types=self._item_types, null=False)
            return bool(value or self.types == (list,)) and all(item.accepts(part) for part in value)
        return isinstance(value, bool) or not isinstance(value, Real) or self._in_range(value)

    def check(self, value: object, source: str = "") -> None:
        """Refuse a value that is not accepted.

        Args:
            value: the user's.
            source: what stands before the key in the message: ``"--"``, or a file's name.

        Raises:
            InputError: with what is allowed.
        """
        if not self.accepts(value):
            raise InputError(f"{source}{self.name}: {_shown(value)} is not allowed; give {self}{self._limit_of(value)}")

    def _limit_of(self, value: object) -> str:
        """What is wrong with an integer or a text that is refused wherever it stands; else empty."""
        if isinstance(value, Integral) and abs(int(value)) > LARGEST:
            return f" and <= {LARGEST}"
        return " without a NUL character" if isinstance(value, str) and "\0" in value else ""

    @property
    def _item_types(self) -> tuple[type, ...]:
        """Types of a list's items: those that may stand alone, else text."""
        return tuple(kind for kind in self.types if kind is not list) or (str,)

    def _right_type(self, value: object) -> bool:
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, Integral):
            return int in self.types or float in self.types
        if isinstance(value, Real):
            return float in self.types
        return list in self.types if isinstance(value, tuple) else isinstance(value, self.types)

    def _in_range(self, value: Real) -> bool:
        setting, whole = self.setting, isinstance(value, Integral)
        if whole and abs(int(value)) > LARGEST:  # type: ignore[call-overload]
            return False
        number = float(value)
        if setting.share:
            return number >= self._least if whole else 0 < number <= 1 or number == self._least
        limits = (
            setting.low is None or number >= setting.low,
            setting.high is None or number <= setting.high,
            setting.above is None or number > setting.above,
            setting.below is None or number < setting.below,
        )
        return math.isfinite(number) and all(limits)

    @property
    def _least(self) -> float:
        """Smallest count."""
        return 1 if self.setting.low is None else self.setting.low

    def __str__(self) -> str:
        """What is allowed, in words: ``an integer >= 1``."""
        null = ", or ~" if self.null else ""
        if self.setting.like:
            return self.setting.like + null
        if self.setting.share:
            bracket = "(" if self._least else "["
            return f"an integer >= {self._least:g} (a count) or a decimal in {bracket}0, 1] (a share){null}"
        if self.setting.choices:
            return f"one of {', '.join(self.setting.choices)}{null}"
        if list in self.types and len(self.types) > 1:
            single = " or ".join(TYPE_NAMES[kind] for kind in self.types if kind is not list)
            return f"{f'{single} {self.bounds}'.strip()} or a list of them{null}"
        return f"{' or '.join(TYPE_NAMES[kind] for kind in self.types)} {self.bounds}".strip() + null

    @property
    def bounds(self) -> str:
        """Limits of numbers: ``>= 0 and < 1``."""
        setting = self.setting
        limits = {">": setting.above, ">=": setting.low, "<": setting.below, "<=": setting.high}
        return " and ".join(
            f"{sign} {limit if isinstance(limit, int) else f'{limit:g}'}"
            for sign, limit in limits.items()
            if limit is not None
        )


def _shown(value: object) -> str:
    """A value as it was given, or its type where Python does not print it: an integer of 5,000 digits."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"this {type(value).__name__}"
