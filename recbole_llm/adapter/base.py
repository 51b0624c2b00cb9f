"""The interface of all adapters, and the record that ties saved weights to the LLM they belong to."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from recbole_llm.adapter.ranks import SpectraOf
from recbole_llm.adapter.states import Histories, StatesOf
from recbole_llm.declare import Declared, keys_of
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_file

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

MANIFEST = "recbole_llm.json"
_Self = TypeVar("_Self", bound="Adapter")


class Adapter(Declared, ABC):
    """Decides which weights of an LLM learn.

    One adapter serves one model: :meth:`attach` comes first, and every other method takes the module it returned.
    """

    name: ClassVar[str]
    """Value of the config key `adapter`."""
    needs_states: ClassVar[bool] = False
    """Whether the weights depend on whose row is computed; then :meth:`with_states` comes before :meth:`attach`."""
    needs_spectra: ClassVar[bool] = False
    """Whether ranks go by singular values, which :meth:`with_spectra` may remember."""

    @classmethod
    def from_settings(cls: type[_Self], settings: Mapping[str, Any]) -> _Self:
        """An adapter from a run's settings: field ``r`` of adapter ``lora`` is the key ``lora_r``, ``seed`` is."""
        found = {field: settings[key.name] for field, key in keys_of(cls).items() if key.name in settings}
        if "seed" in settings and is_dataclass(cls) and any(field.name == "seed" for field in fields(cls)):
            found["seed"] = settings["seed"]
        return cls(**found)

    @classmethod
    def reads_states(cls, settings: Mapping[str, Any]) -> bool:
        """Whether an adapter of these settings would need states; known before it is made."""
        return cls.needs_states

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> nn.Module:
        """Make the chosen weights trainable and freeze the rest. Returns: the module to train and to generate with."""

    @abstractmethod
    def untuned(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """A context that yields a module which computes as the LLM did before tuning. It is for inference only."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the result of training depends on, as JSON values."""

    @abstractmethod
    def _save_weights(self, model: nn.Module, folder: Path) -> None:
        """Write the learned weights as `*.safetensors` in their library's own format."""

    @abstractmethod
    def _load_weights(self, model: nn.Module, folder: Path) -> None:
        """Read them back into `model`; InputError where anything is missing, left over or of another shape."""

    def trainable_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """All trainable weights by what they belong to: the LLM's own updates are ``llm``, and come first."""
        return {"llm": [parameter for parameter in model.parameters() if parameter.requires_grad]}

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of all trainable weights, on the CPU: the small part of a checkpoint."""
        return {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Set all trainable weights to a state that :meth:`trainable_state` gave.

        Raises:
            ValueError: names or shapes are not those of the model's trainable weights.
        """
        import torch

        own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if difference := describe_difference(state, own):
            raise ValueError(f"the state does not fit the model: {difference}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def with_states(self, compute: StatesOf, width: int) -> Adapter:
        """This adapter with a source of what its weights read of each row's history; most read nothing.

        Args:
            compute: gives the states of histories.
            width: entries of a state.
        """
        return self

    def with_spectra(self, remember: SpectraOf) -> Adapter:
        """This adapter with a memory of singular values; most have no use for one."""
        return self

    def prepare_rows(self, histories: Histories) -> None:  # noqa: B027
        """Take note of the rows that will be trained on, before the first step."""

    def conditioned_on(self, model: nn.Module, histories: Histories) -> AbstractContextManager[None]:
        """A context whose forward passes are for rows of these histories, in this order."""
        return nullcontext()

    def row_inputs(self, model: nn.Module, histories: Histories) -> dict[str, Tensor]:
        """What a forward pass outside training needs to know of rows besides their tokens, tensors [rows, ...].

        Passes that continue from a cache are given these as arguments instead of a :meth:`conditioned_on` around them.
        """
        return {}

    def row_facts(self, model: nn.Module, histories: Histories) -> dict[str, Any]:
        """How the weights differ between rows of these histories, as JSON values; empty where they do not."""
        return {}

    def save(self, model: nn.Module, folder: str | Path, fingerprint: str) -> None:
        """Write the learned weights into `folder`, with a note of the LLM they belong to.

        Args:
            model: what :meth:`attach` returned, trained.
            folder: made if it is not there.
            fingerprint: fingerprint of the untuned LLM.

        Raises:
            InputError: nothing was learned.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_weights(model, folder)
        note = {"adapter": self.name, "fingerprint": fingerprint, "sha256": _weight_hashes(folder)}
        (folder / MANIFEST).write_text(json.dumps(note, indent=2) + "\n")

    def load(self, model: nn.Module, folder: str | Path, fingerprint: str) -> None:
        """Read learned weights into an attached model and make sure that every one of them arrived.

        Args:
            model: what :meth:`attach` returned.
            folder: what :meth:`save` wrote.
            fingerprint: fingerprint of the untuned LLM in use.

        Raises:
            InputError: the files are damaged, empty, of another adapter or of another LLM.
        """
        folder = Path(folder)
        self._check_manifest(folder, fingerprint)
        self._load_weights(model, folder)

    def _check_manifest(self, folder: Path, fingerprint: str) -> None:
        try:
            note = json.loads((folder / MANIFEST).read_text())
            adapter, belongs_to, hashes = note["adapter"], note["fingerprint"], note["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"adapter {folder}: no readable {MANIFEST}; give a folder that `save` wrote", kind="file"
            ) from error
        if adapter != self.name:
            raise InputError(
                f"adapter {folder}: it holds '{adapter}', not '{self.name}'; set adapter: {adapter}", kind="conflict"
            )
        if belongs_to != fingerprint:
            raise InputError(
                f"adapter {folder}: it was trained on LLM {belongs_to}, not on {fingerprint}; load the LLM it was "
                "trained on",
                kind="conflict",
            )
        if not hashes or hashes != _weight_hashes(folder):
            raise InputError(
                f"adapter {folder}: the weight files are not those that were saved; copy them again", kind="file"
            )


def describe_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What distinguishes two sets of tensors by name and shape, in a few words; empty where nothing does."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    reshaped = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    words = (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
    return ", ".join(f"{len(names)} {word} (first {names[0]})" for word, names in words if names)


def _weight_hashes(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.safetensors"))}
