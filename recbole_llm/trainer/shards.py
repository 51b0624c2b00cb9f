"""Training with sharded LLM weights: FSDP, by accelerate's own settings.

Only optimiser steps run on shards. Between them a whole LLM stands beside, with the weights that have learned copied
into it: it answers, is embedded with and is saved as in any other run, so that all results but the training's are
those of whole weights. On a GPU the whole one waits in the CPU's memory while the shards are trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from recbole_llm.distributed import (
    Process,
    asks_for_shards,
    needs_whole_llm,
    process,
    sharded_like,
    whole_tensor,
)
from recbole_llm.errors import InputError
from recbole_llm.llm.capabilities import share_findings
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.model.base import LLMRecommender
from recbole_llm.settings.launch_checks import check_sharded_llm


def deals_weights_out() -> bool:
    """Whether the launcher asks for FSDP, and there is somebody to share with."""
    return asks_for_shards() and process().count > 1


class Shards:
    """A model's LLM in two forms: whole, and as shards of which each process holds and trains its own.

    Args:
        model: the recommender; its LLM is the whole one unless :meth:`in_use`.
        optimizer: over the weights that learn; it gets the shards in their stead.

    Raises:
        InputError: accelerate's settings ask for what this does not do.
    """

    def __init__(self, model: LLMRecommender, optimizer: torch.optim.Optimizer) -> None:
        # A command has asked this of its settings; a script has not, nor is it asked of models that answer no prompts.
        check_sharded_llm(model.config["quant"], model.adapter.name, model.item_slots)
        self._model, self._device = model, model.device
        self._whole = (model.llm, model.draws, model.scorer)
        self._rest(self._whole[0])
        llm, draws = copy.deepcopy((model.llm, model.draws))
        llm = _dealt_out(llm, self._device)
        share_findings(model.llm, llm)
        self._parts = (llm, draws, TrunkScorer(llm, model.backbone.pad_token_id, draws))
        self._pairs = [
            (whole, part)
            for (_, whole), (_, part) in zip(model.llm.named_parameters(), llm.named_parameters(), strict=True)
            if whole.requires_grad
        ]
        shard_of = dict(self._pairs)
        if any(weight not in shard_of for group in optimizer.param_groups for weight in group["params"]):
            raise needs_whole_llm("model", "training of weights beside the LLM's own")  # of another package's model
        for group in optimizer.param_groups:
            group["params"] = [shard_of[weight] for weight in group["params"]]
        self._wake(self._whole[0])

    @property
    def draws(self) -> Any:
        """What the shards' dropout is drawn from."""
        return self._parts[1]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the model's LLM is the shards; afterwards the whole one, with what they have learned."""
        model = self._model
        self._rest(self._whole[0])
        model.llm, model.draws, model.scorer = self._parts
        model.llm.train(self._whole[0].training)
        try:
            yield
        finally:
            model.llm, model.draws, model.scorer = self._whole
            self._wake(model.llm)
        self.gather()

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the shards' weights into the whole LLM; all processes take part."""
        for whole, part in self._pairs:
            whole.copy_(whole_tensor(part))

    @torch.no_grad()
    def scatter(self) -> None:
        """Copy the whole LLM's weights into the shards; all processes take part."""
        for whole, part in self._pairs:
            part.copy_(sharded_like(whole.detach().to(self._device), part))

    def _rest(self, llm: nn.Module) -> None:
        if self._device.type == "cuda":
            llm.to("cpu")

    def _wake(self, llm: nn.Module) -> None:
        if self._device.type == "cuda":
            llm.to(self._device)


@dataclass
class _Accelerator:
    """What accelerate's function reads of an ``Accelerator``; one on a CPU knows no FSDP."""

    device: torch.device
    fsdp_plugin: Any
    process: Process = field(default_factory=process)
    mixed_precision: str = "no"
    torch_device_mesh: None = None
    parallelism_config: None = None

    @property
    def state(self) -> _Accelerator:
        """What holds the FSDP plugin: this object itself."""
        return self

    @property
    def is_main_process(self) -> bool:
        """Whether it warns."""
        return self.process.is_main


def _dealt_out(llm: nn.Module, device: torch.device) -> nn.Module:
    """An LLM whose weights are sharded in place, by accelerate's settings of FSDP."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        message = f"{plugin.fsdp_version} is not supported; give --fsdp_version=2, as in properties/accelerate"
        raise InputError("fsdp_version", message, kind="value")
    plugin.cpu_ram_efficient_loading = False  # every process has the weights already
    made: nn.Module = fsdp2_prepare_model(_Accelerator(device, plugin), llm)
    for module in made.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a process's loss is its part of the step's, not a mean of its own
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it adds
    return made
