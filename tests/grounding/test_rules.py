"""Which FAISS factory strings are refused before FAISS is loaded."""

from __future__ import annotations

import pytest

from recbole_llm.grounding.rules import check_factory
from tests.refusals import refused

FACTORIES = (
    *("Flat", "HNSW32", "HNSW32_SQ8", "HNSW32,Flat", "IVF64,Flat", "IVF64_HNSW8,PQ8", "IVF64(IVF8,Flat),SQ8"),
    *("PCA8,Flat", "PCAR8,IVF16,SQ4", "PCAW8,Flat", "OPQ8_16,IVF16,PQ8x4fs", "OPQ8,PQ8", "L2norm,Flat", "RR8,Flat"),
    *("Pad48,Flat", "ITQ16,LSH", "LSH", "LSHrt", "SQfp16", "SQ8", "IMI2x4,PQ8", "IVF16,PQ8,RFlat", "IDMap,Flat"),
    *("IVF16,PQ8,Refine(SQ8)", "NSG16", "NSG16,Flat", "RQ4x4", "LSQ4x4", "PRQ2x2x4", "IVF64,FlatDedup", "PQ8np"),
)


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
