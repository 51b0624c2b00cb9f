"""The beam layer holds what the library's layer holds after the same updates and changes of beams."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, DynamicLayer
from transformers.cache_utils import DynamicSlidingWindowLayer

from recbole_llm.llm.beam_cache import BeamLayer, make_room


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10**6))
def test_equals_the_growing_layer(n_rows, width, n_steps, seed):
    torch.manual_seed(seed)
    reference = DynamicLayer()
    prompt = torch.randn(2, n_rows, 2, 3, 4).repeat_interleave(width, dim=1)  # beams of a row share its prompt
    reference.update(*prompt)
    layer = BeamLayer(reference, room=n_steps)
    for _ in range(n_steps):
        new = torch.randn(2, n_rows * width, 2, 1, 4)
        for found, expected in zip(layer.update(*new), reference.update(*new), strict=True):
            assert torch.equal(found, expected)
        keep = (torch.rand(n_rows) < 0.7).nonzero()
        keep = keep if len(keep) else torch.tensor([[0]])
        n_rows = len(keep)
        beams = (keep * width + torch.randint(width, (n_rows, width))).flatten()
        for cache in (layer, reference):
            cache.reorder_cache(beams)
        assert layer.get_seq_length() == reference.get_seq_length()
        assert torch.equal(layer.keys, reference.keys) and torch.equal(layer.values, reference.values)


def test_only_plain_layers_are_replaced():
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4)]
    for layer in cache.layers:
        layer.update(*torch.randn(2, 1, 2, 3, 4))
    make_room(cache, 2)
    assert [type(layer) for layer in cache.layers] == [BeamLayer, DynamicSlidingWindowLayer]
