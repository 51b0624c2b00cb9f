"""From RecBole's data sets to rows: the reader of atomic files, the item catalogue, row subsets, loaders."""

from recbole_llm import compat

compat.apply()

from recbole_llm.data.recbole_dataset import DATASET_METHODS, KNOWLEDGE_METHODS  # noqa: E402  (RecBole after compat)

compat.read_atomic_files(DATASET_METHODS, KNOWLEDGE_METHODS)
