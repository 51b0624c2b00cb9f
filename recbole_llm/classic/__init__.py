"""RecBole's own models: their training, and what LLM models borrow of them. Applies ``compat``."""

from recbole_llm import compat

compat.apply()
