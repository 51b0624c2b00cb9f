"""The record of an epoch: a line in the log, and scalars for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

SCALARS = {
    "Loss/Train": "train_loss",
    "Loss/Valid": "valid_loss",
    "Loss/Real": "real_loss",
    "Loss/Distilled": "distilled_loss",
    "Weight": "weight",
    "Distance": "distance",
    "Gate/Entropy": "gate_entropy",
}
"""TensorBoard's name to that in the record of an epoch."""
log = logging.getLogger(__name__)


def write_scalars(writer: Any, group: str, record: Mapping[str, Any]) -> None:
    """Write an epoch's numbers to TensorBoard.

    Args:
        writer: a ``SummaryWriter``.
        group: what stands before every name, such as ``Curriculum/``.
        record: see :meth:`FineTuning.run`.
    """
    scalars = {label: record.get(name) for label, name in SCALARS.items()}
    scalars.update({f"Gate/Expert {k}": share for k, share in enumerate(record.get("gate_usage", ()), start=1)})
    scalars.update({f"Valid/{name}": value for name, value in record.get("valid", {}).items()})
    for label, value in scalars.items():
        if value is not None:
            writer.add_scalar(group + label, value, record["epoch"])


def log_epoch(record: Mapping[str, Any], left: str = "") -> None:
    """Log an epoch: its losses and its speed, and what validation found.

    Args:
        record: see :meth:`FineTuning.run`.
        left: how long the command may still take, where that is known.
    """
    shown = {"loss": record["train_loss"], **{name: record.get(name) for name in ("weight", "distance")}}
    facts = ", ".join(f"{name}: {value:.4f}" for name, value in shown.items() if value is not None)
    if "gate_usage" in record:
        usage = " ".join(f"{share:.3f}" for share in record["gate_usage"])
        facts += f", gates: {usage} (entropy {record['gate_entropy']:.4f})"
    speed = f"{record['seconds']:.1f} s, {record['tokens_per_second']:,.0f} tokens/s"
    log.info("epoch %d training [%s, %s]%s", record["epoch"], facts, speed, f", {left}" if left else "")
    if "valid" in record:
        found = {**record["valid"], **({"loss": record["valid_loss"]} if "valid_loss" in record else {})}
        values = "    ".join(f"{name} : {value:.4f}" for name, value in found.items())
        log.info("epoch %d validation: %s", record["epoch"], values)
