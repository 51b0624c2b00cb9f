"""Instance-wise low-rank adapters (iLoRA, arXiv 2408.10159)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from recbole_llm.adapter.lora import LoraAdapter
from recbole_llm.adapter.states import Histories, PermutedStates, SequenceStates, StatesOf
from recbole_llm.declare import Setting
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from recbole_llm.adapter.ilora_peft import ILoraModel

GATES = ("linear", "mlp", "topk", "noisy")
"""Kinds of :class:`~recbole_llm.adapter.gates.GateNetwork`."""
INSTANCE_GATES = "instance_gates"
"""The argument of a forward pass, among :meth:`ILoraAdapter.row_inputs`: gates [rows, experts]."""
_SHOWN_NOWHERE_IN_WEIGHTS = ("num_experts", "gate", "gate_top_k", "scale")


@dataclass(frozen=True)
class ILoraAdapter(LoraAdapter):
    """LoRA cut into experts of rank r / K, whose parts in the update depend on the user's sequence.

    W x + s * sum over k of w_k B_k A_k x, with gates w of the instance, the same at all layers, and s = alpha K / r;
    uniform gates, or K = 1, are LoRA. The gates come from a small network, trained along, that reads a sequence
    representation of a frozen sequential recommender. :meth:`instances` says whose rows a forward pass has.

    The authors' published code has a convolutional gate network, with batch statistics over users; the gates here are a
    function of the representation alone, as the paper describes them. Rank, scale, dropout and targets are LoRA's, the
    keys ``lora_*``; the authors' own values are those of the preset iLoRA.

    Attributes:
        r: rank of all experts together, a multiple of `num_experts`.
        alpha: scale, above 0.
        dropout: of the input of A, in [0, 1).
        target_modules: see :class:`LoraAdapter`.
        seed: of the initial values; those of A are LoRA's with the same seed.
        num_experts: K, at least 1.
        gate: ``linear`` | ``mlp`` | ``topk`` | ``noisy``; see :class:`GateNetwork`.
        gate_hidden_size: hidden layer of gate ``mlp``, at least 1.
        gate_top_k: experts that gate ``topk`` leaves to an instance, 2 ... `num_experts`.
        gate_noise: standard deviation of gate ``noisy``, at least 0.
        scale: ``expert_rank``, s = alpha / (r / K), or ``rank``, s = alpha / r.
        representation_size: entries of a sequence representation, at least 1; the recommender that gives them knows.
        permuted: a control experiment: the gates of a row go by another training row's history.
        states: the source of sequence representations; :meth:`with_states` sets it.

    Example:
        >>> ILoraAdapter(r=8, num_experts=4).facts()["num_experts"]
        4
        >>> ILoraAdapter(r=8, num_experts=3)
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: ilora_num_experts: ...
    """

    num_experts: Annotated[int, Setting("experts that the rank is cut into", low=1, note="divides lora_r")] = 4
    gate: Annotated[str, Setting("gate network from a sequence state to experts", choices=GATES)] = "linear"
    gate_hidden_size: Annotated[int, Setting("hidden layer of gate mlp", low=1)] = 128
    gate_top_k: Annotated[int, Setting("experts that gate topk leaves to a row", low=2)] = 2
    gate_noise: Annotated[
        float, Setting("standard deviation of the logits' noise in training of gate noisy", low=0)
    ] = 0.1
    scale: Annotated[
        str,
        Setting(
            "what lora_alpha is divided by",
            choices={"expert_rank": "the rank of an expert", "rank": "the rank of all experts"},
        ),
    ] = "expert_rank"
    representation_size: int = 64
    permuted: Annotated[bool, Setting("control experiment: gates go by another training row's history")] = False
    states: SequenceStates | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "ilora"
    needs_states: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.representation_size, int) or self.representation_size < 1:
            raise InputError(
                f"iLoRA representation_size = {self.representation_size!r} must be an integer of at least 1"
            )
        if self.r % self.num_experts:
            raise InputError(
                "ilora_num_experts",
                f"iLoRA cannot cut rank r = {self.r} into num_experts = {self.num_experts} equal parts; make lora_r a "
                "multiple of ilora_num_experts",
                kind="conflict",
            )
        if self.gate == "topk" and not min(2, self.num_experts) <= self.gate_top_k <= self.num_experts:
            raise InputError(
                "ilora_gate_top_k",
                f"iLoRA gate_top_k = {self.gate_top_k} must lie in 2 ... num_experts = {self.num_experts}: a single "
                "expert's gate is always 1 and learns nothing",
                kind="conflict",
            )

    def with_states(self, compute: StatesOf, width: int) -> ILoraAdapter:
        """This adapter with a source of sequence representations, which gives their size as well."""
        states = PermutedStates(compute, self.seed) if self.permuted else SequenceStates(compute)
        return replace(self, representation_size=width, states=states)

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

    def _peft_config(self, model: PreTrainedModel, targets: str | list[str]) -> PeftConfig:
        from recbole_llm.adapter.ilora_peft import ILoraConfig

        return ILoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            **self._own_settings(),
        )

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
        self._states().prepare(histories)

    def conditioned_on(self, model: nn.Module, histories: Histories) -> AbstractContextManager[None]:
        """See :class:`Adapter`; the gradient reaches the gate network. For passes without a cache."""
        return self.instances(model, self._states().of(histories))

    def row_inputs(self, model: nn.Module, histories: Histories) -> dict[str, Tensor]:
        """See :class:`Adapter`; the rows' gates as ``instance_gates``, [rows, experts]."""
        return {INSTANCE_GATES: self._fixed_gates(model, histories)} if histories else {}

    def row_facts(self, model: nn.Module, histories: Histories) -> dict[str, Any]:
        """See :func:`gate_statistics`."""
        from recbole_llm.adapter.gates import gate_statistics

        return gate_statistics(self._fixed_gates(model, histories))

    def _fixed_gates(self, model: nn.Module, histories: Histories) -> Tensor:
        """Gates [rows, experts] outside training."""
        return _tuner(model).fixed_gates(self._states().of(histories))

    def _states(self) -> SequenceStates:
        if self.states is None:
            raise ValueError("the gates of rows need sequence representations: call with_states first")
        return self.states

    def facts(self) -> dict[str, Any]:
        """Kind and settings."""
        return {**super().facts(), **self._own_settings(), "permuted": self.permuted}

    def _own_settings(self) -> dict[str, Any]:
        """What LoRA's configuration does not have."""
        others = {"permuted", "states", *(own.name for own in fields(LoraAdapter))}
        return {own.name: getattr(self, own.name) for own in fields(self) if own.name not in others}

    def _load_weights(self, model: PeftModel, folder: Path) -> None:
        from peft import PeftConfig

        attached = model.peft_config[model.active_adapter]
        super()._load_weights(model, folder)
        saved = PeftConfig.from_pretrained(str(folder), local_files_only=True)
        for key in _SHOWN_NOWHERE_IN_WEIGHTS:
            if getattr(saved, key) != getattr(attached, key):
                raise InputError(
                    f"adapter {folder}: it was trained with {key} {getattr(saved, key)}, not {getattr(attached, key)}; "
                    "use the same setting",
                    kind="conflict",
                )


def _tuner(model: nn.Module) -> ILoraModel:
    """The part of an attached model, bare or wrapped by DistributedDataParallel, that knows the gates."""
    tuner: Any = getattr(model, "module", model).base_model
    return cast("ILoraModel", tuner)
