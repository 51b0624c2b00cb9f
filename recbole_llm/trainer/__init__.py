"""Training in stages: selection, fine-tuning, distance, distillation, curriculum."""

from recbole_llm import compat

compat.apply()
