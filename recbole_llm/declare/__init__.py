"""Settings, each declared once: a field of a frozen dataclass whose annotation says what it means and may be.

    @dataclass(frozen=True)
    class MySelector(Selector):
        n_groups: Annotated[int, Setting("strata of equal width", low=1)] = 50

    name = "mine"  # so that the field is the key mine_n_groups

Everything else that knows of the setting is derived from that line: the check and its wording, ``from_settings``, the
commented property files, ``--help`` and the page of settings.
"""

from recbole_llm.declare.declared import Declared, MutableSettings, Settings, keys_by_name, keys_of
from recbole_llm.declare.key import LARGEST, NO_DEFAULT, Key, Setting

__all__ = [
    "LARGEST",
    "NO_DEFAULT",
    "Declared",
    "Key",
    "MutableSettings",
    "Setting",
    "Settings",
    "keys_by_name",
    "keys_of",
]
