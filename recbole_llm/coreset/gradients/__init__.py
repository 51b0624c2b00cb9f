"""Per-row gradients of the LLM's loss: their norms, and effort."""
