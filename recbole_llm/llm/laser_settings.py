"""Settings of bi-tuning: a frozen LLM between vectors that learn (Laser, arXiv 2409.01605)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError


@dataclass(frozen=True)
class LaserSettings(Declared):
    """The M-Former that makes the vectors before a prompt, the losses, and the second stage.

    Raises:
        InputError: the heads do not divide the width.

    Example:
        >>> LaserSettings.from_settings({"laser_experts": 2}).experts
        2
    """

    prefix_len: Annotated[int, Setting("vectors before a prompt", low=1, high=1024)] = 32
    experts: Annotated[int, Setting("sets of queries, of which each history gets one", low=1, high=1024)] = 8
    layers: Annotated[int, Setting("blocks of the M-Former", low=1, high=64, note="every other one sees the items")] = 2
    width: Annotated[int, Setting("width of the M-Former", low=1, high=16_384, note="a multiple of laser_heads")] = 128
    heads: Annotated[int, Setting("attention heads of the M-Former", low=1, high=1024)] = 4
    router_scale: Annotated[
        bool, Setting("multiply the queries by their share of the votes, so that the router learns from the ranking")
    ] = False
    tau: Annotated[float, Setting("temperature of the cosines in the loss", above=0)] = 0.05
    balance: Annotated[float, Setting("weight of the experts' balance loss", low=0)] = 0.01
    fixed_epochs: Annotated[
        int,
        Setting(
            "largest number of epochs of the second stage, in which item vectors stay",
            low=0,
            note="0 has none",
        ),
    ] = 5

    prefix: ClassVar[str] = "laser_"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(
                "laser_width", f"{self.width} is no multiple of laser_heads, {self.heads}; give one", kind="conflict"
            )
