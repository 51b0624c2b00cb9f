"""Checks of groundings' settings, without torch and before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

# The parts of FAISS's factory strings: whole words, and words that numbers and options follow.
_PART = re.compile(
    r"R?Flat|FlatDedup|L2[nN]orm|IDMap2?|LSHr?t?"
    r"|(IVF|IMI|HNSW|NSG|NNDescent|PQ|SQ|RQ|LSQ|PRQ|PLSQ|RCQ|LSCQ|RaBitQ|ZnLattice|PCA|OPQ|ITQ|RR|Pad|Refine|Residual)\w*"
)
_SEARCH = re.compile(r"[A-Za-z_]\w*=\d+(\.\d+)?")


def check_grounding(settings: Settings) -> None:
    """Refuse what the grounding of these settings does not take.

    A grounding of another distribution says so itself, in :meth:`recbole_llm.grounding.base.Grounding.check`.

    Raises:
        InputError: settings that do not go together, or a malformed ``faiss_index``.
    """
    check_factory(settings["faiss_index"])
    check_search(settings["faiss_search"])
    if rule := RULES.get(settings["grounding"]):
        rule(settings)


def check_factory(factory: str) -> None:
    """Refuse what cannot be a FAISS factory string; whether FAISS takes it for these items shows when it is built.

    Args:
        factory: value of ``faiss_index``, such as ``IVF64,Flat``.

    Raises:
        InputError: a part that FAISS has no word for, or a bracket without its other one.

    Example:
        >>> check_factory("OPQ16_64,IVF256(IVF16,Flat),PQ16x4fs,RFlat")
    """
    outside = factory
    while outside != (inner := re.sub(r"\([^()]*\)", "", outside)):  # the innermost brackets go first
        outside = inner
    if not re.search(r"[()]", outside) and all(_PART.fullmatch(part.strip()) for part in outside.split(",")):
        return
    raise InputError(
        "faiss_index",
        f"faiss refuses the index {factory!r}, which is no factory string; use 'Flat' (exact) or a factory string such "
        "as 'HNSW32'",
    )


def check_search(parameters: str | None) -> None:
    """Refuse what FAISS cannot read as search parameters; whether the index has them shows when it is built.

    Args:
        parameters: value of ``faiss_search``, such as ``nprobe=16``.

    Raises:
        InputError: a part that is not ``name=number``.

    Example:
        >>> check_search("nprobe=16,quantizer_efSearch=64")
    """
    wrong = [part for part in (parameters or "").split(",") if parameters and not _SEARCH.fullmatch(part.strip())]
    if wrong:
        raise InputError("faiss_search", f"'{wrong[0]}' is no name=number; give for example nprobe=16, or efSearch=64")


def check_by_distance(settings: Settings) -> None:
    """Refuse what grounding by the distance of free text does not take.

    Raises:
        InputError: ``lm_weight``, or search parameters of an index that is exact.
    """
    if settings["lm_weight"] < 1:
        raise InputError(
            "lm_weight",
            "grounding=embedding does not use the probabilities of titles; set --grounding=constrained or likelihood",
            kind="conflict",
        )
    if settings["faiss_search"] and settings["faiss_index"] == "Flat":
        raise InputError(
            "faiss_search",
            f"'{settings['faiss_search']}' only applies to an approximate index, and faiss_index is Flat; leave "
            "faiss_search out, or set --faiss_index=IVF64,Flat or the like",
            kind="conflict",
        )


def check_interleaved(settings: Settings) -> None:
    """Refuse what grounding by the lists of all beams does not take.

    Raises:
        InputError: ``lm_weight``, ``reweight``, or an approximate index.
    """
    if settings["lm_weight"] < 1:
        raise InputError(
            "lm_weight",
            "grounding=interleaved does not use the probabilities of titles; set --grounding=constrained or likelihood",
            kind="conflict",
        )
    if settings["reweight"] != "none":
        raise InputError(
            "reweight",
            "weighs the distances of one answer, and grounding=interleaved merges the lists of several; set "
            "--reweight=none, or --grounding=embedding",
            kind="conflict",
        )
    for key, allowed in (("faiss_index", "Flat"), ("faiss_search", None)):
        if settings[key] != allowed:
            raise InputError(
                key,
                f"'{settings[key]}' does not apply: grounding=interleaved looks at the distances of all items, which "
                f"are exact; leave {key} out",
                kind="conflict",
            )


def check_by_title(settings: Settings) -> None:
    """Refuse what grounding by probabilities of titles does not take.

    Raises:
        InputError: ``reweight``.
    """
    if settings["reweight"] != "none":
        raise InputError(
            "reweight",
            f"needs distances, which grounding={settings['grounding']} does not compute; set --reweight=none, or "
            "--grounding=embedding",
            kind="conflict",
        )


def check_by_beam(settings: Settings) -> None:
    """Refuse what grounding by constrained beams does not take.

    Raises:
        InputError: ``reweight``, fewer beams than items to rank, or an evaluation among sampled items.
    """
    check_by_title(settings)
    topk, beams = settings["topk"], settings["num_beams"]
    longest = max(topk) if isinstance(topk, list | tuple) else topk
    if longest > beams:
        raise InputError(
            "topk", f"{beams} constrained beams do not rank {longest} items; set --num_beams={longest}", kind="conflict"
        )
    if sampled := [mode for mode in settings["eval_args"]["mode"].values() if mode != "full"]:
        raise InputError(
            "eval_args",
            f"mode: {sampled[0]}: constrained beams search the whole catalogue, not sampled candidates; "
            "set mode: full, or --grounding=likelihood",
            kind="conflict",
        )


RULES: Mapping[str, Callable[[Settings], None]] = {
    "embedding": check_by_distance,
    "interleaved": check_interleaved,
    "constrained": check_by_beam,
    "likelihood": check_by_title,
}
