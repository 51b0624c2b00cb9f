"""Which training rows an LLM is tuned on, and what selectors need to know of them."""

from recbole_llm import compat

compat.apply()
