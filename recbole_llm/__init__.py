"""LLM-based sequential recommendation as a plugin for RecBole.

Importing this package is light: it neither imports RecBole, torch or transformers nor changes them. The packages
``llm``, ``adapter``, ``coreset``, ``curriculum``, ``grounding`` and ``report`` know nothing of RecBole and can be used
alone.
"""

__version__ = "0.1.0"
