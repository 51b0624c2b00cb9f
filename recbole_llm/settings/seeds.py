"""``seeds``: the seeds that a comparison runs every model with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llm.errors import InputError

MOST = 100  # runs of a model; a larger number is a seed that was meant
ONE_SEED = "--seed takes one integer; for several runs use --seeds=1,2,3"
_ALLOWED = "give a number of runs, --seeds=5, or different seeds >= 0, --seeds=1,2,3"


def check_seeds(seeds: Any) -> int | tuple[int, ...]:
    """A number of runs, or the seeds themselves.

    Raises:
        InputError: something else, or more runs than anybody means.

    Example:
        >>> check_seeds(5), check_seeds([1, 2])
        (5, (1, 2))
    """
    if _is_count(seeds) and 1 <= seeds <= MOST:
        return int(seeds)
    if _is_count(seeds) and seeds > MOST:
        raise InputError("seeds", f"{seeds} runs of every model are more than {MOST}; for one seed use --seed={seeds}")
    if isinstance(seeds, Sequence) and not isinstance(seeds, str) and seeds and all(map(_is_count, seeds)):
        if len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds):
            return tuple(seeds)
    raise InputError("seeds", f"{list(seeds) if isinstance(seeds, tuple) else seeds!r} is not allowed; {_ALLOWED}")


def check_one_seed(shared: Mapping[str, Any], per_model: Mapping[str, Mapping[str, Any]], seeds: Any) -> None:
    """Refuse a list as ``seed``, and a ``seed`` that ``seeds`` would have no effect on or would replace.

    Args:
        shared: settings of all models.
        per_model: settings of one model only, by its name.
        seeds: what is given as ``seeds``, None for nothing.
    """
    for owner, settings in (("", shared), *per_model.items()):
        seed, name = settings.get("seed"), f"{owner}.seed" if owner else "seed"
        if isinstance(seed, list | tuple):
            raise InputError(name, ONE_SEED)
        if seed is not None and seeds is not None and (owner or not isinstance(seeds, int)):
            raise InputError(name, "the seeds of all models are given by seeds; leave it out", kind="conflict")


def seed_list(seeds: int | tuple[int, ...], first: int) -> tuple[int, ...]:
    """The seeds: those given, or as many as asked for from the setting ``seed`` on.

    Example:
        >>> seed_list(3, 2020), seed_list((7, 1), 2020)
        ((2020, 2021, 2022), (7, 1))
    """
    return tuple(range(first, first + seeds)) if isinstance(seeds, int) else seeds


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
