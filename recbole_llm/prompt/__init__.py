"""Prompts: wording, and how titles become token ids."""
