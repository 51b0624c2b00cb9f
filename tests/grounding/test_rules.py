"""Settings of groundings that are refused before torch or FAISS is loaded, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.errors import InputError
from recbole_llm.grounding.rules import RULES, check_factory, check_grounding, check_search
from tests.refusals import refused

FACTORIES = (
    *("Flat", "HNSW32", "HNSW32_SQ8", "HNSW32,Flat", "IVF64,Flat", "IVF64_HNSW8,PQ8", "IVF64(IVF8,Flat),SQ8"),
    *("PCA8,Flat", "PCAR8,IVF16,SQ4", "PCAW8,Flat", "OPQ8_16,IVF16,PQ8x4fs", "OPQ8,PQ8", "L2norm,Flat", "RR8,Flat"),
    *("Pad48,Flat", "ITQ16,LSH", "LSH", "LSHrt", "SQfp16", "SQ8", "IMI2x4,PQ8", "IVF16,PQ8,RFlat", "IDMap,Flat"),
    *("IVF16,PQ8,Refine(SQ8)", "NSG16", "NSG16,Flat", "RQ4x4", "LSQ4x4", "PRQ2x2x4", "IVF64,FlatDedup", "PQ8np"),
)
SETTINGS = {
    "faiss_index": "Flat",
    "faiss_search": None,
    "lm_weight": 1.0,
    "reweight": "none",
    "topk": [5, 10],
    "num_beams": 10,
    "eval_args": {"mode": {"valid": "full", "test": "full"}},
}
MODES = st.sampled_from(["full", "full", "full", "uni100", "pop20"])  # mostly what goes together
RANDOM = st.fixed_dictionaries(
    {
        "grounding": st.sampled_from([*RULES, "of another package"]),
        "faiss_index": st.sampled_from(["Flat", "HNSW32", "IVF64,Flat"]),
        "faiss_search": st.sampled_from([None, "nprobe=16"]),
        "lm_weight": st.sampled_from([0.0, 0.5, 1.0, 1.0]),
        "reweight": st.sampled_from(["none", "none", "popularity", "collaborative"]),
        "topk": st.integers(1, 12) | st.lists(st.integers(1, 12), min_size=1, max_size=3),
        "num_beams": st.integers(1, 12),
        "eval_args": st.fixed_dictionaries({"mode": st.fixed_dictionaries({"valid": MODES, "test": MODES})}),
    }
)


def reasons(settings: dict[str, Any]) -> set[str]:
    """The settings that do not go with the grounding, by what each grounding computes."""
    of = settings["grounding"]
    longest = max([settings["topk"]] if isinstance(settings["topk"], int) else settings["topk"])
    by_distance = of in ("embedding", "interleaved")
    found = {
        "lm_weight": by_distance and settings["lm_weight"] != 1,  # no probabilities of titles to weigh
        "reweight": of in ("interleaved", "constrained", "likelihood") and settings["reweight"] != "none",
        "faiss_index": of == "interleaved" and settings["faiss_index"] != "Flat",
        "faiss_search": settings["faiss_search"] is not None
        and (of == "interleaved" or (of == "embedding" and settings["faiss_index"] == "Flat")),
        "topk": of == "constrained" and longest > settings["num_beams"],
        "eval_args": of == "constrained" and set(settings["eval_args"]["mode"].values()) != {"full"},
    }
    return {key for key, is_wrong in found.items() if is_wrong}


@given(RANDOM)
def test_what_does_not_go_together_is_refused_by_its_key_and_nothing_else_is(settings):
    wrong = reasons(settings)
    try:
        check_grounding(settings)
    except InputError as error:
        assert error.key in wrong and error.kind == "conflict"
    else:
        assert not wrong


@pytest.mark.parametrize(
    ("grounding", "changed", "advice"),
    [
        ("embedding", {"lm_weight": 0.5}, "set --grounding=constrained or likelihood"),
        ("embedding", {"faiss_search": "nprobe=2"}, "set --faiss_index=IVF64,Flat or the like"),
        ("interleaved", {"reweight": "popularity"}, "set --reweight=none, or --grounding=embedding"),
        ("interleaved", {"faiss_index": "HNSW32"}, "leave faiss_index out"),
        ("likelihood", {"reweight": "popularity"}, "which grounding=likelihood does not compute"),
        ("constrained", {"topk": [20, 5]}, "10 constrained beams do not rank 20 items; set --num_beams=20"),
        ("constrained", {"eval_args": {"mode": {"valid": "full", "test": "uni100"}}}, "mode: uni100"),
    ],
)
def test_a_refusal_says_what_to_do(grounding, changed, advice):
    check_grounding({**SETTINGS, "grounding": grounding})
    with refused(next(iter(changed)), "conflict", advice):
        check_grounding({**SETTINGS, "grounding": grounding, **changed})


@pytest.mark.parametrize("topk", [8, 9, 10, [3, 9], [10]])
def test_as_many_constrained_beams_as_items_or_more_are_taken(topk):
    check_grounding({**SETTINGS, "grounding": "constrained", "topk": topk})
    with refused("topk", "conflict", "7 constrained beams do not rank"):
        check_grounding({**SETTINGS, "grounding": "constrained", "topk": topk, "num_beams": 7})


@pytest.mark.parametrize("grounding", RULES)
def test_the_index_is_checked_whatever_the_grounding(grounding):
    with refused("faiss_index", "value"):
        check_grounding({**SETTINGS, "grounding": grounding, "faiss_index": "Flatt"})
    with refused("faiss_search", "value"):
        check_grounding({**SETTINGS, "grounding": grounding, "faiss_search": "16"})


@pytest.mark.parametrize("factory", FACTORIES)
def test_what_faiss_takes_is_taken(factory):
    faiss = pytest.importorskip("faiss")
    faiss.index_factory(32, factory)
    check_factory(factory)


@pytest.mark.parametrize(
    "factory", ["Flatt", "flat", "", "IVF64;Flat", "IVF64,Flatt", "IVF64(IVF8,Flat", "HSNW32", ","]
)
def test_what_is_no_factory_string_is_refused(factory):
    with refused("faiss_index", "value", "use 'Flat' \\(exact\\) or a factory string such as 'HNSW32'") as caught:
        check_factory(factory)
    assert (caught.value.key, caught.value.kind) == ("faiss_index", "value")


@pytest.mark.parametrize("parameters", [None, "", "nprobe=16", "nprobe=16, quantizer_efSearch=64", "a1=0.5"])
def test_search_parameters_are_names_with_numbers(parameters):
    check_search(parameters)


@pytest.mark.parametrize(
    ("parameters", "named"), [("16", "16"), ("nprobe=", "nprobe="), ("nprobe=4,x", "x"), ("nprobe=a,b", "nprobe=a")]
)
def test_other_search_parameters_are_refused_by_the_first_wrong_part(parameters, named):
    with refused("faiss_search", "value", f"'{named}' is no name=number"):
        check_search(parameters)
