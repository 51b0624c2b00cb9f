"""The layer of instance-wise LoRA: a linear map whose low-rank update differs between the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from recbole_llm.adapter.gates import CurrentGates, rank_gates


class ILoraVariant(LoraVariant):
    """LoRA whose rank dimension is multiplied by the gates of each row."""

    def __init__(self) -> None:
        self.merged: Tensor | None = None

    def supports_lora_conversion(self) -> bool:
        """Whether PEFT may convert it to plain LoRA: no, as its update differs between instances."""
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
        """Merge one instance's update into the weight in place."""
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
