"""What takes long to import and belongs to others: the server of ``tests/processes.py`` imports this once."""

# ruff: noqa: E402  # imports go faster without the collector
import gc
from contextlib import suppress

gc.disable()

import faiss  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import recbole.data
import recbole.model.context_aware_recommender
import recbole.model.general_recommender
import recbole.model.knowledge_aware_recommender
import recbole.model.sequential_recommender
import recbole.trainer  # noqa: F401
import sklearn  # noqa: F401
import tabulate  # noqa: F401
import torch
import transformers.generation.utils
import transformers.optimization
import transformers.trainer_pt_utils  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

with suppress(ImportError):  # a table of a thousand patterns, which the first weights that are read would compile
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")

torch.autograd.set_detect_anomaly(False)  # RecBole's models turn it on when they are imported
gc.enable()
gc.set_threshold(50_000)  # as in tests/conftest.py
gc.freeze()  # so that no collection in a fork copies the pages of all these
