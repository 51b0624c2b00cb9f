"""``examples.json``: a few test rows of a run in full."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import Rows, find_pairs, row_histories, row_pairs
from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.evaluation import Evaluation
from recbole_llm.evaluation.base import split_ids
from recbole_llm.evaluation.reranking import all_scores
from recbole_llm.experiment.answers import write_answers
from recbole_llm.experiment.recommend import rank_rows
from recbole_llm.experiment.trained import Trained
from recbole_llm.logs import silent
from recbole_llm.settings.config import Config
from recbole_llm.stages import stage_seed

FILE = "examples.json"
N_ROWS, N_ITEMS = 10, 5
log = logging.getLogger(__name__)


def write_examples(folder: Path, config: Config, model: Any, rows: Rows, evaluation: Evaluation) -> None:
    """Write ten test rows: history, what the model answered, the best items with their scores, target and outcome.

    The rows are drawn by ``sample_seed``, so that they are the same for all models of a command. An LLM model that
    ranks tells of them in words as well. Where several targets share a row there is nothing to show of one, and nothing
    is written.

    Args:
        folder: folder of the run.
        config: the resolved config.
        model: as it was evaluated.
        rows: rows of the run.
        evaluation: evaluation of the test rows.
    """
    part, indices = rows.test, find_pairs(evaluation.pairs, row_pairs(rows.test))
    if indices is None:
        return
    generator = np.random.default_rng(stage_seed(config["sample_seed"], "examples"))
    chosen = np.sort(generator.permutation(len(part))[:N_ROWS])
    asked = part.inter_feat[torch.from_numpy(chosen)]
    told = evaluation.rows.iloc[indices[chosen]].to_dict("records")
    trained = Trained(config, model, rows)
    names = _Names(_catalog(trained), part)
    lists: list[list[dict[str, Any]]]
    answers: Sequence[str | None]
    texts: Sequence[str] = ()
    with silent(), _answering_once(model):
        if evaluation.top_items.size:
            best = evaluation.top_items[indices[chosen], :N_ITEMS]
            lists = _ranked(trained, asked, best, names)
            if config.is_llm and not model.reads_items:
                texts = model.generate_text(asked.to(model.device))
            answers = texts if _are_answers(config) else [None] * len(chosen)
            outcomes = ["not ranked" if pd.isna(own["rank"]) else f"rank {own['rank']}" for own in told]
        else:
            lists, answers = [_listed(own, names) for own in told], [own.get("answer") for own in told]
            outcomes = list(map(_outcome, told))
    histories, lengths = row_histories(part)
    records = []
    for number, row in enumerate(chosen.tolist()):
        history, target = histories[row, : lengths[row]].tolist(), int(row_pairs(part)[row, 1])
        ids = {"user_id": told[number]["user_id"], "item_id": told[number]["item_id"]}
        shown = {"history": list(map(names.title, history)), "target": names.title(target)}
        items = [{**item, "is_target": item["item_id"] == ids["item_id"]} for item in lists[number]]
        said = {"answer": answers[number], "outcome": outcomes[number], "items": items}
        records.append({**ids, **shown, **said})
    write_json(folder / FILE, records)
    if texts:
        write_answers(folder, model, records, texts, part.inter_feat, evaluation)


def _answering_once(model: Any) -> AbstractContextManager[Any]:
    """A context in which a model that grounds what it writes writes it once for each row."""
    return model.answers_kept() if hasattr(model, "answers_kept") else nullcontext()


def _catalog(trained: Trained) -> ItemCatalog | None:
    """Titles, where they can be read: a model that needs none is not stopped by a file that it does not read."""
    try:
        return trained.catalog
    except InputError as error:
        log.info("Examples show ids in place of titles: %s", error)
        return None


class _Names:
    """Ids and titles of items; an item without a title goes by its id."""

    def __init__(self, catalog: ItemCatalog | None, dataset: SequentialDataset) -> None:
        self.tokens = dataset.field2id_token[dataset.iid_field]
        self.ids: dict[str, int] = dataset.field2token_id[dataset.iid_field]
        self._catalog = catalog

    def title(self, item: int) -> str:
        """Title of an item by RecBole's id."""
        return (self._catalog.titles[item] if self._catalog else None) or str(self.tokens[item])

    def item(self, item: int, score: float | None = None) -> dict[str, Any]:
        """An item of a list."""
        return {"item_id": str(self.tokens[item]), "title": self.title(item), "score": score}


def _ranked(trained: Trained, asked: Interaction, best: np.ndarray, names: _Names) -> list[list[dict[str, Any]]]:
    """The best items of each row with their scores, from items int64 [rows, n], 0 for none.

    A score is None where this pass over ten rows, which rounds otherwise than that over all, has not found the item.
    """
    config, model = trained.config, trained.model
    if config["eval_args"]["mode"]["test"] == "full":
        reranked = config["rerank"] not in (None, "none")  # whose lists are of items further down
        found = rank_rows(trained, asked, max(N_ITEMS, config["rerank_topn"]) if reranked else N_ITEMS)
        listed, scores = found.top_items.tolist(), found.top_scores.tolist()
    else:  # the best of a sample need not be the best of all
        table = all_scores(model, asked.to(model.device), trained.rows.whole.item_num)
        listed, scores = best.tolist(), np.take_along_axis(table.cpu().double().numpy(), best, axis=1).tolist()
    known = [dict(zip(items, own, strict=True)) for items, own in zip(listed, scores, strict=True)]
    return [
        [names.item(item, own.get(item)) for item in items if item]
        for items, own in zip(best.tolist(), known, strict=True)
    ]


def _listed(told: dict[str, Any], names: _Names) -> list[dict[str, Any]]:
    """The candidates of a row, in the order of its prompt; none where clicks are predicted."""
    return [names.item(names.ids[token]) for token in split_ids(str(told.get("candidates", "")))]


def _are_answers(config: Config) -> bool:
    """Whether what a model writes is its answer to a row."""
    return bool(config.is_llm and config.resolution.facts.has_answers and config["grounding"] != "likelihood")


def _outcome(told: dict[str, Any]) -> str:
    """How a row went that ranks nothing: among candidates, or as a click."""
    if "label" in told:
        return f"liked: {'yes' if told['label'] else 'no'}, predicted {told['score']:.3f}"
    return "hit" if told["hit"] else "no hit" if told["valid"] else "no valid answer"
