"""Full fine-tuning: every weight of the LLM is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_llm.adapter.base import Adapter
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class FullAdapter(Adapter):
    """All weights learn, in float32. A frozen copy of the untuned LLM is kept in main memory, in its own number type.

    Weights of fewer bits would round most steps away; passes may compute in bfloat16 all the same (autocast).

    Example:
        >>> FullAdapter.from_settings({}).facts()
        {'adapter': 'full'}
    """

    name: ClassVar[str] = "full"

    def __init__(self) -> None:
        self._untuned: PreTrainedModel | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> FullAdapter:
        """See :class:`Adapter`; a quantised LLM is refused before it is loaded.

        Raises:
            InputError: ``quant`` is set.
        """
        if settings.get("quant"):
            raise _of_quantised()
        return cls()

    def attach(self, model: PreTrainedModel) -> PreTrainedModel:
        """Keep a frozen copy in main memory and make all weights trainable, in float32.

        Raises:
            InputError: the model is quantised; whole numbers cannot be trained.
        """
        if getattr(model, "is_quantized", False):
            raise _of_quantised()
        device = next(model.parameters()).device
        self._untuned = copy.deepcopy(model.to("cpu")).eval().requires_grad_(False)  # never two of them on a GPU
        return model.float().to(device).requires_grad_(True)

    @contextmanager
    def untuned(self, model: nn.Module) -> Iterator[nn.Module]:
        """The frozen copy, for the duration of the context on the device `model` is on."""
        if self._untuned is None:
            raise ValueError("attach comes before untuned")
        home = next(self._untuned.parameters()).device
        try:
            yield self._untuned.to(next(model.parameters()).device)
        finally:
            self._untuned.to(home)

    def facts(self) -> dict[str, Any]:
        """Kind only: there is nothing to set."""
        return {"adapter": self.name}

    def _save_weights(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(str(folder))

    def _load_weights(self, model: PreTrainedModel, folder: Path) -> None:
        try:
            tuned, info = type(model).from_pretrained(str(folder), dtype=model.dtype, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"adapter {folder}: the tuned weights cannot be loaded: {reason}; train again", kind="file"
            ) from error
        if lost := sorted(info["missing_keys"] | info["unexpected_keys"]):
            raise InputError(
                f"adapter {folder}: {len(lost)} weights do not fit the model (first {lost[0]}); train again",
                kind="file",
            )
        model.load_state_dict(tuned.state_dict())


def _of_quantised() -> InputError:
    message = "full cannot train a quantised LLM; leave quant empty or use adapter: lora"
    return InputError("adapter", message, kind="conflict")
