"""What a person asks for: a run, several side by side, and the folders they leave."""

from recbole_llm import compat

compat.apply()
