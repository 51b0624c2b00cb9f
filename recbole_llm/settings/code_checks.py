"""Checks of models that name items by codes."""

from __future__ import annotations

from importlib.util import find_spec

from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.grounding.rules import check_grounding
from recbole_llm.lazy import needs_package
from recbole_llm.registry import find_choice
from recbole_llm.semantic_ids.settings import NEXT, USER_SEARCH
from recbole_llm.settings.stage_checks import reads_states

RANKS_CODES = ("constrained", "likelihood")


def check_codes(model: str, settings: Settings, is_twin: bool = False) -> None:
    """Refuse what does not go with codes.

    Args:
        model: name of the model, for the message.
        settings: settings of the run, resolved.
        is_twin: whether users may have codes and codes may change.

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
            f"adapter {settings['adapter']} reads a row's history, which only {NEXT} has; set --sid_tasks=[{NEXT}]",
            kind="conflict",
        )
    if USER_SEARCH in settings["sid_tasks"] and not (is_twin and settings["user_tower"]):
        raise InputError(
            "sid_tasks",
            f"{USER_SEARCH} is about users' codes, and there are none; use --model=TTDS with user_tower: True",
            kind="conflict",
        )
    if is_twin:
        _check_twin(model, settings)
    if find_spec("faiss") is None:
        raise needs_package("sid_quantizer", "faiss-cpu", "choose another model")


def _check_twin(model: str, settings: Settings) -> None:
    """Refuse codes of users, or codes that change, where something that they need is not there."""
    follows = [key for key in ("refresh_every", "con_weight", "rec_weight") if settings[key]]
    if follows and settings["sid_source"] != "text":
        raise InputError(
            follows[0],
            f"{settings[follows[0]]} needs the LLM's states of texts, and sid_source is {settings['sid_source']}; "
            f"set --sid_source=text, or {', '.join(follows)} to 0",
            kind="conflict",
        )
    towers = [key for key in ("refresh_every", "user_tower") if settings[key]]
    if towers and settings["sid_quantizer"] != "rqvae":
        raise InputError(
            "sid_quantizer",
            f"{settings['sid_quantizer']} has no weights to train; set --sid_quantizer=rqvae, or "
            f"{towers[0]} to {'0' if towers[0] == 'refresh_every' else 'False'}",
            kind="conflict",
        )
    if settings["user_text_fields"] and (not settings["user_tower"] or settings["sid_source"] != "text"):
        without = "users have no codes" if not settings["user_tower"] else "items' vectors are of no texts"
        raise InputError(
            "user_text_fields",
            f"{without}, so nothing reads users' texts; set user_tower: True and sid_source: text, or leave it out",
            kind="conflict",
        )
    if settings["fixed_epochs"] and not settings["epochs"]:
        raise InputError(
            "fixed_epochs", "it is a second tuning, and epochs is 0; set epochs, or leave fixed_epochs out",
            kind="conflict",
        )  # fmt: skip
    if settings["user_tower"] and not settings["epochs"]:
        raise InputError(
            "epochs",
            f"users of {model} get their codes in training, and 0 trains nothing; set user_tower: False",
            kind="conflict",
        )
    if reads_states(find_choice("adapter", settings["adapter"]), settings) and follows:
        raise InputError(
            "adapter",
            f"{settings['adapter']} reads a row's history, which texts and codes do not have; choose lora or full",
            kind="conflict",
        )
