"""Instance-wise LoRA as a peft method of its own, of type ``ILORA``.

Importing this file enters the type into peft's tables, after which ``get_peft_model`` and ``PeftModel.from_pretrained``
know it; without the import, peft fails on such a folder with ``KeyError: 'ILORA'``. Used of peft: those tables, a
LoRA layer with a variant, custom layers of a configuration, and containers on the tuner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, LoraModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recbole_llm.adapter.gates import CurrentGates, GateNetwork, Replayable, check_gates, rank_gates
from recbole_llm.modes import evaluating

SCALES = ("expert_rank", "rank")
"""What alpha is divided by: r / K, under which uniform gates give plain LoRA, or r."""


class PeftType(str):
    """A name that peft may treat as a member of its enumeration of methods."""

    @property
    def value(self) -> str:
        """What members of the enumeration have."""
        return str(self)


ILORA = PeftType("ILORA")


@dataclass
class ILoraConfig(LoraConfig):
    """Settings of instance-wise LoRA, beside those of LoRA; :class:`ILoraAdapter` and :class:`GateNetwork` say more.

    Raises:
        ValueError: a setting out of range, or one of LoRA that experts have no meaning for.
    """

    num_experts: int = field(default=4, metadata={"help": "Experts K, a divisor of r.", "is_lora_variant": True})
    gate: str = field(default="linear", metadata={"help": "Kind of gate network."})
    representation_size: int = field(default=64, metadata={"help": "Entries of a sequence representation."})
    gate_hidden_size: int = field(default=128, metadata={"help": "Hidden layer of the mlp gate."})
    gate_top_k: int = field(default=2, metadata={"help": "Experts that the topk gate leaves to an instance."})
    gate_noise: float = field(default=0.1, metadata={"help": "Noise of the noisy gate's logits in training."})
    scale: str = field(default="expert_rank", metadata={"help": "alpha / (r / K) or alpha / r."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ILORA
        for rank in (self.r, *self.rank_pattern.values()):
            if self.num_experts < 1 or rank % self.num_experts:
                raise ValueError(f"{self.num_experts} experts cannot share rank {rank} evenly")
        if self.scale not in SCALES:
            raise ValueError(f"there is no scale {self.scale!r}; choose from {', '.join(SCALES)}")
        refuse_plain_options(self)
        self._register_custom_module({nn.Linear: ILoraLinear, Conv1D: ILoraLinear})

    @property
    def gate_scale(self) -> int:
        """What gates are multiplied by, beside alpha / r."""
        return self.num_experts if self.scale == "expert_rank" else 1

    def gate_network(self) -> GateNetwork:
        """A fresh gate network."""
        return GateNetwork(
            self.gate,
            self.representation_size,
            self.num_experts,
            hidden_size=self.gate_hidden_size,
            top_k=self.gate_top_k,
            noise=self.gate_noise,
        )


def refuse_plain_options(config: LoraConfig) -> None:
    """ValueError for options of LoRA that experts have no meaning for."""
    for name in ("lora_bias", "layer_replication"):
        if getattr(config, name):
            raise ValueError(f"instance-wise LoRA does not take {name}")


class ILoraVariant(LoraVariant):
    """LoRA whose rank dimension is multiplied by the gates of each row."""

    def __init__(self) -> None:
        self.merged: Tensor | None = None

    def supports_lora_conversion(self) -> bool:
        """No: its update differs between instances."""
        return False

    @staticmethod
    def init(module: ILoraLinear, adapter_name: str, **kwargs: object) -> None:
        """Nothing beyond LoRA's own A and B."""

    @staticmethod
    def forward(module: ILoraLinear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object) -> Tensor:
        """The layer's output [rows, tokens, o]; see :func:`instance_lora`."""
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        gates = module.current_gates.of_rows(x) * module.scaling[active_adapter]
        factors = rank_gates(gates, low_rank.shape[-1])
        update: Tensor = module.lora_B[active_adapter](low_rank * factors[:, None].to(low_rank))
        return result + update

    def merge_safe(self, module: ILoraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with one instance's update."""
        self.merged = fixed_update(module, active_adapter)
        return orig_weight + self.merged.to(orig_weight.dtype)

    def merge_unsafe(self, module: ILoraLinear, active_adapter: str, orig_weight: Tensor) -> None:
        """The same in place."""
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module: ILoraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight as it was before it was merged, whatever the gates are now."""
        if self.merged is None:
            raise ValueError("nothing is merged")
        update, self.merged = self.merged, None
        return orig_weight.data - update.to(orig_weight.dtype)


class ILoraLinear(Linear):
    """A linear map with instance-wise low-rank updates."""

    current_gates: CurrentGates

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def update_of(self, adapter: str, gates: Tensor) -> Tensor:
        """What one instance's gates [1, K], scale included, add to the weight [o, m]."""
        up, down = self.lora_B[adapter].weight, self.lora_A[adapter].weight
        update: Tensor = (up * rank_gates(gates, len(down)).to(up)) @ down
        return update

    @property
    def lora_variants(self) -> Mapping[tuple[str, ...], type[LoraVariant]]:
        """The only variant there is: combinations with others, and plain LoRA, are peft's errors."""
        return {("num_experts",): ILoraVariant}

    def forward(self, x: Tensor, *args: object, adapter_names: list[str] | None = None, **kwargs: object) -> Tensor:
        """The layer's output; ValueError for a batch of rows of several adapters, which peft would take apart."""
        if adapter_names is not None:
            raise ValueError("instance-wise LoRA takes no batches of mixed adapters")
        output: Tensor = super().forward(x, *args, **kwargs)
        return output


class ILoraModel(LoraModel):
    """An LLM with instance-wise LoRA and the gate network of each of its adapters.

    A `PeftModel` passes everything below on, so that ``with peft_model.instances(representations): ...`` works.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: object, **kwargs: object) -> None:
        """Add the layers and the gate network, after LoRA's own weights: a seed gives these the values LoRA has."""
        if "lora_gate" not in self._modules:
            self.lora_gate = nn.ModuleDict()
            self.current_gates = CurrentGates()
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        trains = adapter_name in self.active_adapters and not config.inference_mode
        # Where weights are about to be loaded, peft makes everything on the meta device.
        if (gate := config.gate_network()) is not None:
            gate.requires_grad_(trains)
            self.lora_gate[adapter_name] = gate if gate.weight.is_meta else gate.to(next(model.parameters()).device)
        for module in model.modules():
            if isinstance(module, ILoraLinear):
                module.current_gates = self.current_gates

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones, their gate networks with them."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        for name, gate in self.lora_gate.items():
            gate.requires_grad_(name in self.active_adapters and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter with its gate network."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.lora_gate:
            del self.lora_gate[adapter_name]

    def add_weighted_adapter(self, *args: object, **kwargs: object) -> None:
        """NotImplementedError: the sum of two updates has no gate network."""
        raise NotImplementedError("instance-wise adapters cannot be added up: their gates differ between instances")

    def instance_gates(self, representations: Tensor) -> Tensor:
        """Gates [b, K] of instances with sequence representations [b, d]."""
        gate = self._gate()
        gates: Tensor = gate(representations.to(gate.weight.device))
        return gates

    @torch.no_grad()
    def fixed_gates(self, representations: Tensor) -> Tensor:
        """The same without a gradient, and without the noise of training whatever mode the model is in."""
        with evaluating(self.lora_gate):
            return self.instance_gates(representations)

    @contextmanager
    def instances(self, representations: Tensor | None = None, *, gates: Tensor | None = None) -> Iterator[None]:
        """Inside, the rows of each forward pass are those of the given instances, in their order.

        The gates are computed once, here. Rows may be a multiple of the instances: then the rows of an instance follow
        one another, as in ``generate`` with beams. Forward passes with a cache of the caller's own do not use what is
        said here, as beams end, leave and move: they take ``instance_gates=`` as an argument. Under reentrant
        gradient checkpointing the backward pass belongs inside as well, before the next instances.

        Merging inside a context of one single instance merges its update; it stays one instance's until unmerged.

        Args:
            representations: [b, d], one per instance; zeros stand for nothing known, uniform gates.
            gates: [b, K] instead of them, as :meth:`instance_gates` gives or any other.

        Raises:
            ValueError: shapes do not fit, or a value is not finite.
        """
        if representations is not None and gates is None:
            factors = self._factors_of(representations)
        elif gates is not None and representations is None:
            factors = self._factors(gates)
        else:
            raise ValueError("give either representations or gates")
        with self.current_gates.use(factors):
            yield

    def forward(self, *args: object, instance_gates: Tensor | None = None, **kwargs: object) -> Any:
        """The LLM's own forward pass, with gates [rows, K] of its rows, or those of the surrounding context."""
        if instance_gates is None and kwargs.get("past_key_values") is None:
            return super().forward(*args, **kwargs)
        with self.current_gates.use(None if instance_gates is None else self._factors(instance_gates)):
            return super().forward(*args, **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: object
    ) -> None:
        """As the LLM's own, non-reentrant by default; then what is computed again uses the gates of its own pass."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if not options["use_reentrant"]:
            options.setdefault("context_fn", self.current_gates.checkpoint_contexts)
        enable = getattr(self.model, "activation_checkpointing_enable", None)  # the older name warns where both exist
        (enable or self.model.gradient_checkpointing_enable)(options, **kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: object
    ) -> None:
        """The same under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def _active(self) -> str:
        if len(self.active_adapters) != 1:
            raise ValueError(f"gates are of one adapter, but {len(self.active_adapters)} are active; set one")
        return str(self.active_adapters[0])

    def _gate(self) -> GateNetwork:
        return cast(GateNetwork, self.lora_gate[self._active()])

    def _factors(self, gates: Tensor) -> Tensor:
        """Factors of the experts [b, K]; every layer multiplies them by its scale, alpha / r."""
        check_gates(gates)
        config = self.peft_config[self._active()]
        if gates.shape[1] != config.num_experts:
            raise ValueError(f"gates are of {gates.shape[1]} experts, the adapter has {config.num_experts}")
        factors: Tensor = gates * config.gate_scale
        return factors

    def _factors_of(self, representations: Tensor) -> Tensor:
        def factors(found: Tensor) -> Tensor:
            return self._factors(self.instance_gates(found))

        if torch.is_grad_enabled() and recomputes(self.model):
            replayed: Tensor = Replayable.apply(factors, representations, *self._gate().parameters())  # type: ignore[no-untyped-call]
            return replayed
        return factors(representations)


def recomputes(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def fixed_update(module: ILoraLinear, adapter: str) -> Tensor:
    """What one instance's gates add to a layer's weight, in that weight's layout.

    Raises:
        ValueError: not exactly one instance is given, or the weight is quantised.
    """
    factors = module.current_gates.factors
    if factors is None or len(factors) != 1:
        raise ValueError(
            "instance-wise LoRA has no single update to merge; merge inside `with model.instances(gates=...)` of one "
            "instance, gates [1, K]"
        )
    if not module.get_base_layer().weight.is_floating_point():
        raise ValueError("instance-wise LoRA cannot be merged into quantised weights")
    with torch.no_grad():
        update = module.update_of(adapter, factors * module.scaling[adapter])
    return update.T if module.fan_in_fan_out else update


PEFT_TYPE_TO_CONFIG_MAPPING[ILORA] = ILoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[ILORA] = ILoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[ILORA] = ILoraModel.prefix
