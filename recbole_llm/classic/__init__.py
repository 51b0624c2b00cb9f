"""RecBole's own models: their training, and the auxiliary recommender of LLM models. Applies ``compat``."""

from recbole_llm import compat

compat.apply()
