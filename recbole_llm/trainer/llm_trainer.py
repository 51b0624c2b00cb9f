"""The trainer of LLM recommenders: stages in ``fit``, the protocol's rows in ``evaluate``."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.trainer import Trainer

from recbole_llm.curriculum import make_curricula
from recbole_llm.distributed import process
from recbole_llm.evaluation import Evaluation, protocol_of
from recbole_llm.evaluation.collector import install_collector, unrounded_evaluator
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.objective_reader import make_reader
from recbole_llm.objective import make_objective
from recbole_llm.selection.row_selection import CoresetStage, chooses_rows, select_rows
from recbole_llm.settings.config import Config
from recbole_llm.settings.stage_checks import check_gamma, check_validation
from recbole_llm.settings.task_checks import LOSS
from recbole_llm.settings.training import is_tuned
from recbole_llm.timeline import EVALUATE, timeline
from recbole_llm.trainer.epoch_log import log_epoch, write_scalars
from recbole_llm.trainer.history_policy import HistoryCut, HistoryPolicyStage
from recbole_llm.trainer.optimizer import parameter_groups
from recbole_llm.trainer.pipeline import Pipeline, tuning_stages
from recbole_llm.trainer.reweighting import Reweighting
from recbole_llm.trainer.tuning import Tuning, TuningResult, load_adapter
from recbole_llm.trainer.valid_loss import ValidLoss
from recbole_llm.trainer.validation import Validation

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

log = logging.getLogger(__name__)


class LLMTrainer(Trainer):
    """RecBole's trainer of an LLM recommender: runs the stages of a run and evaluates by the protocol of its config.

    Every stage is kept under ``<checkpoint_dir>/stages`` by a fingerprint of what it depends on: the same command finds
    it again, a killed one continues after its last epoch, and runs that differ only in something later share it.

    Args:
        config: the resolved config.
        model: the recommender, its adapter attached.

    Attributes:
        tuned: the tuning stages that ``fit`` ran, in their order; the last one's weights stand.
        tried: the curricula of every value of ``alpha``, of which the best on validation is the last of ``tuned``.
        distilled: folder of the distilled answers, if the curriculum used some that were generated.
        coreset: folder of the chosen rows, if a coreset chose some.
        history_policy: folder of what chooses how much of a history is shown, where that is chosen.
        n_train_rows: rows trained on, None before ``fit`` and for the untuned LLM.
        valid_evaluation: evaluation of the validation rows after ``fit``; None without such rows.
        valid_loss: gives the loss of the validation rows' answers; None without such rows and where clicks are
            predicted, whose LogLoss says the same, unless the epoch is chosen by it.
        gammas: metric name to the gamma of its re-weighting; empty without.
    """

    model: LLMRecommender

    def __init__(self, config: Config, model: LLMRecommender) -> None:
        super().__init__(config, model)
        install_collector(self)
        self.evaluator = unrounded_evaluator(config)
        self.protocol = protocol_of(config)
        self.tuned: list[TuningResult] = []
        self.tried: list[TuningResult] = []
        self.distilled: Path | None = None
        self.coreset: Path | None = None
        self.history_policy: Path | None = None
        self.n_train_rows: int | None = None
        self.valid_evaluation: Evaluation | None = None
        self.valid_loss: ValidLoss | None = None
        self._reweighting: Reweighting | None = None

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        groups = parameter_groups(self.config, self.model)
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**{"params": groups} | kwargs)
        return optimizer

    @property
    def gammas(self) -> dict[str, float]:
        """See above."""
        return self._reweighting.gammas if self._reweighting else {}

    # ---- fit

    @classmethod
    def stage_names(cls, config: Config) -> list[str]:
        """Names of the stages that :meth:`fit` goes through, in their order.

        Args:
            config: the resolved config.
        """
        found = [CoresetStage.name] if is_tuned(config) and chooses_rows(config) else []
        found += cls._tuning_stages(config) if is_tuned(config) else []
        return found + ([HistoryPolicyStage.name] if config["history_policy"] != "fixed" else [])

    @classmethod
    def _tuning_stages(cls, config: Config) -> list[str]:
        """Names of the stages of :meth:`_tune`."""
        return tuning_stages(config)

    def fit(
        self,
        train_data: Any,
        valid_data: AbstractDataLoader | None = None,
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
            callback_fn: called with (epoch, validation score) after every validated epoch of each tuning stage, those
                that an earlier run computed included; what it raises ends the run.

        Returns:
            Best validation score and the validation metrics of that epoch; (None, None) without validation.
        """
        check_gamma(self.config, bool(valid_data))
        check_validation(self.config, bool(valid_data))
        self.eval_collector.data_collect(train_data)
        self.model.prepare_training(train_data.dataset)
        self.model.prepare()
        self.valid_loss = self._make_valid_loss(valid_data) if valid_data else None
        if is_tuned(self.config):
            self._tune(self._tuning(train_data, valid_data, verbose, show_progress, callback_fn))
        elif valid_data:
            log.info("epochs is 0: the untuned LLM is ranked as it is.")
        if self.config["history_policy"] != "fixed":
            self._choose_histories(train_data.dataset)
        timeline().begin(EVALUATE)
        return self._best_of(self._evaluate_valid(self.tuned[-1] if self.tuned else None, valid_data, show_progress))

    def _best_of(self, evaluation: Evaluation | None) -> tuple[float | None, dict[str, float] | None]:
        """What :meth:`fit` returns, of the validation rows' evaluation; both are kept, as RecBole's trainers do."""
        self.valid_evaluation = evaluation
        if evaluation is None:
            return None, None
        self.best_valid_result = evaluation.metrics
        if self.valid_metric == LOSS:
            self.best_valid_score = self.loss_of(self.tuned[-1] if self.tuned else None)
        else:
            self.best_valid_score = self.best_valid_result[self.valid_metric]
        return self.best_valid_score, self.best_valid_result

    def _make_valid_loss(self, valid_data: AbstractDataLoader) -> ValidLoss | None:
        """The loss of the validation rows' answers, if it is reported."""
        if self.valid_metric != LOSS and self.protocol.has_labels:
            return None
        objective = make_objective(self.config.final_config_dict)
        reader = make_reader(self.model, objective) if objective is not None and objective.reads_legal else None
        return ValidLoss(self.model, valid_data.dataset, self.model.generation_budget, reader)

    def _tune(self, tuning: Tuning) -> None:
        """Run the tuning stages."""
        pipeline = Pipeline(tuning, make_curricula(self.config))
        pipeline.run()
        self.tuned, self.tried, self.distilled = pipeline.tuned, pipeline.tried, pipeline.distilled

    def _choose_histories(self, train: Any) -> None:
        """Let an actor-critic choose how much of a history the prompts of the trained model show."""
        stages = self.model.stages
        weights = stages.used[self.tuned[-1].stage] if self.tuned else "untuned"
        stage = HistoryPolicyStage(self.model, self.config, train, weights)
        timeline().begin(stage.name)
        self.model.history_cut = HistoryCut(stages.run(stage), self.model)
        self.history_policy = stages.folder(stage)

    def _tuning(
        self,
        train_data: Any,
        valid_data: AbstractDataLoader | None,
        verbose: bool,
        show_progress: bool,
        callback_fn: Callable[[int, float], None] | None,
    ) -> Tuning:
        """What the tuning stages share, the training rows chosen."""
        valid_rows = valid_data.dataset if valid_data else None
        rows, self.coreset = select_rows(self.model, self.config, train_data.dataset, valid_rows)
        self.n_train_rows = len(rows)

        def evaluate() -> Evaluation:
            return self.protocol.evaluate(self, valid_data, show_progress)

        def make_optimizer() -> torch.optim.Optimizer:
            self.optimizer = self._build_optimizer()
            return self.optimizer

        def on_epoch(group: str, record: dict[str, Any]) -> None:
            write_scalars(self.tensorboard, group, record)
            if verbose:
                log_epoch(record, timeline().left())

        validation = self._validation(evaluate) if valid_data else None
        shared = (rows, valid_rows, validation, make_optimizer, on_epoch, show_progress, callback_fn)
        return Tuning(self.model, self.config, self.protocol, *shared)

    def _validation(self, evaluate: Callable[[], Evaluation]) -> Validation:
        """How epochs are evaluated: by the protocol, or by the loss alone where that chooses."""
        name, bigger, loss = self.valid_metric, self.valid_metric_bigger, self.valid_loss
        if loss is not None and name == LOSS:
            return Validation(None, name, bigger, loss.require)
        return Validation(evaluate, name, bigger, loss.measure if loss is not None else None)

    # ---- evaluate

    def loss_of(self, tuned: TuningResult | None) -> float | None:
        """Loss of the validation rows' answers under the weights of a tuning stage, which the model has.

        Args:
            tuned: the stage, whose history knows it where it was validated; None for the untuned LLM.
        """
        known = tuned.history[tuned.best_epoch - 1].get("valid_loss") if tuned is not None else None
        return known if known is not None or self.valid_loss is None else self.valid_loss.measure()

    def restore(
        self, tuned: TuningResult, valid_data: AbstractDataLoader | None, show_progress: bool = False
    ) -> Evaluation | None:
        """Put the model into the state that a tuning stage ended in, its re-weighting included.

        Returns:
            What the model does on the validation rows; None without such rows.
        """
        self.load_adapter(tuned.folder / "adapter")
        self.model.history_cut = None  # it is chosen for the last stage's weights
        return self._evaluate_valid(tuned, valid_data, show_progress)

    def _evaluate_valid(
        self, tuned: TuningResult | None, valid_data: AbstractDataLoader | None, show_progress: bool
    ) -> Evaluation | None:
        """The validation rows under the weights of a tuning stage, which the model has; gamma is searched on them."""
        if self.config["reweight"] != "none":
            self._reweighting = self._reweighting or Reweighting(self.config, self.model, self.protocol.usual_metric)
            self._reweighting.search(valid_data)
            return self.protocol.evaluate(self, valid_data, show_progress) if valid_data else None
        # The main process may have trained alone, and then it alone has evaluated.
        known = process().from_main(tuned.evaluation if tuned is not None else None)
        if known is not None and self.model.history_cut is None:
            return known
        return self.protocol.evaluate(self, valid_data, show_progress) if valid_data else None

    def write_run(self, folder: Path) -> None:  # noqa: B027
        """Write what a run folder holds of a model whose LLM answers no prompts."""

    def load_adapter(self, folder: Path) -> None:
        """Load a saved adapter, checked against its own manifest."""
        load_adapter(self.model, folder)

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
            eval_data: loader of the evaluated rows.
            load_best_model: kept for RecBole's signature.
            model_file: folder of a saved adapter to load first.
            show_progress: whether to show a progress bar.

        Returns:
            Metric name to unrounded value.
        """
        if model_file is not None:
            self.load_adapter(Path(model_file))
        if self._reweighting and self.gammas and eval_data:
            return self._evaluate_reweighted(self._reweighting, eval_data, show_progress)
        metrics: OrderedDict[str, float] | None
        metrics = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        return metrics

    def _evaluate_reweighted(
        self, reweighting: Reweighting, eval_data: Any, show_progress: bool
    ) -> OrderedDict[str, float]:
        """Every metric under its own gamma; what the collector remembers of the rows is under the valid metric's."""
        model, gammas = reweighting.model, reweighting.gammas
        usual = gammas.get(self.protocol.usual_metric, 0.0)
        found: dict[float, OrderedDict[str, float]] = {}
        with model.answers_kept():
            for gamma in [*sorted(set(gammas.values()) - {usual}), usual]:
                self.eval_collector.forget()
                model.rescore = reweighting.rescorer(gamma)
                found[gamma] = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        model.rescore = None
        return OrderedDict((name, found[gammas.get(name, usual)][name]) for name in found[usual])
