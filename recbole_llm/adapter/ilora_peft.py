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
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recbole_llm.adapter.gates import CurrentGates, GateNetwork, Replayable, check_gates
from recbole_llm.adapter.ilora_layer import ILoraLinear
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
        """Gates [b, K] as :meth:`instance_gates`, without a gradient, and without noise in any mode of the model."""
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
        """Turn on gradient checkpointing, non-reentrant by default: then a pass is recomputed with its own gates."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if not options["use_reentrant"]:
            options.setdefault("context_fn", self.current_gates.checkpoint_contexts)
        enable = getattr(self.model, "activation_checkpointing_enable", None)  # the older name warns where both exist
        (enable or self.model.gradient_checkpointing_enable)(options, **kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: object
    ) -> None:
        """Turn on gradient checkpointing: the older name of :meth:`activation_checkpointing_enable`."""
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


PEFT_TYPE_TO_CONFIG_MAPPING[ILORA] = ILoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[ILORA] = ILoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[ILORA] = ILoraModel.prefix
