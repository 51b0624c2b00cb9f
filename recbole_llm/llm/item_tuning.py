"""Contrastive tuning of an LLM on views of items, and the vectors of all items (LLMEmb, arXiv 2409.19925, SCFT)."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from recbole_llm.adapter.base import Adapter
from recbole_llm.disk import write_json
from recbole_llm.distributed import process
from recbole_llm.errors import InputError
from recbole_llm.llm.budget import TokenBudget, run_batches
from recbole_llm.llm.capabilities import at_most
from recbole_llm.llm.contrastive import infonce_loss, soft_target_loss
from recbole_llm.llm.encoder import pooled_states
from recbole_llm.llm.item_views import Attributes, draw_view, encode_texts, item_text
from recbole_llm.llm.parts import input_embedding
from recbole_llm.llm.vector_settings import INFONCE, ItemVectorSettings
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar
from recbole_llm.stages import stage_seed

SAVED_EVERY = 50  # steps: what a killed tuning loses at most
STATE = "state"
log = logging.getLogger(__name__)


class ItemReader:
    """An LLM that reads items: texts of their attributes, and the vectors it computes from texts.

    Args:
        model: the LLM, with an adapter or without.
        tokenizer: its tokenizer.
        instruction: what every text begins with.
        settings: pooling and lengths.
        max_batch_tokens: limit of (texts x longest text) of a batch where no gradient is needed.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str,
        settings: ItemVectorSettings,
        max_batch_tokens: int | TokenBudget = 8192,
    ) -> None:
        self.model, self.tokenizer, self.instruction, self.settings = model, tokenizer, instruction, settings
        self.budget = TokenBudget.of(max_batch_tokens)
        self.max_tokens = at_most(model, settings.max_tokens)

    def states(self, items: Sequence[Attributes]) -> Tensor:
        """Vectors of items by the attributes given, one forward pass. Returns: float32 [items, d], with a gradient."""
        return self._pool(self._encode(items))

    def vectors(self, items: Sequence[Attributes], progress: bool = False) -> np.ndarray:
        """Vectors of items by all their attributes, in batches. Returns: float32 [items, d].

        Several processes share the batches.

        Raises:
            InputError: a vector is not finite.
        """
        token_ids = self._encode(items)
        found = np.empty((len(items), input_embedding(self.model).embedding_dim), dtype=np.float32)
        share = -(-len(items) // process().count)
        bar = Bar(total=share, desc="embed", unit="item", disable=not progress)
        with bar, evaluating(self.model), torch.no_grad():

            def run(batch: list[int]) -> None:
                found[batch] = self._pool([token_ids[item] for item in batch]).cpu().numpy()
                bar.update(len(batch))

            batches = run_batches([len(ids) for ids in token_ids], self.budget, run, together=True)
        process().complete(found, batches)
        if not np.isfinite(found).all():
            item = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
            text = item_text(self.instruction, items[item])[:80]
            raise InputError(f"the vector of {text!r} is not finite; lower scft_learning_rate", kind="numeric")
        return found

    def _encode(self, items: Sequence[Attributes]) -> list[list[int]]:
        texts = [item_text(self.instruction, attributes) for attributes in items]
        return encode_texts(self.tokenizer, texts, self.max_tokens)

    def _pool(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        padding_id, pooling = self.tokenizer.eos_token_id, self.settings.pooling
        return pooled_states(self.model, token_ids, padding_id=padding_id, pooling=pooling)


class ContrastiveTuning:
    """Tunes an LLM so that two views of an item lie near each other and away from the batch's other items.

    Views are drawn again at every step, from (seed, step, item), so a run that goes on draws what it would have drawn.

    Args:
        reader: the LLM with its adapter.
        adapter: says which weights learn.
        items: attributes of the items that are tuned on.
        seed: seed of items, views and dropout.
        progress: whether to show a bar.
    """

    def __init__(
        self, reader: ItemReader, adapter: Adapter, items: Sequence[Attributes], seed: int, progress: bool = False
    ) -> None:
        self.reader, self.adapter, self.items, self.seed, self.progress = reader, adapter, items, seed, progress
        settings = reader.settings
        self.batch = min(settings.batch, len(items))
        device = input_embedding(reader.model).weight.device
        # As its logarithm, so that it stays positive.
        self.log_tau = nn.Parameter(torch.tensor(math.log(settings.tau), device=device))
        weights = [weight for weight in reader.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW([*weights, self.log_tau], lr=settings.learning_rate, weight_decay=0.0)
        self.losses: list[float] = []

    def run(self, folder: Path) -> list[float]:
        """Tune from the newest state in ``folder``, or from the start. Returns: the loss of every step."""
        self._resume(folder)
        settings, model = self.reader.settings, self.reader.model
        model.train()
        steps = range(len(self.losses), settings.steps)
        for step in Bar(steps, desc="Contrast", ncols=100, disable=not self.progress):
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 - step / settings.steps)
            torch.manual_seed(stage_seed(self.seed, "contrast", step))
            loss = self.loss(*self.views(step))
            if not torch.isfinite(loss):
                raise InputError("scft_learning_rate", f"the loss is not finite in step {step + 1}; set a lower one")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            if (step + 1) % SAVED_EVERY == 0 and step + 1 < settings.steps:
                self._save(folder)
        shutil.rmtree(folder / STATE, ignore_errors=True)
        model.eval()
        return self.losses

    def views(self, step: int) -> tuple[Sequence[Attributes], Sequence[Attributes]]:
        """Two views of each item of a step."""
        per_epoch = len(self.items) // self.batch
        epoch, part = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        chosen = order[part * self.batch : (part + 1) * self.batch].tolist()
        ratio = self.reader.settings.dropout_ratio
        one, other = (
            [
                draw_view(self.items[item], ratio, np.random.default_rng([self.seed, step, item, side]))
                for item in chosen
            ]
            for side in (0, 1)
        )
        return one, other

    def loss(self, one: Sequence[Attributes], other: Sequence[Attributes]) -> Tensor:
        """The contrastive loss of two views of some items."""
        x, y = self.reader.states([*one, *other]).chunk(2)
        tau: Any = self.log_tau.exp()
        found: Tensor
        if self.reader.settings.loss == INFONCE:
            found = infonce_loss(x, y, tau)
        else:
            found = soft_target_loss(x, y, tau, self.reader.settings.detach_targets)
        return found

    def _save(self, folder: Path) -> None:
        aside = folder / f"{STATE}.new"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        tensors = dict(self.adapter.trainable_state(self.reader.model))
        tensors["log_tau"] = self.log_tau.detach().cpu()
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.detach().cpu() for name, value in state.items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, aside / "tensors.safetensors")
        write_json(aside / "losses.json", self.losses)
        shutil.rmtree(folder / STATE, ignore_errors=True)
        os.replace(aside, folder / STATE)

    def _resume(self, folder: Path) -> None:
        if not (folder / STATE / "losses.json").is_file():
            return
        tensors = load_file(folder / STATE / "tensors.safetensors")
        with torch.no_grad():
            self.log_tau.copy_(tensors.pop("log_tau"))
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = tensors.pop(name)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        self.adapter.load_trainable_state(self.reader.model, tensors)
        self.losses = json.loads((folder / STATE / "losses.json").read_text(encoding="utf-8"))
        log.info("Resuming the contrastive tuning after step %d.", len(self.losses))


def reduce_by_pca(vectors: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """Principal components of vectors: centred, not whitened, no lengths normalised.

    Args:
        vectors: float [items, d].
        width: entries of a result, at most min(items, d).

    Returns:
        float32 [items, min(width, items, d)], and the share of the variance that they keep (1 where there is none).

    Example:
        >>> reduced, share = reduce_by_pca(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]), width=1)
        >>> np.abs(reduced).ravel().tolist(), share
        ([2.0, 0.0, 2.0], 1.0)
    """
    from sklearn.decomposition import PCA

    model = PCA(min(width, *vectors.shape), svd_solver="full")
    found = model.fit_transform(vectors.astype(np.float64)).astype(np.float32)
    total = float(vectors.astype(np.float64).var(axis=0, ddof=1).sum()) if len(vectors) > 1 else 0.0
    return found, round(float(model.explained_variance_.sum() / total), 12) if total else 1.0
