"""Gradients of the LLM's loss row by row: their norms, and effort, which is one."""
