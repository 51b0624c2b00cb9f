"""The LLM of a run: loaded or built as its settings say, and its longest prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recbole_llm.errors import InputError
from recbole_llm.llm.backbone import Backbone, check_llm, load_backbone
from recbole_llm.llm.capabilities import n_positions
from recbole_llm.llm.folders import find_llm
from recbole_llm.llm.gguf import GGUFStage
from recbole_llm.llm.memory import keep_freed_memory
from recbole_llm.llm.precision import resolve_dtype
from recbole_llm.llm.settings import TINY, BackboneSettings
from recbole_llm.settings.config import Config
from recbole_llm.stages import StageStore

log = logging.getLogger(__name__)


def load_llm(config: Config, device: torch.device, stages: StageStore, build_tiny: Callable[[], Path]) -> Backbone:
    """The LLM that a config names, without an adapter.

    Args:
        config: the resolved config.
        device: where it computes.
        stages: keeps what was read from a GGUF file.
        build_tiny: gives the folder of the tiny LLM, where ``llm_path`` asks for that.
    """
    settings = BackboneSettings.from_settings(config.final_config_dict)
    path: str | Path = settings.llm_path
    if device.type == "cpu":
        keep_freed_memory()
    if path == TINY:
        log.warning("llm_path is 'tiny': a small LLM made from this data set's titles, for trying out, not for claims.")
        path = build_tiny()
    elif isinstance(found := find_llm(path), Path) and found.is_file():
        path = stages.run(GGUFStage(found))
    return load_backbone(path, device=device, **settings.options())


def weight_facts(config: Config) -> dict[str, Any]:
    """Number types that an LLM's weights are loaded in, for what depends on the untuned LLM, as JSON values."""
    return {"dtype": resolve_dtype(config["llm_dtype"], config["device"]), "quant": config["quant"]}


def number_facts(config: Config) -> dict[str, Any]:
    """Number types that a run's LLM computes in, for what depends on it, as JSON values."""
    facts = weight_facts(config)
    if config["adapter"] == "full" and facts["dtype"] != "float32":
        facts["trained in"] = "float32"
    return {**facts, **({"autocast": "bfloat16"} if computes_in_half(config) else {})}


def computes_in_half(config: Config) -> bool:
    """Whether weights in float32 are computed with in bfloat16.

    Where all weights of an LLM learn, they are kept in float32 whatever ``llm_dtype`` says: in fewer bits, most steps
    would be rounded away.
    """
    halved = resolve_dtype(config["llm_dtype"], config["device"]) == "bfloat16"
    return bool(config["enable_amp"]) or (config["adapter"] == "full" and halved)


def check_backbone(config: Config) -> None:
    """Refuse an LLM that is not there, or is no causal LM, before anything is trained.

    Args:
        config: the resolved config.

    Raises:
        InputError: what is wrong with ``llm_path``.
    """
    own = BackboneSettings.from_settings(config.final_config_dict)
    if own.llm_path != TINY:
        check_llm(own.llm_path, trust_remote_code=own.trust_remote_code, revision=own.llm_revision)


def positions_of(backbone: Backbone) -> int | None:
    """Tokens that an LLM was made for; None where it does not tell."""
    return n_positions(backbone.model)


def prompt_limit(backbone: Backbone, wanted: int, answer: int, free_answer: int) -> int:
    """Tokens of a prompt, at most.

    Args:
        backbone: the LLM.
        wanted: ``max_prompt_tokens``.
        answer: tokens reserved after the prompt.
        free_answer: ``max_new_tokens``; an answer that takes more is a title.

    Returns:
        ``wanted``, or fewer where the LLM has no positions for so many and an answer.

    Raises:
        InputError: an answer alone takes all positions.
    """
    positions = positions_of(backbone)
    if positions is None or wanted + answer <= positions:
        return wanted
    if answer >= positions:
        message = f"tokens, and the LLM has {positions:,} positions for prompt and answer"
        if answer > free_answer:
            message = f"the longest title has {answer:,} {message}; give an LLM with more"
            raise InputError("llm_path", message, kind="conflict")
        message = f"answers may take {answer:,} {message}; set a smaller one, or give an LLM with more"
        raise InputError("max_new_tokens", message, kind="conflict")
    log.warning("Prompts are cut to %d tokens: the LLM has %d positions.", positions - answer, positions)
    return positions - answer
