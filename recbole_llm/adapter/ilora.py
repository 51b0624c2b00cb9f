"""Instance-wise low-rank adapters (iLoRA, arXiv 2408.10159)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from recbole_llm.adapter.gate_kinds import GATES
from recbole_llm.adapter.instance import InstanceLoraAdapter
from recbole_llm.adapter.states import PermutedStates, StatesOf
from recbole_llm.declare import Setting
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

__all__ = ["GATES", "ILoraAdapter"]


@dataclass(frozen=True)
class ILoraAdapter(InstanceLoraAdapter):
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
        dropout: dropout of the input of A, in [0, 1).
        target_modules: see :class:`LoraAdapter`.
        seed: seed of the initial values; those of A are LoRA's with the same seed.
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

    num_experts: Annotated[
        int, Setting("experts that the rank is divided into", low=1, high=1024, note="divides lora_r")
    ] = 4
    gate: Annotated[str, Setting("gate network from a sequence state to experts", choices=GATES)] = "linear"
    gate_hidden_size: Annotated[int, Setting("hidden layer of gate mlp", low=1, high=65_536)] = 128
    gate_top_k: Annotated[int, Setting("experts that gate topk keeps for a row", low=2, high=1024)] = 2
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
    permuted: Annotated[bool, Setting("control experiment: gates follow another training row's history")] = False

    name: ClassVar[str] = "ilora"
    checked_settings: ClassVar[tuple[str, ...]] = (
        *InstanceLoraAdapter.checked_settings,
        *("num_experts", "gate", "gate_top_k", "scale"),
    )
    not_in_peft: ClassVar[tuple[str, ...]] = ("states", "permuted")

    def __post_init__(self) -> None:
        super().__post_init__()
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
        known = super().with_states(compute, width)
        return replace(known, states=PermutedStates(compute, self.seed)) if self.permuted else known

    def _peft_config(self, model: PreTrainedModel, targets: list[str]) -> PeftConfig:
        from recbole_llm.adapter.ilora_peft import ILoraConfig

        return ILoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            **{**self._own_settings(), **self._patterns(model, targets)},
        )

    def _stacked(self, rank: int) -> int:
        return math.ceil(rank / self.num_experts) * self.num_experts

    def facts(self) -> dict[str, Any]:
        """Kind and settings."""
        return {**super().facts(), "permuted": self.permuted}
