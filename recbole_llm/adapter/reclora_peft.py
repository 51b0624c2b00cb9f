"""RecLoRA (arXiv 2408.03533) as a peft method of its own, of type ``RECLORA``: iLoRA's with other gates.

Importing this file enters the type into peft's tables, as importing :mod:`recbole_llm.adapter.ilora_peft` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from recbole_llm.adapter.dropout import TokenDraws, uniform_numbers
from recbole_llm.adapter.experts import gate_weights
from recbole_llm.adapter.gates import checked_representations, uniform_start
from recbole_llm.adapter.ilora_layer import ILoraLinear, ILoraVariant
from recbole_llm.adapter.ilora_peft import ILoraConfig, ILoraModel, PeftType

MIXES = ("product", "factors")
RECLORA = PeftType("RECLORA")


@dataclass
class RecLoraConfig(ILoraConfig):
    """Settings of RecLoRA beside those of the layer; ``r`` is the rank of all its LoRAs together.

    Raises:
        ValueError: a setting out of range.
    """

    temperature: float = field(default=5.0, metadata={"help": "Temperature of the gates."})
    gate_dropout: float = field(default=0.1, metadata={"help": "Dropout in the gate network."})
    top_k: int | None = field(default=None, metadata={"help": "LoRAs that keep a gate; None keeps all."})
    square_root: bool = field(default=False, metadata={"help": "Whether gates are square roots."})
    mix: str = field(default="product", metadata={"help": "product or factors."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = RECLORA
        if self.mix not in MIXES:
            raise ValueError(f"there is no mix {self.mix!r}; choose from {', '.join(MIXES)}")
        self._register_custom_module({nn.Linear: RecLoraLinear, Conv1D: RecLoraLinear})

    def gate_network(self) -> MetaGate:  # type: ignore[override]
        """A fresh gate network."""
        sizes = (self.representation_size, self.num_experts, self.gate_hidden_size)
        return MetaGate(*sizes, self.temperature, self.gate_dropout, self.top_k, self.square_root)


class MetaGate(nn.Module):
    """Gates of a row: softmax(MLP(LayerNorm(c)) / T), the MLP d_c -> hidden -> ReLU -> dropout -> N.

    A representation of zeros stands for a history of which nothing is known: its gates are uniform.

    Args:
        representation_size: d_c.
        num_loras: N.
        hidden_size: hidden size of the MLP.
        temperature: T.
        dropout: behind the ReLU, in training.
        top_k: LoRAs that keep a gate; None keeps all.
        square_root: see :func:`recbole_llm.adapter.gate_weights`.
    """

    def __init__(
        self,
        representation_size: int,
        num_loras: int,
        hidden_size: int = 60,
        temperature: float = 5.0,
        dropout: float = 0.1,
        top_k: int | None = None,
        square_root: bool = False,
    ) -> None:
        super().__init__()
        # Parameters of this very module: see GateNetwork.
        self.norm_weight = nn.Parameter(torch.ones(representation_size))
        self.norm_bias = nn.Parameter(torch.zeros(representation_size))
        self.hidden_weight = nn.Parameter(uniform_start(hidden_size, representation_size, fan_in=representation_size))
        self.hidden_bias = nn.Parameter(uniform_start(hidden_size, fan_in=representation_size))
        self.weight = nn.Parameter(uniform_start(num_loras, hidden_size, fan_in=hidden_size))
        self.bias = nn.Parameter(uniform_start(num_loras, fan_in=hidden_size))
        self.temperature, self.dropout, self.top_k, self.square_root = temperature, dropout, top_k, square_root
        self.row_draws: TokenDraws | None = None

    def forward(self, representations: Tensor) -> Tensor:
        """Gates of a batch.

        Args:
            representations: [b, d_c].

        Returns:
            [b, N], at least 0.

        Raises:
            ValueError: another width, or a value that is not finite; names the row.
        """
        width = self.norm_weight.shape[0]
        known = checked_representations(representations, width).any(dim=1, keepdim=True)
        with torch.autocast(representations.device.type, enabled=False):
            normed = F.layer_norm(representations.to(self.weight), (width,), self.norm_weight, self.norm_bias)
            hidden = self._dropped_out(F.relu(F.linear(normed, self.hidden_weight, self.hidden_bias)))
            logits = F.linear(hidden, self.weight, self.bias)
            logits = torch.where(known, logits, 0.0)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            gates = gate_weights(logits, self.temperature, self.square_root, self.top_k)
            even = gate_weights(torch.zeros_like(logits), self.temperature, self.square_root)
        return torch.where(known, gates, even)

    @property
    def is_random(self) -> bool:
        """Whether training draws something here."""
        return self.dropout > 0

    def _dropped_out(self, hidden: Tensor) -> Tensor:
        """Dropout of [b, hidden], drawn by row where it is known whose they are."""
        found = self.row_draws.of_rows("gate dropout", *hidden.shape) if self.row_draws is not None else None
        if found is None or not self.training:
            return F.dropout(hidden, self.dropout, self.training)
        kept = uniform_numbers(found).to(hidden.device) >= self.dropout
        return hidden * kept / (1 - self.dropout)


class FactorsVariant(ILoraVariant):
    """LoRA whose A and B are mixed apart, by the gates of each row; no row's own matrices are made."""

    @staticmethod
    def forward(module: RecLoraLinear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object) -> Tensor:
        """The layer's output [rows, tokens, o]; see :func:`recbole_llm.adapter.mixed_lora`."""
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        # In the layer's scale, alpha / (N r), times N: alpha / r. It belongs to the update, so to one factor alone.
        scaled = module.current_gates.of_rows(x).to(low_rank)
        n_loras = scaled.shape[1]
        gates = scaled / n_loras
        mixed = torch.einsum("bn,btnr->btr", gates, low_rank.unflatten(2, (n_loras, -1)))
        spread = torch.einsum("bn,btr->btnr", scaled * module.scaling[active_adapter], mixed).flatten(2)
        update: Tensor = module.lora_B[active_adapter](spread)
        return result + update


class RecLoraLinear(ILoraLinear):
    """A linear map with several LoRAs, mixed for each row."""

    mix: str
    """Of the adapter that was added last."""

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: RecLoraConfig, **kwargs: Any) -> None:
        """Add an adapter, with its way of mixing; a layer's adapters may mix in different ways."""
        self.mix = config.mix
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    @property
    def lora_variants(self) -> Mapping[tuple[str, ...], type[LoraVariant]]:
        """See :class:`ILoraLinear`; by the mix."""
        return {("num_experts",): FactorsVariant if self.mix == "factors" else ILoraVariant}

    def update_of(self, adapter: str, gates: Tensor) -> Tensor:
        """See :class:`ILoraLinear`."""
        if not isinstance(self.lora_variant[adapter], FactorsVariant):
            return super().update_of(adapter, gates)
        scaled, n_loras = gates[0].to(self.lora_A[adapter].weight), gates.shape[1]
        own = scaled / (n_loras * self.scaling[adapter])
        down = torch.einsum("n,nrm->rm", own, self.lora_A[adapter].weight.unflatten(0, (n_loras, -1)))
        up = torch.einsum("n,onr->or", scaled, self.lora_B[adapter].weight.unflatten(1, (n_loras, -1)))
        return up @ down


PEFT_TYPE_TO_CONFIG_MAPPING[RECLORA] = RecLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[RECLORA] = ILoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[RECLORA] = ILoraModel.prefix
