"""Recommenders: one file each, what RecBole instantiates."""

from recbole_llm import compat

compat.apply()
