"""The search space: settings and their values, in the syntax of RecBole's ``hyper.test``.

A line names a setting, a kind of range and its values; ``#`` begins a comment::

    learning_rate      loguniform -8,0            # e^-8 to e^0, as in RecBole
    embedding_size     choice [32, 64, 128]
    dropout_prob       uniform 0.1,0.5
    train_batch_size   quniform 32,128,32         # multiples of 32
    lora_r             choice [4, 8]
    SASRec.n_layers    choice [1, 2]              # the model's name may stand before the setting
    weight_decay       logrange 1e-6,1e-2         # not in RecBole: loguniform with the bounds themselves
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.declare import LARGEST
from recbole_llm.errors import InputError
from recbole_llm.experiment.tune_dimensions import Choice, Dimension, Range, Steps
from recbole_llm.settings.values import parse_setting, parse_value

KINDS = ("choice", "uniform", "quniform", "loguniform", "logrange")
# What a search compares by, or where it writes: these stay as they are.
FIXED = (
    *("model", "dataset", "data_path", "checkpoint_dir", "config_files", "seed", "seeds", "baseline", "sample_seed"),
    *("eval_args", "valid_metric", "metrics", "topk", "valid_sample_size", "test_sample_size"),
)


Space = Mapping[str, Dimension]
"""Settings to their values, in the order in which they are drawn."""


def read_space(file: str | Path) -> dict[str, Dimension]:
    """The space of a file in the syntax of RecBole's ``hyper.test``.

    Raises:
        InputError: no such file, or a line of it that is wrong, with its number.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError("params_file", f"{file}: {reason}", kind="file") from error
    return parse_space(text.splitlines(), "params_file", f"{file}, line ")


def parse_space(lines: Sequence[str], key: str = "params", where: str = "part ") -> dict[str, Dimension]:
    """The space that lines describe; nothing of them is evaluated.

    Args:
        lines: see this module.
        key: the setting they come from, for what is said of a wrong one.
        where: what stands before a line's number there.

    Raises:
        InputError: a line is wrong, or names a setting again; or there is none.

    Example:
        >>> space = parse_space(["alpha choice [0, 1]", "learning_rate loguniform -8,0"])
        >>> {name: str(dimension) for name, dimension in space.items()}
        {'alpha': '0, 1', 'learning_rate': '0.0003355 to 1, logarithmic'}
    """
    space: dict[str, Dimension] = {}
    for number, line in enumerate(lines, start=1):
        words = _without_comment(line).split(None, 2)
        if not words:
            continue
        try:
            if len(words) < 3:
                raise InputError("", "name a setting, a kind of range and its values, such as 'alpha choice [0, 1]'")
            name = words[0].removeprefix("--")
            if name in space:
                raise InputError("", f"{name} is named again; keep one", kind="conflict")
            space[name] = parse_dimension(name, words[1], words[2].strip())
        except InputError as error:
            raise InputError(key, f"{where}{number}: {error}", kind=error.kind) from error
    if not space:
        raise InputError(key, "it names no setting to search; give lines such as 'alpha choice [0, 1]'", kind="missing")
    return space


def as_space(given: Mapping[str, Any]) -> dict[str, Dimension]:
    """A space given in Python: a list is a choice, a text is what follows a setting's name in a line.

    Raises:
        InputError: a value that is neither, or no value at all.

    Example:
        >>> as_space({"alpha": [0, 1], "learning_rate": "logrange 1e-4,1e-2"})["learning_rate"].ends
        (0.0001, 0.01)
    """
    space: dict[str, Dimension] = {}
    for name, values in given.items():
        if isinstance(values, str):
            kind, _, rest = values.strip().partition(" ")
            space[name] = parse_dimension(name, kind, rest.strip())
        elif isinstance(values, list | tuple):
            space[name] = _choice(name, list(values))
        else:
            raise InputError(name, f"{values!r} is no range; give a list, or text such as 'uniform 0.1,0.5'")
    if not space:
        raise InputError("space", "it names no setting to search", kind="missing")
    return space


def parse_dimension(name: str, kind: str, text: str) -> Dimension:
    """The values of one setting.

    Args:
        name: name of the setting.
        kind: one of :data:`KINDS`.
        text: what follows the kind.

    Raises:
        InputError: there is no such kind, or the text does not fit it.
    """
    if kind not in KINDS:
        raise InputError(
            name, f"there is no kind of range named '{kind}'; choose one of {', '.join(KINDS)}", kind="unknown"
        )
    if kind == "choice":
        value = parse_value(text)
        if not isinstance(value, list):
            raise InputError(name, f"choice takes a list, such as [1, 2], not '{text}'")
        return _choice(name, value)
    numbers = [_number(name, kind, word) for word in text.split(",")]
    if len(numbers) != (3 if kind == "quniform" else 2):
        shape = "low,high,step" if kind == "quniform" else "low,high"
        raise InputError(name, f"{kind} takes {shape}, not '{text}'")
    low, high = numbers[0], numbers[1]
    if low >= high:
        raise InputError(name, f"{kind} {text}: the first number must be below the second")
    if kind == "quniform":
        return _steps(name, low, high, numbers[2], text)
    if kind == "logrange" and low <= 0:
        raise InputError(name, f"logrange {text}: its numbers must be > 0")
    if kind == "loguniform":
        low, high = _exponential(name, low), _exponential(name, high)
    return Range(float(low), float(high), log=kind.startswith("log"))


def _choice(name: str, values: list[Any]) -> Choice:
    found = Choice(tuple(parse_setting(name, one) if isinstance(one, str) else one for one in values))
    if not values or len(set(found.words)) < len(values):
        raise InputError(name, f"{values!r} is not allowed; give one or more values, each once")
    return found


def _steps(name: str, low: float, high: float, step: float, text: str) -> Steps:
    if step <= 0:
        raise InputError(name, f"quniform {text}: the step must be > 0")
    if not all(math.isfinite(end / step) for end in (low, high)):
        raise InputError(name, f"quniform {text}: the step is too small for these bounds; give a larger one")
    whole = all(isinstance(number, int) for number in (low, high, step))
    return Steps(round(low / step), round(high / step), int(step) if whole else float(step))


def _number(name: str, kind: str, word: str) -> float:
    for of in (int, float):
        try:
            number = of(word.strip())
        except ValueError:
            continue
        if abs(number) < math.inf and (of is float or abs(number) <= LARGEST):  # no conversion: it may be too large
            return number
    raise InputError(name, f"{kind}: '{word.strip()}' is not a number")


def _exponential(name: str, exponent: float) -> float:
    """Of a bound of ``loguniform``, which is the logarithm of what is meant."""
    if abs(exponent) > 300:
        raise InputError(
            name, f"loguniform: e to the {exponent:g} is no useful bound; logrange takes the bounds themselves"
        )
    return math.exp(exponent)


def _without_comment(line: str) -> str:
    """A ``#`` begins a comment at the line's start and behind a blank."""
    if line.lstrip().startswith("#"):
        return ""
    return line.partition(" #")[0].partition("\t#")[0]
