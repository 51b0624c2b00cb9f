"""The training rows that an LLM is tuned on, and the inputs of selectors."""

from recbole_llm import compat

compat.apply()
