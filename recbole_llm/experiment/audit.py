"""The audit: leaks in a data set, its split and its prompts, and what the untuned LLM knows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset

from recbole_llm.data.leaks import (
    AuditFinding,
    SplitRows,
    check_interactions,
    check_items,
    check_lengths,
    check_prompts,
    check_rows,
)
from recbole_llm.data.rows import Rows, load_rows, row_histories, row_pairs
from recbole_llm.experiment.trained import build_llm
from recbole_llm.llm import beam_search
from recbole_llm.llm.settings import TINY
from recbole_llm.model.base import LLMRecommender
from recbole_llm.modes import evaluating
from recbole_llm.prompt import Example
from recbole_llm.settings.config import Config

N_PROBED = 200  # titles, and rows, that the LLM is asked about
LEAST_TOKENS = 4  # of a title that has two halves
KNOWN = 0.5  # share of completed titles from which an LLM may know the data set
SEQUENCES = 0.8  # share of preferred targets from which it may know the users


def audit(config: Config) -> list[AuditFinding]:
    """Every check of a data set as an LLM model would read it, of its prompts, and of what the untuned LLM knows.

    Args:
        config: the resolved config of an LLM model.

    Returns:
        The findings, in a fixed order.
    """
    rows = load_rows(config, few_shot=False)
    train, *others = (_plain(part) for part in (rows.train, rows.valid, rows.test))
    found = [*check_interactions(*_interactions(rows), train.user_names)]
    model = build_llm(config, rows)
    found += check_items(model.catalog.titles, model.catalog.attributes, model.catalog.tokens)
    for name, own in zip(("valid", "test"), others, strict=True):
        found += check_rows(train, own, name) if len(own) else ()
    found += _prompt_findings(model, rows)
    return [*found, _known_titles(model), _known_sequences(model, rows)]


def memorisation(model: LLMRecommender, rows: Rows) -> dict[str, float]:
    """What the untuned LLM knows of the data: shares of the probes of :func:`audit`.

    Args:
        model: tuned or not; its adapter is left out.
        rows: rows of the run.

    Returns:
        ``titles_known``, the share of titles that it completes from their first half, and ``sequences_known``, the
        share of test rows whose next title it prefers to another one about as popular: half of them would be by chance.
    """
    with model.untuned(), evaluating(model.llm):
        found = {"titles_known": _known_titles(model), "sequences_known": _known_sequences(model, rows)}
    return {name: finding.count / finding.total for name, finding in found.items() if finding.total}


def _plain(part: SequentialDataset) -> SplitRows:
    pairs, (items, lengths) = row_pairs(part), row_histories(part)
    has_times = part.time_field is not None and part.time_field in part.inter_feat
    return SplitRows(
        pairs[:, 0],
        pairs[:, 1],
        [own[:length] for own, length in zip(items, lengths, strict=True)],
        part.inter_feat[part.time_field].double().numpy() if has_times else None,
        part.field2id_token[part.uid_field],
        part.field2id_token[part.iid_field],
    )


def _interactions(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Users, items and times of all interactions; of presplit files, of their targets."""
    whole = rows.whole
    if whole.config["benchmark_filename"] is None:
        found = whole.in_time
        return found.users, found.items, whole.time_order[found.lines]
    own = whole.inter_feat
    times = own[whole.time_field].double().numpy() if whole.time_field in own else None
    return own[whole.uid_field].numpy(), own[whole.iid_field].numpy(), times


def _prompt_findings(model: LLMRecommender, rows: Rows) -> Iterator[AuditFinding]:
    """Prompts that are too long, and those of which training knows the answer."""
    prompts, representative = model.prompts, model.catalog.representative

    def told(part: SequentialDataset) -> list[tuple[str, int]]:
        examples = [example for example in model.examples(part.inter_feat) if prompts.has_prompt(example)]
        return [(prompts.text(example), int(representative[example.target])) for example in examples]

    train = told(rows.train)
    for name, part in (("valid", rows.valid), ("test", rows.test)):
        if len(part):
            yield check_prompts(train, told(part), name)
    before = prompts.n_prompts, prompts.n_shortened
    model.row_prompts(rows.test.inter_feat)
    yield check_lengths(prompts.n_shortened - before[1], prompts.n_prompts - before[0])


def _known_titles(model: LLMRecommender) -> AuditFinding:
    """How many titles the untuned LLM completes from their first half."""
    ids = np.flatnonzero(model.catalog.rankable)
    drawn = np.random.default_rng(model.stage_seed("audit", "titles")).permutation(ids)[:N_PROBED].tolist()
    titles = [model.prompts.response(Example([], item)) for item in drawn]
    titles = [tokens for tokens in titles if len(tokens) >= LEAST_TOKENS]
    start = [] if model.backbone.bos_token_id is None else [model.backbone.bos_token_id]
    halves = [len(tokens) // 2 for tokens in titles]
    found = beam_search(
        model.llm,
        [start + tokens[:half] for tokens, half in zip(titles, halves, strict=True)],
        eos_token_id=model.backbone.eos_token_id,
        pad_token_id=model.backbone.pad_token_id,
        num_beams=1,
        max_new_tokens=max((len(tokens) for tokens in titles), default=1),
        keep=model.keep,
    )
    whole = [
        answer.token_ids[: len(tokens) - 1 - half] == tokens[half:-1]
        for answer, tokens, half in zip(found, titles, halves, strict=True)
    ]
    is_tiny = model.config["llm_path"] == TINY
    text = "titles are completed by the untuned LLM from their first half" + (
        ": it was made of them" if is_tiny else "; an LLM that knows the titles may know the data set"
    )
    return AuditFinding("titles known", not is_tiny and sum(whole) > KNOWN * len(whole), sum(whole), len(whole), text)


def _known_sequences(model: LLMRecommender, rows: Rows) -> AuditFinding:
    """How often the untuned LLM prefers the true next title to another one that is about as popular."""
    generator = np.random.default_rng(model.stage_seed("audit", "rows"))
    part = rows.test.inter_feat
    drawn = part[torch.from_numpy(np.sort(generator.permutation(len(part))[:N_PROBED]))]
    prompts = model.prompts
    examples = [one for one in model.examples(drawn) if prompts.has_prompt(one) and prompts.has_response(one)]
    by_count = np.argsort(rows.whole.item_counts, kind="stable")
    by_count = by_count[model.catalog.rankable[by_count]]
    better = 0
    with model.untuned(), evaluating(model.llm), torch.no_grad():
        for example in examples:
            decoy = _as_popular(example, by_count, model, generator)
            answers = [prompts.response(Example([], item)) for item in (example.target, decoy)]
            losses = model.answer_loss([model.prompts.prompt(example)], [answers]).tolist()
            own, other = (loss / len(answer) for loss, answer in zip(losses, answers, strict=True))
            better += own < other
    return AuditFinding(
        "sequences known",
        better > SEQUENCES * len(examples),
        better,
        len(examples),
        "true next titles are likelier to the untuned LLM than one about as popular; half of them would be by chance",
    )


def _as_popular(example: Example, by_count: np.ndarray, model: LLMRecommender, generator: np.random.Generator) -> int:
    """One of the five items whose counts are nearest to the target's, neither it nor of the history."""
    representative = model.catalog.representative
    known = [representative[example.target], *representative[list(example.history)]]
    distances = np.abs(np.arange(len(by_count)) - int(np.flatnonzero(by_count == known[0])[0]))
    near = [int(item) for item in by_count[np.argsort(distances, kind="stable")] if item not in known]
    return near[int(generator.integers(min(len(near), 5)))] if near else int(known[0])
