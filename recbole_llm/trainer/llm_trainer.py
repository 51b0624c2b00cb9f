"""The trainer of LLM recommenders: stages in ``fit``, the judge's rows in ``evaluate``."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer

from recbole_llm.data.rows import load_rows, row_pairs, rows_digest
from recbole_llm.errors import InputError
from recbole_llm.grounding import (
    COLLABORATIVE_GAMMAS,
    POPULARITY_GAMMAS,
    collaborative_weights,
    popularity_weights,
    reweight,
    search_gamma,
)
from recbole_llm.model.base import Example, LLMRecommender
from recbole_llm.report import RANK_METRICS
from recbole_llm.stages import write_json
from recbole_llm.trainer.auxiliary import AuxiliaryRecommender
from recbole_llm.trainer.checkpoint import clear_states
from recbole_llm.trainer.finetune import FineTuneSettings, FineTuning
from recbole_llm.trainer.judge import Judgement, install_collector, judge, unrounded_evaluator

# What decides the validation score of an epoch besides the weights.
ANSWERING = ("num_beams", "max_new_tokens", "length_penalty", "grounding", "repeatable")
Weights = Callable[[Any], np.ndarray]  # of an interaction: [items] or [rows, items]
GRIDS = {"popularity": POPULARITY_GAMMAS, "collaborative": COLLABORATIVE_GAMMAS}
log = logging.getLogger(__name__)


class LLMTrainer(Trainer):
    """Fine-tunes an LLM recommender in stages and evaluates it with the judge's rules.

    Every stage is kept under ``<checkpoint_dir>/stages`` by a fingerprint of what it depends on: the same command finds
    it again, a killed one goes on after its last epoch, and runs that differ only in something later share it.

    Args:
        config: the resolved config.
        model: the recommender, its adapter attached.
    """

    model: LLMRecommender

    def __init__(self, config: Any, model: LLMRecommender) -> None:
        super().__init__(config, model)
        install_collector(self)
        self.evaluator = unrounded_evaluator(config)
        self.history: list[dict[str, Any]] = []
        self.gammas: dict[str, float] = {}
        self._weights: Weights | None = None
        self._judgement: Judgement | None = None
        self._valid_judgement: Judgement | None = None

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        if self.config["learner"] == "sparse_adam":
            raise InputError("learner: sparse_adam takes sparse gradients, and an LLM's are dense; choose adamw")
        trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        return super()._build_optimizer(**{"params": trainable} | kwargs)

    # ---- fit

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float | None, dict[str, float] | None]:
        """Run the stages that this model needs; afterwards the model is in the state of its best epoch.

        Args:
            train_data: RecBole's training loader, or anything whose ``dataset`` holds the rows.
            valid_data: loader of the validation rows, or None: then the last epoch stands.
            verbose: whether each epoch is logged.
            saved: kept for RecBole's signature; stages are always kept.
            show_progress: whether to show progress bars.
            callback_fn: called with (epoch, validation score) after every validated epoch.

        Returns:
            Best validation score and the validation metrics of that epoch; (None, None) without validation.
        """
        self._check_validation(valid_data)
        self.eval_collector.data_collect(train_data)
        self.model.prepare()
        if self.config["epochs"]:
            self._fine_tune(train_data.dataset, valid_data, verbose, show_progress, callback_fn)
        elif valid_data:
            log.info("epochs is 0: the untuned LLM is ranked as it is.")
        self._search_gammas(valid_data)
        if not valid_data:
            return None, None
        self.best_valid_result = self.judge_valid(valid_data, show_progress).metrics
        self.best_valid_score = self.best_valid_result[self.valid_metric]
        return self.best_valid_score, self.best_valid_result

    def _check_validation(self, valid_data: Any) -> None:
        """Refuse, before anything is computed, settings that need validation rows that are not there."""
        config, search = self.config, self.config["reweight"] != "none" and self.config["gamma"] is None
        if search and (not valid_data or config["eval_args"]["mode"]["valid"] != "full"):
            raise InputError("gamma: it is searched on the full ranking of validation rows; set --gamma=<number>")
        if not valid_data and config["epochs"] and config["stopping_step"] and config["eval_step"]:
            raise InputError("stopping_step: there are no validation rows to stop by; set --stopping_step=0")

    def judge_valid(self, valid_data: Any, show_progress: bool = False) -> Judgement:
        """The validation rows under the model as ``fit`` left it; not answered again where training already did."""
        if self._valid_judgement is None:
            self._valid_judgement = judge(self, valid_data, show_progress)
        return self._valid_judgement

    @property
    def best_epoch(self) -> int:
        """The epoch (1-based) whose weights were kept; 0 for the untuned LLM."""
        validated = [record for record in self.history if "valid" in record]
        if not validated:
            return len(self.history)
        sign = 1 if self.valid_metric_bigger else -1
        return max(validated, key=lambda record: sign * record["valid"][self.valid_metric])["epoch"]

    def _fine_tune(
        self,
        rows: Any,
        valid_data: Any,
        verbose: bool,
        show_progress: bool,
        callback_fn: Callable[[int, float], None] | None,
    ) -> None:
        settings = FineTuneSettings.from_config(self.config)
        examples = self._examples(rows)
        facts = self._fine_tune_facts(settings, rows, valid_data)

        def validate() -> dict[str, float]:
            self._judgement = judge(self, valid_data, show_progress)
            return self._judgement.metrics

        def on_epoch(record: dict[str, Any], is_best: bool) -> None:
            if is_best:
                self._valid_judgement = self._judgement
            self._log_epoch(record, verbose)
            if callback_fn and "valid" in record:
                callback_fn(record["epoch"], record["valid"][self.valid_metric])

        def compute(folder: Path) -> None:
            run = FineTuning(
                self.model,
                examples,
                settings,
                self.optimizer,
                validate if valid_data else None,
                self.valid_metric,
                self.valid_metric_bigger,
                on_epoch,
                show_progress,
            )
            write_json(folder / "history.json", run.run(folder))
            self.model.adapter.save(self.model.llm, folder / "adapter", self.model.backbone.fingerprint)
            clear_states(folder)

        folder = self.model.stages.get("fine-tune", facts, compute, resumable=True)
        self.model.adapter.load(self.model.llm, folder / "adapter", self.model.backbone.fingerprint)
        self.history = json.loads((folder / "history.json").read_text(encoding="utf-8"))

    def _examples(self, rows: Any) -> list[Example]:
        """Prompt and response of every training row that can be read."""
        found = self.model.examples(rows.inter_feat)
        examples = [example for example in found if example is not None]
        if len(examples) < len(found):
            log.warning("%d training rows have no titled history or target; skipped.", len(found) - len(examples))
        if not examples:
            raise InputError(f"no training row has titles in field '{self.config['title_field']}'")
        if self.model.prompts.n_shortened:
            log.warning(
                "%d prompts exceed max_prompt_tokens and lost their oldest items.", self.model.prompts.n_shortened
            )
        return examples

    def _fine_tune_facts(self, settings: FineTuneSettings, rows: Any, valid_data: Any) -> dict[str, Any]:
        return {
            "model": self.model.facts(),
            "recommender": type(self.model).__name__,
            "rows": rows_digest(rows),
            "valid_rows": rows_digest(valid_data.dataset) if valid_data else None,
            "valid_metric": self.valid_metric,
            "answering": {name: self.config[name] for name in ANSWERING},
            "candidates": self.config["eval_args"]["mode"]["valid"],
            "settings": settings.facts(),
            "seed": self.config["seed"],
        }

    def _log_epoch(self, record: dict[str, Any], verbose: bool) -> None:
        epoch = record["epoch"]
        self.tensorboard.add_scalar("Loss/Train", record["train_loss"], epoch)
        for name, value in record.get("valid", {}).items():
            self.tensorboard.add_scalar(f"Valid/{name}", value, epoch)
        if verbose:
            speed = f"{record['seconds']:.1f} s, {record['tokens_per_second']:,.0f} tokens/s"
            log.info("epoch %d training [loss: %.4f, %s]", epoch, record["train_loss"], speed)
            if "valid" in record:
                values = "    ".join(f"{name} : {value:.4f}" for name, value in record["valid"].items())
                log.info("epoch %d validation: %s", epoch, values)

    # ---- re-weighting

    def _search_gammas(self, valid_data: Any) -> None:
        """Choose gamma per metric on validation, or take the one that was set (BIGRec, section 3.3)."""
        kind = self.config["reweight"]
        if kind == "none":
            return
        self._weights = self._popularity() if kind == "popularity" else self._collaboration()
        if self.config["gamma"] is not None:
            self.gammas = {self.valid_metric: float(self.config["gamma"])}
        else:
            self.gammas = self._best_gammas(GRIDS[kind], valid_data)
        self._valid_judgement = None
        log.info("re-weighting by %s: gamma %s", kind, self.gammas)

    def _popularity(self) -> Weights:
        """Weights by the number of interactions before the split, the same for all rows."""
        items = row_pairs(load_rows(self.config.for_auxiliary("Pop"), few_shot=False).train)[:, 1]
        counts = np.bincount(items, minlength=self.model.catalog.n_items)
        weights = popularity_weights(counts, rankable=np.arange(len(counts)) > 0)
        return lambda interaction: weights

    def _collaboration(self) -> Weights:
        """Weights of each row by the scores of the auxiliary recommender."""
        auxiliary = AuxiliaryRecommender(self.config, self.config["recommender"], self.model.stages)
        return lambda interaction: collaborative_weights(auxiliary.scores(interaction))

    def _best_gammas(self, grid: Sequence[float], valid_data: Any) -> dict[str, float]:
        parts = [(self.model.distances(batch), self._weights(batch), targets) for batch, _, _, targets in valid_data]
        distances = np.concatenate([part[0] for part in parts])
        weights = parts[0][1] if parts[0][1].ndim == 1 else np.concatenate([part[1] for part in parts])
        targets = torch.cat([part[2] for part in parts]).numpy()
        ranked = np.isfinite(distances[np.arange(len(targets)), targets])  # the others are misses whatever gamma is
        metrics = [
            (name, k) for name in self.config["metrics"] if name.lower() in RANK_METRICS for k in self.config["topk"]
        ]
        labels = {f"{name.lower()}@{k}": (name, k) for name, k in metrics}
        if not ranked.any():
            return dict.fromkeys(labels, 0.0)
        weights = weights if weights.ndim == 1 else weights[ranked]
        return search_gamma(distances[ranked], weights, targets[ranked], labels, grid)

    # ---- evaluate

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> OrderedDict[str, float] | None:
        """Metrics of the model as it stands; ``fit`` has already restored the best epoch.

        Args:
            eval_data: loader of the judged rows.
            load_best_model: kept for RecBole's signature.
            model_file: folder of a saved adapter to load first.
            show_progress: whether to show a progress bar.

        Returns:
            Metric name to unrounded value.
        """
        if model_file is not None:
            self.load_adapter(Path(model_file))
        if not self.gammas or not eval_data:
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        return self._evaluate_reweighted(eval_data, show_progress)

    def load_adapter(self, folder: Path) -> None:
        """Load a saved adapter, checked against its own manifest."""
        self.model.adapter.load(self.model.llm, folder, self.model.backbone.fingerprint)

    def _evaluate_reweighted(self, eval_data: Any, show_progress: bool) -> OrderedDict[str, float]:
        """Every metric under its own gamma; what the judge remembers of the rows is under the valid metric's."""
        usual = self.gammas.get(self.valid_metric, 0.0)
        found: dict[float, OrderedDict[str, float]] = {}
        with self.model.answers_kept():
            for gamma in [*sorted(set(self.gammas.values()) - {usual}), usual]:
                self.eval_collector.forget()
                self.model.rescore = self._rescorer(gamma)
                found[gamma] = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self.model.rescore = None
        return OrderedDict((name, found[self.gammas.get(name, usual)][name]) for name in found[usual])

    def _rescorer(self, gamma: float) -> Callable[[np.ndarray, Any], np.ndarray]:
        return lambda distances, interaction: reweight(distances, self._weights(interaction), gamma)
