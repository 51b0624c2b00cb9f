"""The trainer of LLM recommenders: stages in ``fit``, the protocol's rows in ``evaluate``."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_llm.curriculum import Curriculum
from recbole_llm.data.rows import rows_digest
from recbole_llm.errors import InputError
from recbole_llm.evaluation import Evaluation, protocol_of
from recbole_llm.evaluation.collector import install_collector, unrounded_evaluator
from recbole_llm.hashing import hash_file
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.registry import find_choice
from recbole_llm.selection.row_selection import select_rows
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.stages import write_json
from recbole_llm.trainer.checkpoint import clear_states
from recbole_llm.trainer.distillation import ANSWERS, DistanceMeter, distil, distilled_targets, read_answers
from recbole_llm.trainer.finetune import FineTuning, Lessons
from recbole_llm.trainer.reweighting import Reweighting

# What decides a generated answer besides the weights, and what decides the validation score of an epoch.
GENERATION = ("num_beams", "max_new_tokens", "length_penalty", "first_line")
ANSWERING = (*GENERATION, "grounding", "repeatable")
FINE_TUNE, CURRICULUM = "fine-tune", "curriculum"  # names of the two tuning stages
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """A finished tuning stage.

    Attributes:
        stage: its name.
        folder: where it is kept; ``adapter/`` holds the weights of the best epoch.
        history: one record per epoch.
        best_epoch: the epoch (1-based) whose weights were kept.
        initial_distance: of the untuned LLM's answers, where the curriculum uses it.
        settings: of the curriculum, such as ``{"alpha": 1.0}``.
    """

    stage: str
    folder: Path
    history: list[dict[str, Any]]
    best_epoch: int
    initial_distance: float | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Fit:
    """What one call of ``fit`` was given, and the training rows made of it."""

    rows: Any
    kept: Interaction
    examples: list[TokenPair]
    histories: list[list[int]]
    valid_data: Any
    verbose: bool
    show_progress: bool
    callback_fn: Callable[[int, float], None] | None


class LLMTrainer(Trainer):
    """Fine-tunes an LLM recommender in stages and evaluates it by the protocol of its config.

    Every stage is kept under ``<checkpoint_dir>/stages`` by a fingerprint of what it depends on: the same command finds
    it again, a killed one goes on after its last epoch, and runs that differ only in something later share it.

    Args:
        config: the resolved config.
        model: the recommender, its adapter attached.

    Attributes:
        tuned: the tuning stages that ``fit`` ran, in their order; the last one's weights stand.
        distilled: folder of the distilled answers, if the curriculum used some that were generated.
        coreset: folder of the chosen rows, if a coreset chose some.
        n_train_rows: rows trained on, None before ``fit`` and for the untuned LLM.
    """

    model: LLMRecommender

    def __init__(self, config: Any, model: LLMRecommender) -> None:
        super().__init__(config, model)
        install_collector(self)
        self.protocol = protocol_of(config)
        self.evaluator = unrounded_evaluator(config)
        self.tuned: list[Tuned] = []
        self.distilled: Path | None = None
        self.coreset: Path | None = None
        self.n_train_rows: int | None = None
        self._reweighting: Reweighting | None = None
        self._evaluation: Evaluation | None = None
        self._valid_evaluation: Evaluation | None = None

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        if self.config["learner"] == "sparse_adam":
            raise InputError("learner: sparse_adam takes sparse gradients, and an LLM's are dense; choose adamw")
        weights = self.model.adapter.trainable_groups(self.model.llm)
        options = self._group_options()
        groups = [{"params": own, **options.get(group, {})} for group, own in weights.items()]
        return super()._build_optimizer(**{"params": groups} | kwargs)

    def _group_options(self) -> dict[str, dict[str, float]]:
        """What the optimiser does otherwise for weights beside the LLM (iLoRA, arXiv 2408.10159, in its code)."""
        decay = self.config["side_weight_decay"]
        gate_rate = self.config["gate_lr_ratio"] * self.config["learning_rate"]
        options = {"gate": {"lr": gate_rate, "weight_decay": decay}, "modules": {"weight_decay": decay}}
        groups = self.model.adapter.trainable_groups(self.model.llm)
        return {group: own for group, own in options.items() if group in groups}

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per epoch of the last tuning stage; empty for the untuned LLM."""
        return self.tuned[-1].history if self.tuned else []

    @property
    def best_epoch(self) -> int:
        """The epoch (1-based) of the last tuning stage whose weights were kept; 0 for the untuned LLM."""
        return self.tuned[-1].best_epoch if self.tuned else 0

    @property
    def gammas(self) -> dict[str, float]:
        """Metric name to the gamma of its re-weighting; empty without."""
        return self._reweighting.gammas if self._reweighting else {}

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
            callback_fn: called with (epoch, validation score) after every validated epoch of each tuning stage.

        Returns:
            Best validation score and the validation metrics of that epoch; (None, None) without validation.
        """
        curricula = self._curricula()
        self._check_validation(valid_data, curricula)
        self.eval_collector.data_collect(train_data)
        self.model.prepare()
        if self.config["epochs"]:
            valid_rows = valid_data.dataset if valid_data else None
            rows, self.coreset = select_rows(self.model, self.config, train_data.dataset, valid_rows)
            self.n_train_rows = len(rows)
            own = (rows.data, rows.readable, rows.examples, rows.histories)
            fit = _Fit(*own, valid_data, verbose, show_progress, callback_fn)
            self._tune(fit, curricula)
        elif valid_data:
            log.info("epochs is 0: the untuned LLM is ranked as it is.")
        self._search_gammas(valid_data)
        if not valid_data:
            return None, None
        self.best_valid_result = self.judge_valid(valid_data, show_progress).metrics
        self.best_valid_score = self.best_valid_result[self.valid_metric]
        return self.best_valid_score, self.best_valid_result

    def _curricula(self) -> list[Curriculum]:
        """One curriculum per value of ``alpha``; none where every row is trained towards its true title alone."""
        value = self.config["curriculum"]
        choice = find_choice("curriculum", value)
        if choice is None:
            return []
        if not isinstance(self.model, BIGRec):
            raise InputError(f"curriculum: {self.config['model']} has no answers to learn from; set curriculum: none")
        alphas = self.config["alpha"] if isinstance(self.config["alpha"], list) else [self.config["alpha"]]
        made = [choice.from_value(value, {"alpha": alpha}) for alpha in alphas]
        different = {str(curriculum.facts()): curriculum for curriculum in made}
        return [curriculum for curriculum in different.values() if curriculum.needs_distilled]

    def _check_validation(self, valid_data: Any, curricula: list[Curriculum]) -> None:
        """Refuse, before anything is computed, settings that need validation rows that are not there."""
        Reweighting.check(self.config, valid_data)
        epochs, step = self.config["epochs"], self.config["eval_step"]
        if not valid_data and epochs and step and self.config["stopping_step"]:
            raise InputError("stopping_step: there are no validation rows to stop by; set --stopping_step=0")
        if epochs and len(curricula) > 1 and not (valid_data and 0 < step <= epochs):
            missing = "validated epochs" if valid_data else "validation rows"
            raise InputError(f"alpha: there are no {missing} to choose one of several by; give one")

    def judge_valid(self, valid_data: Any, show_progress: bool = False) -> Evaluation:
        """The validation rows under the model as it stands; not answered again where training already did."""
        if self._valid_evaluation is None:
            self._valid_evaluation = self.judge(valid_data, show_progress)
        return self._valid_evaluation

    def judge(self, data: Any, show_progress: bool = False) -> Evaluation:
        """The rows of a loader under the model as it stands."""
        return self.protocol.evaluate(self, data, show_progress)

    def restore(self, tuned: Tuned, valid_data: Any) -> None:
        """Put the model into the state that a tuning stage ended in, its re-weighting included."""
        self.load_adapter(tuned.folder / "adapter")
        self._valid_evaluation = None
        self._search_gammas(valid_data)

    # ---- tuning stages

    def _tune(self, fit: _Fit, curricula: list[Curriculum]) -> None:
        self.model.adapter.prepare_rows(fit.histories)
        untuned = self.model.adapter.trainable_state(self.model.llm)
        facts = self._fine_tune_facts(fit)
        if not curricula or self.config["sd_file"] is None:
            self.tuned.append(self._fine_tune(FINE_TUNE, facts, fit))
        if not curricula:
            return
        texts, source = self._distil(fit, facts)
        targets = distilled_targets(self.model, texts, fit.examples, self.config)
        facts |= {"distilled": source, **{name: self.config[name] for name in ("sd_empty", "sd_permuted")}}
        results = []
        for curriculum in curricula:
            self.model.adapter.load_trainable_state(self.model.llm, untuned)  # a fresh adapter, not the tuned one
            group = "Curriculum/" + (f"alpha {curriculum.facts()['alpha']:g}/" if len(curricula) > 1 else "")
            results.append((self._learn(curriculum, targets, facts, fit, group), self._valid_evaluation))
        best = max(results, key=lambda result: self._best_score(result[0])) if len(results) > 1 else results[0]
        if len(results) > 1:
            log.info("curriculum: %s is the best on validation.", best[0].settings)
            self.load_adapter(best[0].folder / "adapter")
        self.model.stages.used[CURRICULUM] = best[0].folder.name
        self._valid_evaluation = best[1]
        self.tuned.append(best[0])

    def _learn(
        self, curriculum: Curriculum, targets: list[list[int]], facts: dict[str, Any], fit: _Fit, group: str
    ) -> Tuned:
        """Tune the fresh adapter on true and distilled answers under one curriculum."""
        lessons = Lessons(curriculum, targets)
        own = {**facts, "curriculum": curriculum.facts()}
        if curriculum.uses_distance:
            meter = DistanceMeter(self.model, fit.kept, self.config["distance_rows"])
            lessons.measure, lessons.distances = meter.measure, [self._initial_distance(meter, fit)]
            own["distance_rows"] = self.config["distance_rows"]
        return self._fine_tune(CURRICULUM, own, fit, lessons, group)

    def _best_score(self, tuned: Tuned) -> float:
        """Best validation score of a stage, larger is better."""
        score = tuned.history[tuned.best_epoch - 1]["valid"][self.valid_metric]
        return score if self.valid_metric_bigger else -score

    def _fine_tune(
        self, stage: str, facts: dict[str, Any], fit: _Fit, lessons: Lessons | None = None, group: str = ""
    ) -> Tuned:
        settings = FineTuneSettings.from_settings(self.config.final_config_dict)
        self._valid_evaluation = None
        initial = lessons.distances[0] if lessons and lessons.distances else None

        def validate() -> dict[str, float]:
            self._evaluation = self.judge(fit.valid_data, fit.show_progress)
            return self._evaluation.metrics

        def on_epoch(record: dict[str, Any], is_best: bool) -> None:
            if is_best:
                self._valid_evaluation = self._evaluation
            self._log_epoch(group, record, fit.verbose)
            if fit.callback_fn and "valid" in record:
                fit.callback_fn(record["epoch"], record["valid"][self.valid_metric])

        def compute(folder: Path) -> None:
            self.optimizer = self._build_optimizer()
            run = FineTuning(
                self.model,
                fit.examples,
                settings,
                self.optimizer,
                validate if fit.valid_data else None,
                self.valid_metric,
                self.valid_metric_bigger,
                on_epoch,
                fit.show_progress,
                lessons,
                fit.histories,
            )
            write_json(folder / "history.json", run.run(folder))
            self.model.adapter.save(self.model.llm, folder / "adapter", self.model.adapter_owner)
            clear_states(folder)

        folder = self.model.stages.get(stage, facts, compute, resumable=True)
        self.load_adapter(folder / "adapter")
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        settings_of_curriculum = lessons.curriculum.facts() if lessons else {}
        return Tuned(stage, folder, history, self._best_of(history), initial, settings_of_curriculum)

    def _best_of(self, history: list[dict[str, Any]]) -> int:
        """The first epoch with the best validation score; the last one without validation."""
        validated = [record for record in history if "valid" in record]
        if not validated:
            return len(history)
        sign = 1 if self.valid_metric_bigger else -1
        return max(validated, key=lambda record: sign * record["valid"][self.valid_metric])["epoch"]

    def _distil(self, fit: _Fit, facts: dict[str, Any]) -> tuple[list[str], Any]:
        """Distilled answers of the fine-tuned model, or those of ``sd_file``; and what they depend on."""
        given = self.config["sd_file"]
        if given is not None:
            texts = read_answers(Path(given), fit.examples)
            return texts, hash_file(Path(given))
        facts = {"fine-tuned": dict(facts), "generation": self._generation(), "select": self.config["sd_select"]}

        def compute(folder: Path) -> None:
            distil(self.model, fit.kept, fit.examples, self.config["sd_select"], folder, fit.show_progress)

        self.distilled = self.model.stages.get("distil", facts, compute, resumable=True)
        return read_answers(self.distilled / ANSWERS, fit.examples), facts

    def _initial_distance(self, meter: DistanceMeter, fit: _Fit) -> float:
        """Distance of the untuned LLM's answers: the same for every curriculum, so it is measured once."""
        facts = {
            "model": self.model.facts(),
            "recommender": type(self.model).__name__,
            "rows": rows_digest(fit.rows),
            "distance_rows": self.config["distance_rows"],
            "generation": self._generation(),
            "seed": self.config["seed"],
        }

        def compute(folder: Path) -> None:
            write_json(folder / "distance.json", {"distance": meter.measure()})

        folder = self.model.stages.get("initial-distance", facts, compute)
        return json.loads((folder / "distance.json").read_text(encoding="utf-8"))["distance"]

    def _generation(self) -> dict[str, Any]:
        return {name: self.config[name] for name in GENERATION}

    def _fine_tune_facts(self, fit: _Fit) -> dict[str, Any]:
        answering: tuple[str, ...] = ()  # a click is told by the weights alone
        if not self.protocol.has_labels:
            answering = (*ANSWERING, *find_choice("grounding", self.config["grounding"]).settings)
        return {
            "model": self.model.facts(),
            "recommender": type(self.model).__name__,
            "rows": rows_digest(fit.rows),
            "valid_rows": rows_digest(fit.valid_data.dataset) if fit.valid_data else None,
            "valid_metric": self.valid_metric,
            "answering": {name: self.config[name] for name in answering},
            "candidates": self.config["eval_args"]["mode"]["valid"],
            "settings": {
                **FineTuneSettings.from_settings(self.config.final_config_dict).facts(),
                **self._group_options(),
            },
            "seed": self.config["seed"],
        }

    def _log_epoch(self, group: str, record: dict[str, Any], verbose: bool) -> None:
        epoch = record["epoch"]
        scalars = {"Loss/Train": record["train_loss"]}
        for label, name in (("Loss/Real", "real_loss"), ("Loss/Distilled", "distilled_loss"), ("Weight", "weight")):
            scalars[label] = record.get(name)
        scalars["Distance"] = record.get("distance")
        scalars["Gate/Entropy"] = record.get("gate_entropy")
        scalars.update({f"Gate/Expert {k}": share for k, share in enumerate(record.get("gate_usage", ()), start=1)})
        scalars.update({f"Valid/{name}": value for name, value in record.get("valid", {}).items()})
        for label, value in scalars.items():
            if value is not None:
                self.tensorboard.add_scalar(group + label, value, epoch)
        if verbose:
            shown = {"loss": record["train_loss"], **{name: record.get(name) for name in ("weight", "distance")}}
            facts = ", ".join(f"{name}: {value:.4f}" for name, value in shown.items() if value is not None)
            if "gate_usage" in record:
                usage = " ".join(f"{share:.3f}" for share in record["gate_usage"])
                facts += f", gates: {usage} (entropy {record['gate_entropy']:.4f})"
            speed = f"{record['seconds']:.1f} s, {record['tokens_per_second']:,.0f} tokens/s"
            log.info("epoch %d training [%s, %s]", epoch, facts, speed)
            if "valid" in record:
                values = "    ".join(f"{name} : {value:.4f}" for name, value in record["valid"].items())
                log.info("epoch %d validation: %s", epoch, values)

    # ---- evaluate

    def _search_gammas(self, valid_data: Any) -> None:
        if self.config["reweight"] == "none":
            return
        self._reweighting = self._reweighting or Reweighting(self.config, self.model, self.valid_metric)
        self._reweighting.search(valid_data)
        self._valid_evaluation = None

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
        self.model.adapter.load(self.model.llm, folder, self.model.adapter_owner)

    def _evaluate_reweighted(self, eval_data: Any, show_progress: bool) -> OrderedDict[str, float]:
        """Every metric under its own gamma; what the collector remembers of the rows is under the valid metric's."""
        usual = self.gammas.get(self.valid_metric, 0.0)
        found: dict[float, OrderedDict[str, float]] = {}
        with self.model.answers_kept():
            for gamma in [*sorted(set(self.gammas.values()) - {usual}), usual]:
                self.eval_collector.forget()
                self.model.rescore = self._reweighting.rescorer(gamma)
                found[gamma] = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self.model.rescore = None
        return OrderedDict((name, found[self.gammas.get(name, usual)][name]) for name in found[usual])
