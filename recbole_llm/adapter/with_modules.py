"""An adapter together with further modules that are trained and saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_llm.adapter.base import Adapter, describe_difference
from recbole_llm.adapter.states import Histories, StatesOf
from recbole_llm.errors import InputError


class AdapterWithModules(Adapter):
    """Adds modules beside the LLM, such as a projector of item vectors, to what an adapter trains, saves and loads.

    Each module's weights are a file of their own, ``<name>.safetensors``, in the adapter's folder, which peft loads as
    before.

    Args:
        inner: the adapter of the LLM's own weights.
        modules: by name; all their parameters learn.

    Example:
        >>> from recbole_llm.adapter import LoraAdapter
        >>> AdapterWithModules(LoraAdapter(), {"projector": nn.Linear(2, 4)}).name
        'lora'
    """

    def __init__(self, inner: Adapter, modules: Mapping[str, nn.Module]) -> None:
        self.inner, self.modules = inner, dict(modules)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the inner adapter."""
        return self.inner.name

    def __getattr__(self, name: str) -> Any:
        """Any other attribute is the inner adapter's."""
        if name == "inner":  # not there yet: a copy or an unpickled object asks before it has anything
            raise AttributeError(name)
        return getattr(self.inner, name)

    def attach(self, model: PreTrainedModel) -> nn.Module:
        """See :class:`Adapter`."""
        return self.inner.attach(model)

    def untuned(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """See :class:`Adapter`; the modules stand beside the LLM and do not take part."""
        return self.inner.untuned(model)

    @property
    def needs_states(self) -> bool:  # type: ignore[override]
        """Whether the inner adapter does."""
        return self.inner.needs_states

    def with_states(self, compute: StatesOf, width: int) -> AdapterWithModules:
        """See :class:`Adapter`."""
        return AdapterWithModules(self.inner.with_states(compute, width), self.modules)

    def prepare_rows(self, histories: Histories) -> None:
        """See :class:`Adapter`."""
        self.inner.prepare_rows(histories)

    def conditioned_on(self, model: nn.Module, histories: Histories) -> AbstractContextManager[None]:
        """See :class:`Adapter`."""
        return self.inner.conditioned_on(model, histories)

    def row_inputs(self, model: nn.Module, histories: Histories) -> dict[str, Tensor]:
        """See :class:`Adapter`."""
        return self.inner.row_inputs(model, histories)

    def row_facts(self, model: nn.Module, histories: Histories) -> dict[str, Any]:
        """See :class:`Adapter`."""
        return self.inner.row_facts(model, histories)

    def facts(self) -> dict[str, Any]:
        """See :class:`Adapter`."""
        shapes = {key: list(tensor.shape) for key, tensor in self._parameters().items()}
        return {**self.inner.facts(), "modules": shapes}

    def trainable_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """See :class:`Adapter`; the weights of the modules are ``modules``."""
        return {**self.inner.trainable_groups(model), "modules": list(self._parameters().values())}

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """See :class:`Adapter`."""
        own = {key: tensor.detach().to("cpu", copy=True) for key, tensor in self._parameters().items()}
        return {**self.inner.trainable_state(model), **own}

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See :class:`Adapter`."""
        own = self._parameters()
        self.inner.load_trainable_state(model, {key: value for key, value in state.items() if key not in own})
        if difference := describe_difference({key: state[key] for key in own if key in state}, own):
            raise ValueError(f"the state does not fit the modules: {difference}")
        for key, parameter in own.items():
            parameter.data.copy_(state[key])

    def _save_weights(self, model: nn.Module, folder: Path) -> None:
        self.inner._save_weights(model, folder)
        for name, module in self.modules.items():
            weights = {key: value.detach().cpu().contiguous() for key, value in module.named_parameters()}
            save_file(weights, folder / f"{name}.safetensors")

    def _load_weights(self, model: nn.Module, folder: Path) -> None:
        self.inner._load_weights(model, folder)
        for name, module in self.modules.items():
            file = folder / f"{name}.safetensors"
            found, own = load_file(file) if file.is_file() else {}, dict(module.named_parameters())
            if difference := describe_difference(found, own):
                raise InputError(
                    f"adapter {folder}: {name}.safetensors does not fit the model: {difference}", kind="file"
                )
            for key, parameter in own.items():
                parameter.data.copy_(found[key])

    def _parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the modules, as ``<module>.<name>``."""
        return {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
        }
