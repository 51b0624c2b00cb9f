"""Settings of experiment trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting


@dataclass(frozen=True)
class CallbackSettings(Declared):
    """Settings of experiment trackers."""

    callbacks: Annotated[
        list[str] | str | None,
        Setting(
            "experiment trackers that receive settings, scalars by epoch and metrics",
            note="wandb, mlflow, or both; each is a package to install",
            null="uses none",
        ),
    ] = None
    callback_project: Annotated[str, Setting("project, or experiment, that trackers put runs into")] = "recbole-llm"
