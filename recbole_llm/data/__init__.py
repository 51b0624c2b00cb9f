"""From RecBole's data sets to prompts: the item catalogue, prompt templates, token batches, row subsets."""

from recbole_llm import compat

compat.apply()
