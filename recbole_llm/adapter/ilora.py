"""Instance-wise low-rank adapters (iLoRA, arXiv 2408.10159)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_llm.adapter.gates import GATES, gate_statistics
from recbole_llm.adapter.ilora_peft import SCALES, ILoraConfig, ILoraModel, recomputes
from recbole_llm.adapter.lora import LoraAdapter
from recbole_llm.adapter.states import Histories, PermutedStates, SequenceStates, StatesOf
from recbole_llm.errors import InputError

INSTANCE_GATES = "instance_gates"
"""The argument of a forward pass, among :meth:`ILoraAdapter.row_inputs`: gates [rows, experts]."""
_SHOWN_NOWHERE_IN_WEIGHTS = ("num_experts", "gate", "gate_top_k", "scale")
_OF_LORA = {own.name for own in fields(LoraConfig)}
_OWN_SETTINGS = [own.name for own in fields(ILoraConfig) if own.name not in _OF_LORA]


@dataclass(frozen=True)
class ILoraAdapter(LoraAdapter):
    """LoRA cut into experts of rank r / K, whose parts in the update depend on the user's sequence.

    W x + s * sum over k of w_k B_k A_k x, with gates w of the instance, the same at all layers, and s = alpha K / r;
    uniform gates, or K = 1, are LoRA. The gates come from a small network, trained along, that reads a sequence
    representation of a frozen sequential recommender. :meth:`instances` says whose rows a forward pass has.

    The defaults are the authors', but for the gate network: theirs is a convolutional one in the published code, with
    batch statistics over users; the paper describes a function of the representation alone.

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
    """

    alpha: float = 32
    dropout: float = 0.1
    target_modules: Any = "all"
    num_experts: int = 4
    gate: str = "linear"
    gate_hidden_size: int = 128
    gate_top_k: int = 2
    gate_noise: float = 0.1
    scale: str = "expert_rank"
    representation_size: int = 64
    permuted: bool = False
    states: SequenceStates | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "ilora"
    needs_states: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_experts", "gate_hidden_size", "representation_size", "gate_top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"iLoRA {name} = {value!r} must be an integer of at least 1")
        if self.r % self.num_experts:
            raise InputError(
                f"iLoRA cannot cut rank r = {self.r} into num_experts = {self.num_experts} equal parts; make lora_r a "
                "multiple of ilora_num_experts"
            )
        for name, choices in (("gate", GATES), ("scale", SCALES)):
            if getattr(self, name) not in choices:
                raise InputError(f"iLoRA {name} = {getattr(self, name)!r} must be one of {', '.join(choices)}")
        if self.gate == "topk" and not min(2, self.num_experts) <= self.gate_top_k <= self.num_experts:
            raise InputError(
                f"iLoRA gate_top_k = {self.gate_top_k} must lie in 2 ... num_experts = {self.num_experts}: a single "
                "expert's gate is always 1 and learns nothing"
            )
        if not isinstance(self.gate_noise, int | float) or not 0 <= self.gate_noise < float("inf"):
            raise InputError(f"iLoRA gate_noise = {self.gate_noise!r} must be at least 0")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ILoraAdapter:
        """From a run's settings: rank, alpha, dropout and targets are the keys `lora_*`, the others `ilora_*`."""
        shared = {f"i{key}": value for key, value in settings.items() if key.startswith("lora_")}
        return super().from_settings({**shared, **settings})

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
        checkpoints = recomputes(model)
        tuned = super().attach(model)
        if checkpoints:
            tuned.base_model.activation_checkpointing_enable()
        return tuned

    def _peft_config(self, model: PreTrainedModel, targets: str | list[str]) -> PeftConfig:
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
        return {name: getattr(self, name) for name in _OWN_SETTINGS}

    def _load_weights(self, model: PeftModel, folder: Path) -> None:
        attached = model.peft_config[model.active_adapter]
        super()._load_weights(model, folder)
        saved = PeftConfig.from_pretrained(str(folder), local_files_only=True)
        for key in _SHOWN_NOWHERE_IN_WEIGHTS:
            if getattr(saved, key) != getattr(attached, key):
                raise InputError(
                    f"adapter {folder}: it was trained with {key} {getattr(saved, key)}, not {getattr(attached, key)}; "
                    "use the same setting"
                )


def _tuner(model: nn.Module) -> ILoraModel:
    """The part of an attached model, bare or wrapped by DistributedDataParallel, that knows the gates."""
    return getattr(model, "module", model).base_model
