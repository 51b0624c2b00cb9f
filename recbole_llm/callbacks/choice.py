"""The callbacks that the setting ``callbacks`` names."""

from __future__ import annotations

from importlib.util import find_spec

from recbole_llm.callbacks.base import Callbacks
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.lazy import needs_package
from recbole_llm.registry import CALLBACKS, added_choices, load_class, load_entry


def _names(settings: Settings) -> list[str]:
    given = settings["callbacks"]
    parts = given if isinstance(given, list) else [given or ""]
    return list(dict.fromkeys(name for part in parts for name in str(part).replace(",", " ").split()))


def check_callbacks(settings: Settings) -> None:
    """Refuse a callback that there is not, or whose package is not installed; imports neither.

    Args:
        settings: settings of the run.

    Raises:
        InputError: which.
    """
    for name in _names(settings):
        if name in CALLBACKS:
            if find_spec(name) is None:  # ours have their package's name
                raise needs_package("callbacks", name, "leave it out")
        elif name not in added_choices("callback"):
            known = ", ".join([*CALLBACKS, *added_choices("callback")])
            raise InputError("callbacks", f"there is no callback named '{name}'; choose from: {known}", kind="unknown")


def make_callbacks(settings: Settings) -> Callbacks:
    """The callbacks of a run, none of them told anything yet.

    Args:
        settings: settings of the run.

    Raises:
        InputError: see :func:`check_callbacks`.

    Example:
        >>> bool(make_callbacks({"callbacks": None}))
        False
    """
    check_callbacks(settings)
    added = added_choices("callback")
    kinds = [load_class(CALLBACKS[name]) if name in CALLBACKS else load_entry(added[name]) for name in _names(settings)]
    return Callbacks([kind() for kind in kinds])
