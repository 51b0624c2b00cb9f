"""Mo-SARA: several diagonals between frozen singular vectors, mixed by gates (arXiv 2408.03290)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from recbole_llm.adapter.instance import InstanceLoraAdapter
from recbole_llm.adapter.ranks import target_layers, weight_of
from recbole_llm.declare import Setting
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

SEQUENCE = "sequence"


@dataclass(frozen=True)
class MoSaraAdapter(InstanceLoraAdapter):
    """W0 x + diag(v) U_k (sum_e g_e diag(lam_e)) V_k^T x: the weights' own singular vectors, re-weighted.

    U_k and V_k are the k first singular vectors of W0 and stay as they are; v starts at 0 and lam_e at the singular
    values, apart by 1 % of noise. What learns is E k + o numbers per layer and the gates. k is ``lora_r``, or what
    ``lora_rank_rule: sara`` gives. There is no ``lora_alpha`` in it: v is the scale.

    Gates are of each token, from V_k^T x by a router of k + E weights per layer (the paper's), or of the row's history
    (``sequence``), from the gate network that iLoRA has.

    Attributes:
        num_experts: E.
        gating: ``token`` or ``sequence``.

    Example:
        >>> MoSaraAdapter(gating="sequence").needs_states
        True
    """

    num_experts: Annotated[int, Setting("diagonals between the singular vectors", low=1, high=1024)] = 5
    gating: Annotated[
        str,
        Setting(
            "what mixes the diagonals",
            choices={"token": "a router per layer", SEQUENCE: "a gate network that reads the row's history"},
            key="mosara_gates",
        ),
    ] = "token"

    name: ClassVar[str] = "mosara"
    starts_at_zero: ClassVar[str] = "lora_v"

    @property
    def needs_states(self) -> bool:  # type: ignore[override]
        """See :class:`Adapter`."""
        return self.gating == SEQUENCE

    @classmethod
    def reads_states(cls, settings: Mapping[str, Any]) -> bool:
        """See :class:`Adapter`."""
        return bool(settings["mosara_gates"] == SEQUENCE)

    def _peft_config(self, model: PreTrainedModel, targets: list[str]) -> PeftConfig:
        from recbole_llm.adapter.mosara_peft import MoSaraConfig

        if self.rank_rule == "fixed":  # the other rules count singular values
            self._check_rank(target_layers(model, targets))
        return MoSaraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            **{**self._own_settings(), **self._patterns(model, targets)},
        )

    def _check_rank(self, layers: Mapping[str, nn.Module]) -> None:
        """Refuse a rank that a matrix has no singular vectors for; LoRA's may be larger than its layers."""
        for name, layer in layers.items():
            if self.r > (fewest := min(weight_of(layer).shape)):
                raise InputError(
                    "lora_r",
                    f"{self.r} is above the {fewest} singular vectors of {name}; mosara takes at most so many",
                    kind="conflict",
                )
