"""Mo-SARA (arXiv 2408.03290) as a peft method of its own, of type ``MOSARA``.

Importing this file enters the type into peft's tables, as importing :mod:`recbole_llm.adapter.ilora_peft` does. The
singular vectors are saved with the rest: another machine's decomposition may differ by signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from recbole_llm.adapter.gates import GateNetwork
from recbole_llm.adapter.ilora_layer import ILoraLinear
from recbole_llm.adapter.ilora_peft import ILoraModel, PeftType, refuse_plain_options
from recbole_llm.adapter.ranks import weight_of

GATINGS = ("token", "sequence")
NOISE = 0.01  # of the diagonals at the start, so that experts differ
MOSARA = PeftType("MOSARA")
_LEARN = ("lora_lam", "lora_v", "lora_router_in", "lora_router_out")


@dataclass
class MoSaraConfig(LoraConfig):
    """Settings of Mo-SARA; ``r`` is the number of singular vectors, and ``lora_alpha`` is not used.

    Raises:
        ValueError: a setting out of range, or an option of LoRA that it has no meaning for.
    """

    num_experts: int = field(default=5, metadata={"help": "Diagonals.", "is_lora_variant": True})
    gating: str = field(default="token", metadata={"help": "token or sequence."})
    representation_size: int = field(default=64, metadata={"help": "Entries of a sequence representation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MOSARA
        if self.gating not in GATINGS:
            raise ValueError(f"there is no gating {self.gating!r}; choose from {', '.join(GATINGS)}")
        refuse_plain_options(self)
        self._register_custom_module({nn.Linear: MoSaraLinear, Conv1D: MoSaraLinear})

    @property
    def gate_scale(self) -> int:
        """See :class:`ILoraConfig`."""
        return 1

    def gate_network(self) -> GateNetwork | None:
        """A fresh gate network; none where every layer routes its own tokens."""
        by_rows = self.gating == "sequence"
        return GateNetwork("linear", self.representation_size, self.num_experts) if by_rows else None


class MoSaraVariant(LoraVariant):
    """The branch diag(v) U (sum_e g_e diag(lam_e)) V^T x, with U and V^T in LoRA's B and A."""

    def supports_lora_conversion(self) -> bool:
        """Whether PEFT may convert it to plain LoRA: no, as its update differs between rows or tokens."""
        return False

    @staticmethod
    def init(module: MoSaraLinear, adapter_name: str, config: MoSaraConfig, **kwargs: object) -> None:
        """The decomposition of the layer's weight, and what learns beside it."""
        for name in _LEARN:
            if name not in module._modules:
                setattr(module, name, nn.ParameterDict())
        down, up = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        rank, n_experts = len(down), config.num_experts
        values = down.new_ones(rank)
        if not config.inference_mode and not down.is_meta:  # else the saved ones are about to be loaded
            left, found, right = torch.linalg.svd(weight_of(module.get_base_layer()), full_matrices=False)
            values = found[:rank].to(values)
            with torch.no_grad():
                down.copy_(right[:rank])
                up.copy_(left[:, :rank])
        noise = torch.randn(n_experts, rank).to(values) if not values.is_meta else values.expand(n_experts, -1)
        module.lora_lam[adapter_name] = nn.Parameter(values * (1 + NOISE * noise))
        module.lora_v[adapter_name] = nn.Parameter(up.new_zeros(len(up)))
        if config.gating == "token":
            router = nn.init.kaiming_uniform_(torch.empty(1, rank, device=down.device), a=5**0.5)
            module.lora_router_in[adapter_name] = nn.Parameter(router.to(down.dtype))
            module.lora_router_out[adapter_name] = nn.Parameter(down.new_zeros(n_experts, 1))
        for frozen in (down, up):
            frozen.requires_grad_(False)

    @staticmethod
    def forward(module: MoSaraLinear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object) -> Tensor:
        """The layer's output [rows, tokens, o]; see :func:`recbole_llm.adapter.mo_sara_branch`."""
        turned = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        if active_adapter in module.lora_router_in:
            routed = F.linear(turned, module.lora_router_in[active_adapter])
            gates = F.linear(routed, module.lora_router_out[active_adapter]).softmax(dim=-1)
        else:
            gates = module.current_gates.of_rows(x)[:, None].to(turned)
        diagonal = gates @ module.lora_lam[active_adapter].to(gates)
        update: Tensor = module.lora_B[active_adapter](turned * diagonal)
        found: Tensor = result + update * module.lora_v[active_adapter].to(update)
        return found

    @staticmethod
    def merge_safe(module: MoSaraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """ValueError: an update that differs between rows or tokens has no place in the weight."""
        raise ValueError("Mo-SARA cannot be merged: its update differs between tokens, or between rows")

    merge_unsafe = merge_safe
    unmerge = merge_safe


class MoSaraLinear(ILoraLinear):
    """A linear map with Mo-SARA's branch."""

    adapter_layer_names = _LEARN
    other_param_names = (*LoraLayer.other_param_names, "lora_A", "lora_B")

    @property
    def lora_variants(self) -> Mapping[tuple[str, ...], type[LoraVariant]]:
        """See :class:`ILoraLinear`."""
        return {("num_experts",): MoSaraVariant}


PEFT_TYPE_TO_CONFIG_MAPPING[MOSARA] = MoSaraConfig
PEFT_TYPE_TO_TUNER_MAPPING[MOSARA] = ILoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[MOSARA] = ILoraModel.prefix
