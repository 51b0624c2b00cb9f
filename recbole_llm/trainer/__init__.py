"""Training in stages, evaluation by one judge, and the folder a run leaves behind."""

from recbole_llm import compat

compat.apply()
