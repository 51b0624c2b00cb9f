"""Cache layers for beam search: a step writes one slot, and re-ordering beams moves only the answers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicLayer


def make_room(cache: Cache, n_tokens: int) -> None:
    """Replaces the plain layers of a filled cache by ones with room for `n_tokens` more; others stay as they are."""
    for index in range(len(cache.layers)):  # layer by layer, so that never all of them are there twice
        if type(cache.layers[index]) is DynamicLayer:
            cache.layers[index] = BeamLayer(cache.layers[index], n_tokens)


class BeamLayer(DynamicLayer):  # type: ignore[misc]  # transformers declares no types
    """A cache layer that grows within its room, where the library's layer copies itself at every step.

    The beams of a prompt share the keys and values of that prompt, so those need not move when the beams change.

    Args:
        layer: Filled layer of which each beam holds its whole prompt: keys and values [beams, heads, prompt, d].
        room: Number of slots to add.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._n_prompt = layer.get_seq_length()
        self._storage = [F.pad(states, (0, 0, 0, room)) for states in (layer.keys, layer.values)]
        self._show(self._n_prompt)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends states [beams, heads, new, d]; returns all keys and values, as views."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for states, new in zip(self._storage, (key_states, value_states), strict=True):
            states[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continues with the beams `beam_idx`; if their number stays, each must replace one of the same prompt."""
        length, beam_idx = self.get_seq_length(), beam_idx.to(self.device)
        if len(beam_idx) != len(self.keys):
            self._storage = [states.index_select(0, beam_idx) for states in self._storage]
        else:
            for states in self._storage:
                answers = states[:, :, self._n_prompt : length]
                answers.copy_(answers.index_select(0, beam_idx))
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (states[:, :, :length] for states in self._storage)
