"""Self-distillation: a fine-tuned model's answers to its own training prompts, and their distance from the truth."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.curriculum import mean_distance
from recbole_llm.disk import write_json
from recbole_llm.distributed import on_main
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.kept import KeptRows
from recbole_llm.model.base import TokenPair
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.progress import Bar
from recbole_llm.settings.stage_checks import check_readable
from recbole_llm.stages import UNFINISHED

ANSWERS, SUMMARY, NEAREST = "answers.jsonl", "summary.json", "nearest.npy"
CHUNK = 256  # rows answered together, and kept
MANY_EMPTY = 0.05
RANKED = "ranked"  # which text is kept with distil_on_trie
log = logging.getLogger(__name__)


def row_hash(example: TokenPair) -> str:
    """What ties a distilled answer to its row: 16 hex digits over prompt and true answer."""
    return hash_json(example)[:16]


def distil(
    model: BIGRec, rows: Interaction, examples: Sequence[TokenPair], select: str, folder: Path, progress: bool = False
) -> None:
    """Answer all training prompts and keep one raw text each (SOFT, arXiv 2505.20771, self-distillation).

    The texts are not grounded: they may be no catalogue title, or the true one. A killed run continues after the
    last whole chunk that it kept.

    Args:
        model: the fine-tuned model.
        rows: the training rows.
        examples: their prompts and true answers.
        select: ``top`` keeps the best beam, ``nearest`` the beam whose embedding is nearest to the true title's,
            ``ranked`` the title that is ranked first.
        folder: where ``answers.jsonl`` is written, and what :func:`summarise` makes of it.
        progress: whether to show a progress bar.
    """
    # Not model.keep: the stage's name tells all that the texts depend on, so the weights need not be hashed.
    kept, texts = KeptRows(folder / UNFINISHED, "distilled-answers"), dict[int, str]()

    def answer(part: Sequence[int]) -> dict[int, str]:
        return dict(zip(part, _answers(model, rows[torch.tensor(part)], select), strict=True))

    starts = range(0, len(examples), CHUNK)
    for start in Bar(starts, desc="Distil", unit="chunk", ncols=100, disable=not progress):
        texts |= kept.batch(range(start, min(start + CHUNK, len(examples))), answer)
    on_main(lambda: _write_answers(folder / ANSWERS, examples, texts))
    on_main(lambda: summarise(model, rows, read_answers(folder / ANSWERS, examples), folder))


def _answers(model: BIGRec, rows: Interaction, select: str) -> list[str]:
    if select == RANKED:
        titles = [model.catalog.titles[item] for item in model.top_items(rows)]
        return ["" if title is None else model.prompts.layout.show(title) for title in titles]
    if select == "top":
        return model.generate_text(rows)
    beams = model.generate_beams(rows)
    found = model.ground([text for texts in beams for text in texts])
    ends = np.cumsum([len(texts) for texts in beams])
    targets = model.title_vectors(rows[model.ITEM_ID].numpy())
    parts = zip(beams, np.split(found, ends[:-1]), targets, strict=True)
    return [texts[int(np.linalg.norm(own - target, axis=1).argmin())] for texts, own, target in parts]


def _write_answers(file: Path, examples: Sequence[TokenPair], texts: Mapping[int, str]) -> None:
    entries = ({"row": row_hash(example), "answer": texts[row]} for row, example in enumerate(examples))
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    file.write_text("".join(lines), encoding="utf-8")


def read_answers(file: Path, examples: Sequence[TokenPair]) -> list[str]:
    """The distilled answers of these very rows.

    Raises:
        InputError: the file cannot be read, or its rows are others, in another order, or of another number.
    """
    check_readable("sd_file", file)
    try:
        # Not str.splitlines: an answer may hold any of Unicode's line ends.
        entries = [json.loads(line) for line in file.read_bytes().removesuffix(b"\n").split(b"\n")]
        found = [(entry["row"], entry["answer"]) for entry in entries]
        if not all(isinstance(answer, str) for _, answer in found):
            raise TypeError("an answer is not text")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"sd_file: {file} holds no distilled answers; give the answers.jsonl of a run", kind="file"
        ) from error
    if len(found) != len(examples):
        raise InputError(
            f"sd_file: {file} has {len(found)} answers for {len(examples)} training rows; leave sd_file out to "
            "distil new ones",
            kind="file",
        )
    for number, ((row, _), example) in enumerate(zip(found, examples, strict=True), start=1):
        if row != row_hash(example):
            raise InputError(
                f"sd_file: line {number} of {file} belongs to another row, prompt or order; leave sd_file out to "
                "distil new ones",
                kind="file",
            )
    return [answer for _, answer in found]


def chosen_rows(n_rows: int, sd_rows: int | None, seed: int) -> np.ndarray:
    """The rows whose answers are distilled.

    Args:
        n_rows: training rows.
        sd_rows: how many are drawn; None, or as many as there are and more, takes all.
        seed: seed of the draw.

    Returns:
        int64, ascending.

    Example:
        >>> chosen_rows(4, None, seed=0), chosen_rows(4, 9, seed=0), len(set(chosen_rows(100, 30, seed=0).tolist()))
        (array([0, 1, 2, 3]), array([0, 1, 2, 3]), 30)
    """
    if sd_rows is None or sd_rows >= n_rows:
        return np.arange(n_rows)
    found: np.ndarray = np.sort(np.random.default_rng(seed).choice(n_rows, sd_rows, replace=False))
    return found


def distilled_targets(
    model: BIGRec, texts: Sequence[str], examples: Sequence[TokenPair], settings: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids of the distilled answers as training targets, EOS at the end of each.

    Args:
        model: a model, for its tokenizer.
        texts: raw distilled answers.
        examples: prompt and true answer of the same rows.
        settings: ``sd_empty`` (an empty answer becomes the true one, or stays), ``sd_permuted`` (a control: every row
            gets another row's answer).
    """
    empty = [not model.prompts.layout.title_of(text) for text in texts]
    if any(empty):
        level = logging.WARNING if sum(empty) > MANY_EMPTY * len(texts) else logging.INFO
        counts = (sum(empty), len(texts), settings["sd_empty"])
        log.log(level, "%d of %d distilled answers are empty (sd_empty: %s).", *counts)
    targets = [
        list(example[1]) if is_empty and settings["sd_empty"] == "real" else model.prompts.response_from_text(text)
        for text, example, is_empty in zip(texts, examples, empty, strict=True)
    ]
    if settings["sd_permuted"]:
        order = np.random.default_rng(model.stage_seed("permuted")).permutation(len(targets))
        source = np.empty_like(order)
        source[order] = np.roll(order, 1)  # one cycle through all rows: none keeps its own
        targets = [targets[index] for index in source]
    return targets


