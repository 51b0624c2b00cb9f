"""Checks of models that name items by codes: settings that do not go together, before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.grounding.rules import check_grounding
from recbole_llm.lazy import needs_package
from recbole_llm.registry import find_choice
from recbole_llm.semantic_ids.settings import NEXT
from recbole_llm.settings.stage_checks import reads_states

RANKS_CODES = ("constrained", "likelihood")


def check_codes(model: str, settings: Settings) -> None:
    """Refuse what does not go with codes.

    Args:
        model: name of the model, for the message.
        settings: of the run, resolved.

    Raises:
        InputError: which setting.
    """
    if settings["grounding"] not in RANKS_CODES:
        raise InputError(
            "grounding",
            f"{settings['grounding']} compares titles, and {model} answers with codes; set "
            f"--grounding={' or '.join(RANKS_CODES)}",
            kind="conflict",
        )
    if settings["candidates"]:
        raise InputError(
            "candidates", f"prompts of {model} hold codes and list no titles; leave candidates out", kind="conflict"
        )
    check_grounding(settings)
    if settings["sid_assign"] == "sample" and settings["sid_quantizer"] != "rqvae":
        raise InputError(
            "sid_assign",
            f"sample is for sid_quantizer: rqvae, and {settings['sid_quantizer']} draws nothing; leave it out",
            kind="conflict",
        )
    adapter = find_choice("adapter", settings["adapter"])
    if reads_states(adapter, settings) and list(settings["sid_tasks"]) != [NEXT]:
        raise InputError(
            "sid_tasks",
            f"adapter {settings['adapter']} goes by a row's history, and only {NEXT} has one; set --sid_tasks=[{NEXT}]",
            kind="conflict",
        )
    if find_spec("faiss") is None:
        raise needs_package("sid_quantizer", "faiss-cpu", "choose another model")
