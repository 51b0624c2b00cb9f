"""Importing this module makes RecBole usable on this stack and gives its data sets our reader of atomic files."""

from recbole_llm import compat

compat.apply()

from recbole_llm.data.recbole_dataset import DATASET_METHODS, KNOWLEDGE_METHODS  # noqa: E402  (RecBole after compat)

compat.read_atomic_files(DATASET_METHODS, KNOWLEDGE_METHODS)
