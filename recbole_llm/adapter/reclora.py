"""RecLoRA: a LoRA for each user, mixed from several (arXiv 2408.03533)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from recbole_llm.adapter.instance import InstanceLoraAdapter
from recbole_llm.declare import Setting
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RecLoraAdapter(InstanceLoraAdapter):
    """N whole LoRAs of rank r in every layer, mixed for each row by gates from its history.

    The gates are softmax(MLP(LayerNorm(c)) / T), c the state that a frozen recommender computes from the history. Mix
    ``product``, the method as the paper's text has it, adds alpha / r * sum_k w_k B_k A_k: the layer of iLoRA with N
    experts of rank r. Mix ``factors``, what the authors' commands run, adds
    alpha / r * (sum_k w_k B_k)(sum_k w_k A_k).

    Attributes:
        r: rank of each LoRA.
        num_loras: N.
        temperature: T of the gates; the larger, the more even.
        gate_hidden: hidden layer of the gate network.
        gate_dropout: dropout after it.
        gate_top_k: LoRAs that keep a gate.
        square_root: take the square root of the gates.
        mix: ``product`` or ``factors``.

    Example:
        >>> RecLoraAdapter(r=8, num_loras=4).facts()["num_experts"]
        4
        >>> RecLoraAdapter(num_loras=4, gate_top_k=5)
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: reclora_gate_top_k: ...
    """

    num_loras: Annotated[int, Setting("LoRAs that are mixed for each user, each of rank lora_r", low=1, high=1024)] = 8
    temperature: Annotated[float, Setting("temperature of the gates, more uniform the larger it is", above=0)] = 5.0
    gate_hidden: Annotated[int, Setting("hidden layer of the gate network", low=1, high=65_536)] = 60
    gate_dropout: Annotated[float, Setting("dropout in the gate network", low=0, below=1)] = 0.1
    gate_top_k: Annotated[int | None, Setting("LoRAs that keep a gate", low=2, high=1024, null="keeps all")] = None
    square_root: Annotated[bool, Setting("take the square root of the gates, an option of the authors' code")] = False
    mix: Annotated[
        str,
        Setting(
            "what is mixed",
            choices={"product": "the updates, the method", "factors": "A and B apart, the authors' runs"},
        ),
    ] = "product"

    name: ClassVar[str] = "reclora"
    checked_settings: ClassVar[tuple[str, ...]] = (
        *InstanceLoraAdapter.checked_settings,
        *("num_experts", "temperature", "top_k", "square_root", "mix"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate_top_k is not None and self.gate_top_k > self.num_loras:
            raise InputError(
                "reclora_gate_top_k",
                f"{self.gate_top_k} is more than reclora_num_loras, {self.num_loras}; lower it, or leave it out",
                kind="conflict",
            )

    def _stacked(self, rank: int) -> int:
        return rank * self.num_loras

    def _peft_config(self, model: PreTrainedModel, targets: list[str]) -> PeftConfig:
        from recbole_llm.adapter.reclora_peft import RecLoraConfig

        return RecLoraConfig(
            task_type="CAUSAL_LM",
            r=self._stacked(self.r),
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            **{**self._own_settings(), **self._patterns(model, targets)},
        )

    def _own_settings(self) -> dict[str, Any]:
        """In the words of the layer that iLoRA has as well: N experts of a rank that is that of all together."""
        return {
            "num_experts": self.num_loras,
            "representation_size": self.representation_size,
            "gate_hidden_size": self.gate_hidden,
            "temperature": self.temperature,
            "gate_dropout": self.gate_dropout,
            "top_k": self.gate_top_k,
            "square_root": self.square_root,
            "mix": self.mix,
        }
