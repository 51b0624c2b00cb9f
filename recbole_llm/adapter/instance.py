"""LoRA whose update differs from row to row: the common part of iLoRA, RecLoRA and Mo-SARA."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from recbole_llm.adapter.lora import LoraAdapter
from recbole_llm.adapter.states import Histories, SequenceStates, StatesOf
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from recbole_llm.adapter.ilora_peft import ILoraModel

INSTANCE_GATES = "instance_gates"
"""The argument of a forward pass, among :meth:`InstanceLoraAdapter.row_inputs`: gates [rows, experts]."""
_Self = TypeVar("_Self", bound="InstanceLoraAdapter")


@dataclass(frozen=True)
class InstanceLoraAdapter(LoraAdapter):
    """LoRA of several experts, weighted by gates of the instance that are the same at all layers.

    The gates come from a small network, trained along, that reads a sequence representation of a frozen sequential
    recommender. :meth:`instances` says whose rows a forward pass has. A kind whose gates read nothing of the history
    says so by ``needs_states``.

    Attributes:
        representation_size: entries of a sequence representation, at least 1; the recommender that gives them knows.
        states: the source of sequence representations; :meth:`with_states` sets it.
    """

    representation_size: int = 64
    states: SequenceStates | None = field(default=None, repr=False, compare=False)

    needs_states: ClassVar[bool] = True
    not_in_peft: ClassVar[tuple[str, ...]] = ("states",)
    """Fields of the adapter that peft's configuration does not have, beside LoRA's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.representation_size, int) or self.representation_size < 1:
            raise InputError(
                f"{self.name} representation_size = {self.representation_size!r} must be an integer of at least 1"
            )

    def with_states(self: _Self, compute: StatesOf, width: int) -> _Self:
        """This adapter with a source of sequence representations, which gives their size as well."""
        return replace(self, representation_size=width, states=SequenceStates(compute))

    def attach(self, model: PreTrainedModel) -> PeftModel:
        """Freeze the LLM, add the low-rank maps and the gate network, in float32.

        Gradient checkpointing that is on already becomes non-reentrant, so that what is computed again uses the gates
        of its own forward pass.

        Raises:
            InputError: a name of `target_modules` matches no linear map of the model.
        """
        from recbole_llm.adapter.ilora_peft import recomputes

        checkpoints = recomputes(model)
        tuned = super().attach(model)
        if checkpoints:
            tuned.base_model.activation_checkpointing_enable()
        return tuned

    def trainable_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """See :class:`Adapter`; the weights of the gate network are ``gate``."""
        groups: dict[str, list[nn.Parameter]] = {"llm": [], "gate": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups["gate" if ".lora_gate." in name else "llm"].append(parameter)
        return groups

    def gates(self, model: nn.Module, representations: Tensor) -> Tensor:
        """Gates [b, K] of instances with sequence representations [b, d]; the gradient reaches the gate network."""
        return _tuner(model).instance_gates(representations)

    def instances(
        self, model: nn.Module, representations: Tensor | None = None, *, gates: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """A context in which the rows of each forward pass are those of the given instances, in their order.

        See :meth:`ILoraModel.instances` for arguments, rows of beams, caches and merging. Without it, and without an
        argument ``instance_gates``, a forward pass is a RuntimeError, except inside :meth:`untuned`.
        """
        return _tuner(model).instances(representations, gates=gates)

    def prepare_rows(self, histories: Histories) -> None:
        """See :class:`Adapter`; the representations of all rows are computed."""
        if self.needs_states:
            self._states().prepare(histories)

    def conditioned_on(self, model: nn.Module, histories: Histories) -> AbstractContextManager[None]:
        """See :class:`Adapter`; the gradient reaches the gate network. For passes without a cache."""
        return self.instances(model, self._states().of(histories)) if self.needs_states else nullcontext()

    def row_inputs(self, model: nn.Module, histories: Histories) -> dict[str, Tensor]:
        """See :class:`Adapter`; the rows' gates as ``instance_gates``, [rows, experts]."""
        gated = self.needs_states and bool(histories)
        return {INSTANCE_GATES: self._fixed_gates(model, histories)} if gated else {}

    def row_facts(self, model: nn.Module, histories: Histories) -> dict[str, Any]:
        """See :func:`gate_statistics`."""
        from recbole_llm.adapter.gates import gate_statistics

        return gate_statistics(self._fixed_gates(model, histories)) if self.needs_states else {}

    def _fixed_gates(self, model: nn.Module, histories: Histories) -> Tensor:
        """Gates [rows, experts] outside training."""
        return _tuner(model).fixed_gates(self._states().of(histories))

    def _states(self) -> SequenceStates:
        if self.states is None:
            raise ValueError("the gates of rows need sequence representations: call with_states first")
        return self.states

    def facts(self) -> dict[str, Any]:
        """Kind and settings."""
        return {**super().facts(), **self._own_settings()}

    def _own_settings(self) -> dict[str, Any]:
        """What LoRA's configuration does not have."""
        others = {*self.not_in_peft, *(own.name for own in fields(LoraAdapter))}
        return {own.name: getattr(self, own.name) for own in fields(self) if own.name not in others}


def _tuner(model: nn.Module) -> ILoraModel:
    """The part of an attached model, bare or wrapped by DistributedDataParallel, that knows the gates."""
    tuner: Any = getattr(model, "module", model).base_model
    return cast("ILoraModel", tuner)
