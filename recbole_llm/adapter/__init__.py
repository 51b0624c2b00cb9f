"""Adapters: which weights of the LLM learn, and how they are stored."""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.adapter.base import Adapter
    from recbole_llm.adapter.experts import gate_weights, load_balance_loss, mixed_lora, route_experts
    from recbole_llm.adapter.frozen import FrozenAdapter
    from recbole_llm.adapter.full import FullAdapter
    from recbole_llm.adapter.gates import GateNetwork, gate_statistics, instance_lora
    from recbole_llm.adapter.ilora import ILoraAdapter
    from recbole_llm.adapter.instance import INSTANCE_GATES, InstanceLoraAdapter
    from recbole_llm.adapter.lora import LoraAdapter
    from recbole_llm.adapter.mosara import MoSaraAdapter
    from recbole_llm.adapter.reclora import RecLoraAdapter
    from recbole_llm.adapter.spectrum import allocate_ranks, mo_sara_branch, rank_from_spectrum
    from recbole_llm.adapter.states import PermutedStates, SequenceStates
    from recbole_llm.adapter.with_modules import AdapterWithModules

__all__ = [
    "INSTANCE_GATES",
    "Adapter",
    "AdapterWithModules",
    "FrozenAdapter",
    "FullAdapter",
    "GateNetwork",
    "ILoraAdapter",
    "InstanceLoraAdapter",
    "LoraAdapter",
    "MoSaraAdapter",
    "PermutedStates",
    "RecLoraAdapter",
    "SequenceStates",
    "allocate_ranks",
    "gate_statistics",
    "gate_weights",
    "instance_lora",
    "load_balance_loss",
    "mixed_lora",
    "mo_sara_branch",
    "rank_from_spectrum",
    "route_experts",
]

__getattr__ = lazy_exports(__name__, __file__)
