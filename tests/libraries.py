"""What takes long to import and belongs to others: the server of ``tests/processes.py`` imports this once."""

import peft  # noqa: F401
import sklearn  # noqa: F401
import torch  # noqa: F401
import transformers.generation.utils  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
