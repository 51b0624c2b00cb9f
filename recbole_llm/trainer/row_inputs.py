"""What selectors need to know about rows: from the auxiliary recommender, from the untuned LLM, or from the data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction, cat_interactions
from torch.nn.functional import cross_entropy

from recbole_llm.classic.auxiliary import AuxiliaryRecommender
from recbole_llm.coreset import (
    MeanLoss,
    Selector,
    effort_scores,
    effort_weights,
    el2n_scores,
    grand_scores,
    losses_per_row,
    parameter_losses,
    row_influence,
)
from recbole_llm.coreset.row_losses import Losses
from recbole_llm.data.batches import micro_batches
from recbole_llm.data.rows import SAMPLE_ID, rows_digest
from recbole_llm.errors import InputError
from recbole_llm.llm.prefill import PrefillScorer
from recbole_llm.model.base import Example, LLMRecommender
from recbole_llm.report import peak_mib
from recbole_llm.stages import MANIFEST, write_json
from recbole_llm.trainer.tail import TransformerTail, row_losses
from recbole_llm.trainer.text_vectors import TextVectors, llm_encoder

OF_RECOMMENDER = ("influence", "el2n", "grand", "recommender_vectors")
OF_LLM = ("effort", "gradient_norms", "quality", "llm_vectors")
OF_GATED_LLM = ("effort", "gradient_norms", "quality")  # by its loss, with the adapter on
OF_TEXTS = ("embeddings", "valid_embeddings")
OF_NEXT_ITEM = ("influence", "el2n", "grand")  # by the recommender's loss on the row's target
SETTINGS = {
    "influence": (
        "influence_method",
        "damping_ratio",
        "influence_damping",
        "influence_scale",
        "influence_steps",
        "influence_step_rows",
        "influence_target",
        "influence_weights",
        "coreset_unit",
    ),
    "effort": ("effort_weights", "effort_tokens"),
    "gradient_norms": ("effort_weights",),
    "quality": ("effort_tokens",),
}
VALUES, FACTS = "values.npy", "facts.json"
WEIGHT = "influence_weight"  # column of a row's part in the mean loss
_LOGITS = 2**21  # numbers of one batch's scores of all items: 8 MB in float32, near what a CPU's cache holds
_LARGEST_HESSIAN = 20_000  # weights; the matrix has their square
log = logging.getLogger(__name__)


class _ValidRows(NamedTuple):
    """Validation rows that can be read.

    Attributes:
        texts: what is embedded of each.
        rows: themselves.
    """

    texts: list[str]
    rows: Interaction


def check_needs(selector: Selector, config: Any, valid_rows: Any) -> None:
    """Refuse, before anything is computed, a selector whose inputs this run cannot give.

    Raises:
        InputError: it looks at validation rows and there are none, goes by the next item where the model predicts
            clicks, looks at gates that are not there yet, or a solver is given a setting of another one.
    """
    needs = {need.name for need in selector.needs}
    by_validation = needs & {"target_texts", "valid_embeddings"}
    if (by_validation or "influence" in needs and config["influence_target"] == "valid") and valid_rows is None:
        raise InputError(f"coreset: {selector.name} looks at validation rows, and there are none; change eval_args")
    if config.task == "click" and (found := needs.intersection(OF_NEXT_ITEM)):
        raise InputError(
            f"coreset: {selector.name} goes by the {sorted(found)[0]} of the next item, and {config['model']} predicts "
            "clicks; choose random, or one that goes by texts or vectors"
        )
    if config["ilora_permuted"] and needs.intersection(OF_GATED_LLM):
        raise InputError(
            f"ilora_permuted: coreset {selector.name} goes by the LLM before training, when there are no gates of "
            "others; choose another coreset, or set it False"
        )
    if "influence" in needs:
        _check_solver(config)


def _check_solver(config: Any) -> None:
    method = config["influence_method"]
    for key in ("influence_scale", "influence_step_rows"):
        if config[key] is not None and method != "lissa":
            raise InputError(f"{key}: it is of influence_method: lissa, not of {method}; leave it out")
    if config["influence_steps"] is not None and method == "exact":
        raise InputError("influence_steps: influence_method: exact takes no steps; leave it out")


class RowInputs:
    """One method per :class:`recbole_llm.coreset.Input`, of its name.

    What takes a model to compute is a stage of its own, so that selectors, budgets and seeds of the draw share it.

    Args:
        model: the recommender, untuned.
        config: the resolved config.
        rows: the training rows, a RecBole data set.
        pool: int64 [n], places of the rows to choose from.
        examples: prompt and response of each of these.
        valid_rows: the validation rows, a RecBole data set, or None.
        needs: names of the inputs that will be asked for.

    Attributes:
        facts: input to what its computation reports, such as the Hessian's eigenvalues.
        seconds: input to what its computation took, whenever that was; that of the recommender's training included.
        peak_mib: the most memory that a process held until one of these computations ended.
    """

    def __init__(
        self,
        model: LLMRecommender,
        config: Any,
        rows: Any,
        pool: np.ndarray,
        examples: Sequence[Example],
        valid_rows: Any,
        needs: Sequence[str],
    ) -> None:
        self.model, self.config, self.data, self.valid_data = model, config, rows, valid_rows
        self.is_click = config.task == "click"
        self.needs_states = "recommender_vectors" in map(self._own_name, needs)
        self.rows: Interaction = rows.inter_feat[torch.from_numpy(pool)]
        self.examples = examples
        self.encoder = TextVectors(model, config)
        self.facts: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.peak_mib = 0.0

    def get(self, name: str) -> Any:
        """The input of this name, computed or found; None where these rows have none."""
        name = self._own_name(name)
        if name not in (*OF_RECOMMENDER, *OF_LLM, *OF_TEXTS):
            return getattr(self, name)()
        folder = self.model.stages.get(name.replace("_", "-"), self._facts(name), lambda place: self._keep(name, place))
        self.seconds[name] = seconds_of(folder)
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.peak_mib = max(self.peak_mib, found.pop("peak_mib"))
        if found:
            self.facts[name] = found
        return np.load(folder / VALUES)

    def _own_name(self, name: str) -> str:
        """What stands for ``vectors``, as ``coreset_vectors`` says; ``gradient_norms`` of answers are the effort."""
        if name == "gradient_norms" and not self.is_click:
            return "effort"
        return f"{self.config['coreset_vectors']}_vectors" if name == "vectors" else name

    def _facts(self, name: str) -> dict[str, Any]:
        """What an input depends on."""
        if name in OF_TEXTS:
            texts = self._embedded if name == "embeddings" else self._valid.texts
            return {"texts": digest(texts), "encoder": self.encoder.facts()}
        facts: dict[str, Any] = {
            "rows": rows_digest(self.data),
            "pool": digest(self.rows[SAMPLE_ID].numpy()),
            "settings": {key: self.config[key] for key in SETTINGS.get(name, ())},
            "seed": self.config["seed"],
        }
        if name in OF_RECOMMENDER:
            facts["recommender"] = self.recommender.fingerprint
        else:
            facts |= {"model": self.model.facts(), "class": type(self.model).__name__}
        if name == "influence" and self.config["influence_target"] == "valid":
            facts["valid_rows"] = rows_digest(self.valid_data)
        return facts

    def _keep(self, name: str, folder: Path) -> None:
        np.save(folder / VALUES, getattr(self, name)())
        write_json(folder / FACTS, {**self.facts.get(name, {}), "peak_mib": peak_mib()})

    @cached_property
    def histories(self) -> list[list[int]]:
        """Items before each row's target."""
        return self.model.histories(self.rows)

    # ---- from the auxiliary recommender

    @cached_property
    def recommender(self) -> AuxiliaryRecommender:
        """The surrogate: the model's auxiliary recommender where it has one.

        A new one stays here: what a model has borrowed is among the facts of its fine-tuning, which does not depend on
        who chose the rows.
        """
        name = self.config["recommender"]
        found = vars(self.model).get("auxiliary")
        if found is None:
            found = AuxiliaryRecommender(self.config, name, self.model.stages, needs_states=self.needs_states)
        self.seconds[name] = seconds_of(self.model.stages.root / found.fingerprint)
        return found

    def recommender_vectors(self) -> np.ndarray:
        """States after the histories. Returns: [n, d]."""
        return self.recommender.sequence_states(self.histories)

    def el2n(self) -> np.ndarray:
        """Lengths of the error vectors. Returns: [n]."""
        parts = [
            el2n_scores(self.recommender.scores(batch), batch[self.model.ITEM_ID].numpy())
            for batch in self._batches(self.rows)
        ]
        return np.concatenate(parts)

    def grand(self) -> np.ndarray:
        """Norms of the loss's gradient by all of the recommender's weights. Returns: [n]."""
        recommender = self.recommender.model
        params, losses = parameter_losses(
            recommender,
            influence_weights(recommender, "all"),
            lambda model, batch: full_losses(model, Interaction(batch)),
        )
        batches = (batch.to(self.model.device).interaction for batch in self._batches(self.rows))
        return torch.cat([grand_scores(losses, params, batch).cpu() for batch in batches]).numpy()

    def influence(self) -> np.ndarray:
        """Influence of each row, or user, on the recommender's mean loss. Returns: [n].

        A user's loss is the mean over all of the user's training rows, as in DEALRec; the mean loss is over users.
        """
        method, steps = self.config["influence_method"], self.config["influence_steps"]
        names = influence_weights(self.recommender.model, self.config["influence_weights"])
        rows, owners = self._owned_rows()
        by_validation = self.config["influence_target"] == "valid"
        parts = [rows, *([self.valid_data.inter_feat] if by_validation else [])]
        params, losses, (rows, *judged) = self._loss_function(names, parts)
        if method == "exact" and len(params) > _LARGEST_HESSIAN:
            raise InputError(
                f"influence_method: exact needs a matrix of {len(params):,} x {len(params):,}; choose cg, or "
                "influence_weights: attention"
            )
        train = self._mean_loss(losses, params, rows, owners, self._step_sample(rows, owners))
        target = [self._mean_loss(losses, params, part, np.arange(len(part))) for part in judged]
        with frozen(self.recommender.model.parameters()):
            found = row_influence(
                train,
                *target,
                method=method,
                damping_ratio=self.config["damping_ratio"],
                damping=self.config["influence_damping"],
                scale=self.config["influence_scale"],
                **({} if steps is None else {"steps": steps}),
            )
        self.facts["influence"] = {**found.facts(), "weights": names}
        return np.bincount(owners, weights=found.scores.cpu().numpy(), minlength=len(self.rows))

    def _loss_function(
        self, names: list[str], parts: Sequence[Interaction]
    ) -> tuple[torch.Tensor, Losses, Sequence[Interaction]]:
        """Weights, losses as a function of them, and rows as that function takes them.

        Where the recommender's tail gives the losses of all rows, what lies before it is computed once.
        """
        recommender = self.recommender.model
        tail = TransformerTail.of(recommender, names)
        known = [tail and self._before(tail, part) for part in parts]
        if None not in known:
            return *parameter_losses(tail, tail.names(names), weighted_losses), known
        log.info("Influence goes through the whole of %s in every step.", type(recommender).__name__)
        return *parameter_losses(recommender, names, weighted_losses), parts

    def _before(self, tail: TransformerTail, rows: Interaction) -> Interaction | None:
        """What the tail needs to know of rows, from one pass; None where it is no tail of this recommender."""
        parts = [tail.inputs(batch.to(self.model.device)) for batch in self._batches(rows)]
        return None if None in parts else cat_interactions([part.cpu() for part in parts])

    def _owned_rows(self) -> tuple[Interaction, np.ndarray]:
        """The rows of the mean loss, and the place in the pool of what each belongs to: itself, or its user."""
        if self.config["coreset_unit"] == "row":
            return self.rows, np.arange(len(self.rows))
        rows = self.data.inter_feat
        rows = rows[rows[SAMPLE_ID].argsort()]  # so that the order of the rows has no part in rounding
        pool, users = self.rows[self.model.USER_ID].numpy(), rows[self.model.USER_ID].numpy()
        order = np.argsort(pool)
        found = np.searchsorted(pool[order], users).clip(max=len(pool) - 1)
        own = pool[order][found] == users
        return rows[torch.from_numpy(own)], order[found][own]

    def _mean_loss(
        self, losses: Any, params: torch.Tensor, rows: Interaction, owners: np.ndarray, sample: Any = None
    ) -> MeanLoss:
        batches = [batch.to(self.model.device) for batch in self._batches(weighted(rows, owners))]
        return MeanLoss(losses, params, batches, sample, progress=self.model.show_progress)

    def _step_sample(self, rows: Interaction, owners: np.ndarray) -> Callable[[int], Interaction] | None:
        """Draws rows, or users with all of theirs, for the Hessian of a step; with replacement."""
        size = self.config["influence_step_rows"]
        if size is None:
            return None
        by_owner = np.split(np.argsort(owners, kind="stable"), np.cumsum(np.bincount(owners))[:-1])
        seed = self.model.stage_seed("influence")

        def sample(step: int) -> Interaction:
            drawn = [
                by_owner[owner] for owner in np.random.default_rng([seed, step]).integers(len(by_owner), size=size)
            ]
            part = rows[torch.from_numpy(np.concatenate(drawn))]
            return weighted(part, np.repeat(np.arange(size), [len(own) for own in drawn])).to(self.model.device)

        return sample

    # ---- from the LLM

    def effort(self) -> np.ndarray:
        """Norms of the gradient of the untuned LLM's loss by the adapter's weights. Returns: [n]."""
        return self._norms(self._answer_losses)

    def gradient_norms(self) -> np.ndarray:
        """The same; for clicks of the loss of the choice between Yes and No. Returns: [n]."""
        return self._norms(self._own_losses)

    def quality(self) -> np.ndarray:
        """Minus the untuned LLM's loss on each row: how likely its answer is. Returns: [n]."""

        def likelihoods(batches: Sequence[Sequence[int]]) -> np.ndarray:
            with torch.no_grad():
                return np.concatenate([-self._own_losses(batch).cpu().double().numpy() for batch in batches])

        return self._by_row(likelihoods)

    def _norms(self, losses: Callable[[Sequence[int]], torch.Tensor]) -> np.ndarray:
        model = self.model
        names, own = effort_weights(model.llm, self.config["effort_weights"]), set(model.llm.parameters())

        def norms(batches: Sequence[Sequence[int]]) -> np.ndarray:
            return effort_scores(model.llm, lambda _, batch: losses(batch), batches, names, model.show_progress)

        with frozen(weight for weight in model.parameters() if weight not in own):
            return self._by_row(norms)

    def _by_row(self, compute: Callable[[Sequence[Sequence[int]]], np.ndarray]) -> np.ndarray:
        """Numbers in the order of the rows, from a function that gives them in the order of batches of places."""
        lengths = [len(prompt) + len(response) for prompt, response in self.examples]
        batches = micro_batches(lengths, self.config["micro_batch_tokens"], sort=True)
        was_training = self.model.training
        self.model.eval()
        found = np.empty(len(self.examples))
        found[np.concatenate(batches).astype(int)] = compute(batches)
        self.model.train(was_training)
        return found

    def _own_losses(self, batch: Sequence[int]) -> torch.Tensor:
        return self._choice_losses(batch) if self.is_click else self._answer_losses(batch)

    @cached_property
    def _prefill(self) -> PrefillScorer:
        return PrefillScorer(self.model.llm, self.model.backbone.pad_token_id)

    def _answer_losses(self, batch: Sequence[int]) -> torch.Tensor:
        """Mean loss of the tokens of each answer. Returns: [rows]."""
        prompts, answers = zip(*(self._scored(*self.examples[row]) for row in batch), strict=True)
        with self.model.instances([self.histories[row] for row in batch]):
            if self.model.is_instance_wise:  # a pass that goes on from a cache would want the gates as an argument
                found = self.model.scorer.log_probs(prompts, [[answer] for answer in answers])
            else:
                found = self._prefill.log_probs(prompts, answers)
        return losses_per_row(-found.values, found.rows, len(batch))

    def _choice_losses(self, batch: Sequence[int]) -> torch.Tensor:
        """Cross entropy of each label under the two-way softmax over the tokens of No and Yes. Returns: [rows]."""
        answers = [[token] for token in self.model.prompts.answer_token_ids]
        with self.model.instances([self.histories[row] for row in batch]):
            found = self.model.scorer.log_probs([self.examples[row][0] for row in batch], [answers] * len(batch))
        logits = found.values.new_zeros(len(batch), len(answers)).index_put((found.rows, found.answers), found.values)
        labels = torch.from_numpy(self._labels(self.rows[torch.tensor(batch)]))
        return cross_entropy(logits, labels.to(logits.device), reduction="none")

    def _scored(self, prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
        """Prompt and answer of the loss; the code of DEALRec takes the prompt's own tokens in as well."""
        if self.config["effort_tokens"] == "answer":
            return prompt, response
        return prompt[:1], prompt[1:] + response

    def llm_vectors(self) -> np.ndarray:
        """Embeddings of the histories' titles by the untuned LLM. Returns: float32 [n, d]."""
        texts = [self._titles(history) for history in self.histories]
        with self.model.untuned() as llm:
            return llm_encoder(self.model, llm, "last").encode(texts, progress=self.model.show_progress)

    # ---- from a text encoder

    def embeddings(self) -> np.ndarray:
        """Vectors of the rows' texts. Returns: float32 [n, d]."""
        return self.encoder.embed(self._embedded)

    def valid_embeddings(self) -> np.ndarray:
        """Vectors of the texts of the validation rows that can be read. Returns: float32 [n_valid, d]."""
        return self.encoder.embed(self._valid.texts)

    @cached_property
    def _embedded(self) -> list[str]:
        return self.encoder.texts(self.examples)

    @cached_property
    def _valid(self) -> _ValidRows:
        rows = self.valid_data.inter_feat
        examples = self.model.examples(rows)
        places = [place for place, example in enumerate(examples) if example is not None]
        if not places:
            raise InputError(f"coreset: no validation row has titles in field '{self.config['title_field']}'")
        return _ValidRows(self.encoder.texts([examples[place] for place in places]), rows[torch.tensor(places)])

    # ---- from the data

    def labels(self) -> np.ndarray | None:
        """Whether each row is a like; None where rows have no labels. Returns: int64 [n]."""
        return self._labels(self.rows)

    def valid_labels(self) -> np.ndarray | None:
        """The same of the validation rows that can be read."""
        return self._labels(self._valid.rows) if self.is_click else None

    def _labels(self, rows: Interaction) -> np.ndarray | None:
        return (rows[self.config["LABEL_FIELD"]] > 0).long().numpy() if self.is_click else None

    def texts(self) -> list[str]:
        """Titles of each row's history and target; the words of the prompt, which all rows share, tell none apart."""
        return self._texts(self.rows)

    def target_texts(self) -> list[str]:
        """The same of the validation rows."""
        return self._texts(self.valid_data.inter_feat)

    def history_lengths(self) -> np.ndarray:
        """Training interactions of each row's user, as far as the training rows tell of them. Returns: int64 [n]."""
        feat, mine = self.data.inter_feat, self.rows[self.model.USER_ID].numpy()
        users, lengths = feat[self.model.USER_ID].numpy(), feat[self.model.ITEM_SEQ_LEN].numpy()
        longest = np.zeros(users.max() + 1, dtype=np.int64)
        np.maximum.at(longest, users, lengths)
        return np.maximum(longest, np.bincount(users))[mine] + 1  # a user's first interaction is no row's target

    def _texts(self, rows: Interaction) -> list[str]:
        pairs = zip(self.model.histories(rows), rows[self.model.ITEM_ID].tolist(), strict=True)
        return [self._titles([*history, item]) for history, item in pairs]

    def _titles(self, items: Sequence[int]) -> str:
        titles = self.model.catalog.titles
        return "; ".join(title for item in items if (title := titles[item]))

    def _batches(self, rows: Interaction) -> list[Interaction]:
        size = max(1, min(self.config["eval_batch_size"], _LOGITS // self.model.n_items))
        return [rows[part] for part in torch.arange(len(rows)).split(size)]


def weighted(rows: Interaction, owners: np.ndarray) -> Interaction:
    """Rows with weights whose mean over rows is the mean over owners of the mean over an owner's rows.

    Args:
        rows: N rows.
        owners: int64 [N], what each belongs to, 0 to n - 1.
    """
    counts = np.bincount(owners)
    weights = len(owners) / (len(counts) * counts[owners])
    return Interaction({**rows.interaction, WEIGHT: torch.from_numpy(weights).float()})


def full_losses(recommender: torch.nn.Module, batch: Interaction) -> torch.Tensor:
    """Cross entropy of each row's target under the recommender's full-sort scores. Returns: [rows]."""
    return row_losses(recommender.full_sort_predict(batch), batch[recommender.ITEM_ID])


def weighted_losses(model: torch.nn.Module, batch: Interaction) -> torch.Tensor:
    """The same times the weights of :func:`weighted`, of a recommender or its tail. Returns: [rows]."""
    if isinstance(model, TransformerTail):
        return row_losses(model(batch), batch[model.recommender[0].ITEM_ID]) * batch[WEIGHT]
    return full_losses(model, batch) * batch[WEIGHT]


def influence_weights(recommender: torch.nn.Module, which: str) -> list[str]:
    """Names of the recommender's weights that influence is computed by.

    Args:
        recommender: RecBole's model.
        which: ``attention`` (output projection of the last attention block, as the code of DEALRec does), ``ffn`` (the
            linear map after it), or ``all``.

    Raises:
        InputError: the model has no such weight.
    """
    kind = type(recommender).__name__
    names = [name for name, weight in recommender.named_parameters() if weight.requires_grad]
    if not names:
        raise InputError(f"recommender: {kind} learns no weights, so its loss has no gradient; choose SASRec")
    if which == "all":
        return names
    ending = {"attention": "multi_head_attention.dense.weight", "ffn": "feed_forward.dense_2.weight"}[which]
    found = [name for name in names if name.endswith(ending)]
    if not found:
        raise InputError(f"influence_weights: {kind} has no {which} block; set influence_weights: all")
    return found[-1:]


@contextmanager
def frozen(weights: Any) -> Iterator[None]:
    """Inside, these weights ask for no gradient: no graph is kept for them."""
    thawed = [weight for weight in weights if weight.requires_grad]
    for weight in thawed:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in thawed:
            weight.requires_grad_()


def digest(value: Any) -> str:
    """SHA-256 of an array's values, or of a list of texts."""
    array = isinstance(value, np.ndarray)
    return hashlib.sha256(
        np.ascontiguousarray(value).data.cast("B") if array else json.dumps(value).encode()
    ).hexdigest()


def seconds_of(stage: Path) -> float:
    """What a stage took when it was computed."""
    return json.loads((stage / MANIFEST).read_text(encoding="utf-8"))["seconds"]