def summarise(model: BIGRec, rows: Interaction, texts: Sequence[str], folder: Path) -> None:
    """Write how often the distilled answers are what they should be (SOFT, figure 2, right).

    ``summary.json`` holds the number of rows and shares of them: ``true_title`` (the answer is the target's title),
    ``catalogue_title`` (it is some item's title), ``nearest_is_target`` (the item nearest to the answer has the
    target's title), ``empty``. ``nearest.npy`` holds the target and that nearest item, int64 [rows, 2].
    """
    targets = rows[model.ITEM_ID].numpy()
    same = model.catalog.representative
    answers = [model.prompts.layout.title_of(text) for text in texts]
    found = np.array([model.catalog.lookup(answer) or 0 for answer in answers])
    nearest = model.index.search(model.ground(texts), 1)[1][:, 0]
    shares = {
        "true_title": (found > 0) & (same[found] == same[targets]),
        "catalogue_title": found > 0,
        "nearest_is_target": same[nearest] == same[targets],
        "empty": np.array([not answer for answer in answers]),
    }
    np.save(folder / NEAREST, np.stack([targets, nearest], axis=1).astype(np.int64))
    summary = {"rows": len(texts), **{name: float(share.mean()) for name, share in shares.items()}}
    write_json(folder / SUMMARY, summary)
    log.info("distilled answers: %s", "    ".join(f"{name} : {value:.4g}" for name, value in summary.items()))


class DistanceMeter:
    """Mean L2 distance of generated and true titles on a fixed sample of training rows (SOFT, arXiv 2505.20771).

    Nothing is ranked: an answer is embedded by the untuned LLM and compared to its own row's title.

    Args:
        model: the recommender.
        rows: the training rows.
        n_rows: size of the sample; all rows if there are not more.
        num_beams: number of beams of the search for answers; None is the run's own number.
    """

    def __init__(self, model: BIGRec, rows: Interaction, n_rows: int, num_beams: int | None = None) -> None:
        generator = np.random.default_rng(model.stage_seed("distance"))
        chosen = np.sort(generator.choice(len(rows), min(n_rows, len(rows)), replace=False))
        self.model, self.rows = model, rows[torch.from_numpy(chosen)]
        self.targets = model.title_vectors(self.rows[model.ITEM_ID].numpy())
        self.num_beams = num_beams

    def measure(self) -> float:
        """The distance of the model as it stands."""
        with self.model.searching(self.num_beams):
            return mean_distance(self.model.answer_vectors(self.rows), self.targets)
