"""Names of gate networks, for settings that are read before torch is."""

from __future__ import annotations

GATES = ("linear", "mlp", "topk", "noisy")
"""Kinds of :class:`~recbole_llm.adapter.gates.GateNetwork`."""
