"""The adapter of models that train no weight of the LLM, only modules beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_llm.adapter.base import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class FrozenAdapter(Adapter):
    """Freezes the LLM; for :class:`recbole_llm.adapter.AdapterWithModules`, whose modules learn alone.

    Example:
        >>> FrozenAdapter().facts()
        {'adapter': 'frozen'}
    """

    name: ClassVar[str] = "frozen"

    def attach(self, model: PreTrainedModel) -> PreTrainedModel:
        """See :class:`Adapter`; nothing is attached."""
        return model.requires_grad_(False)

    def untuned(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """See :class:`Adapter`; the LLM is always that."""
        return nullcontext(model)

    def facts(self) -> dict[str, Any]:
        """See :class:`Adapter`."""
        return {"adapter": self.name}

    def trainable_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """See :class:`Adapter`; there are none."""
        return {}

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """See :class:`Adapter`; there is none."""
        return {}

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See :class:`Adapter`.

        Raises:
            ValueError: there is something to load.
        """
        if state:
            raise ValueError(f"a frozen LLM has no trained weights, and {len(state)} are given")

    def _save_weights(self, model: nn.Module, folder: Path) -> None:
        """Nothing is saved."""

    def _load_weights(self, model: nn.Module, folder: Path) -> None:
        """Nothing is read."""
