"""Adapters: which weights of the LLM learn, and how they are stored."""

from recbole_llm.adapter.base import Adapter
from recbole_llm.adapter.full import FullAdapter
from recbole_llm.adapter.gates import GateNetwork, instance_lora
from recbole_llm.adapter.ilora import ILoraAdapter
from recbole_llm.adapter.lora import LoraAdapter

__all__ = ["Adapter", "FullAdapter", "GateNetwork", "ILoraAdapter", "LoraAdapter", "instance_lora"]
