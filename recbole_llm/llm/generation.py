"""Beam search that computes every prompt once.

The key-value cache is filled with one pass over the prompts; the first selection of beams then repeats it per beam, and
every later one reorders the answers in it. Rows that are finished leave it a quarter of them at a time: to drop one row
moves all the others. What all prompts of a call begin with is computed once and expanded. None of this changes the
result: it is the sequence that ``model.generate(num_beams=..., do_sample=False, early_stopping=False)`` returns first,
in fp32.

A call is cut into batches, of which finished ones are kept; the search of one is in :mod:`~recbole_llm.llm.search`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from recbole_llm.distributed import process
from recbole_llm.errors import InputError, NonFiniteError
from recbole_llm.kept import Keep, keep_nothing
from recbole_llm.llm.beam_passes import choose_passes
from recbole_llm.llm.budget import TokenBudget, run_batches
from recbole_llm.llm.rows import PASS_TOKENS, check_prompts, prompt_facts
from recbole_llm.llm.search import BeamSearch, Generation, TokenConstraint
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar

__all__ = ["Generation", "TokenConstraint", "beam_search"]


def beam_search(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    pad_token_id: int,
    num_beams: int = 4,
    max_new_tokens: int = 64,
    length_penalty: float = 1.0,
    forbidden_token_ids: Sequence[int] = (),
    logits_processor: LogitsProcessorList | None = None,
    constraint: TokenConstraint | None = None,
    max_batch_tokens: int | TokenBudget = 8192,
    share_prefix: bool = True,
    return_beams: bool = False,
    row_inputs: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    keep: Keep = keep_nothing,
) -> list[Generation]:
    """Continues every prompt by beam search and returns the best continuation of each.

    Equal scores are ordered by lower beam, then lower token id. Batching changes no result in fp32; in half precision
    rounding can flip near-ties. The model is run in eval mode without gradients and keeps its previous mode. Several
    processes share the batches.

    Args:
        model: A decoder of Hugging Face, bare or wrapped by peft (of a DistributedDataParallel, its `module`).
        prompts: Token ids of each prompt, without padding, of any lengths.
        eos_token_id: Token that ends an answer.
        pad_token_id: Token that fills up shorter prompts; it is masked, so its value has no effect.
        num_beams: Beams per prompt; 1 is greedy search.
        max_new_tokens: Most tokens to generate, EOS included.
        length_penalty: Exponent of the length in the score.
        forbidden_token_ids: Tokens that are never generated. The other probabilities are not renormalised.
        logits_processor: Changes log-probabilities before selection, as in ``generate``, with two differences: it is
            given the tokens generated so far without the prompt, and must treat rows independently of their order.
        constraint: Scores the allowed tokens; takes the place of `forbidden_token_ids` and `logits_processor`. Cheaper
            than a processor, since nothing has to be written to, or selected from, the whole vocabulary.
        max_batch_tokens: Limit of beams x (prompt + new tokens) per batch; a single row may exceed it. Where memory
            runs out, batches are halved.
        share_prefix: Computes the longest common beginning of all prompts once. Turn it off where the hidden states
            depend on more than the tokens (an adapter conditioned on the user).
        return_beams: Whether each answer's `beams` are filled.
        row_inputs: Further inputs of the model's forward, tensors [prompts, ...]: each pass is given those of its rows.
            Nothing is shared between prompts then.
        progress: Shows a progress bar.
        keep: Where finished batches are kept, so that a killed run continues after them; it is asked by everything the
            answers depend on besides the model. Nothing is kept with a `logits_processor`, which has no fingerprint.

    Returns:
        One `Generation` per prompt, in the order of the prompts.

    Raises:
        InputError: `num_beams` or `max_new_tokens` below 1.
        ValueError: A prompt is empty.
        NonFiniteError: The model's logits are not a number.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> (answer,) = beam_search(model, [[1, 5, 6]], eos_token_id=2, pad_token_id=0, num_beams=2, max_new_tokens=3)
        >>> len(answer.token_ids) <= 3, answer.score < 0
        (True, True)
    """
    _check_arguments(prompts, num_beams, max_new_tokens)
    rules = (forbidden_token_ids, logits_processor, constraint)
    search = BeamSearch(eos_token_id, num_beams, max_new_tokens, length_penalty, *rules, return_beams)

    costs = [num_beams * (len(prompt) + max_new_tokens) for prompt in prompts]
    answers: dict[int, Generation] = {}
    bar = Bar(total=-(-len(prompts) // process().count), desc="generate", unit="prompt", disable=not progress)
    with evaluating(model), torch.no_grad(), bar:
        start = choose_passes(model, prompts, pad_token_id, max_new_tokens, share_prefix, row_inputs)
        keep = keep_nothing if logits_processor is not None else keep
        kept = keep("answers", lambda: {**prompt_facts(prompts, row_inputs), **search.facts()})

        def answer(batch: Sequence[int]) -> dict[int, Generation]:
            return search.run({i: prompts[i] for i in batch}, start())

        def run(batch: list[int]) -> None:
            answers.update(kept.batch(batch, answer, asdict, Generation.from_dict))
            bar.update(len(batch))

        # Every new token is a pass of all beams, in the unit of the costs.
        overhead = num_beams * max(1, max_new_tokens) * PASS_TOKENS
        run_batches(costs, TokenBudget.of(max_batch_tokens), run, together=True, overhead=overhead)
    answers = process().gather_rows(answers)
    generations = [answers[i] for i in range(len(prompts))]
    if logits_processor is None:  # which may forbid every token
        _check_scores(generations)
    return generations


def _check_scores(generations: Sequence[Generation]) -> None:
    if broken := [index for index, one in enumerate(generations) if one.score == -math.inf]:
        raise NonFiniteError(
            f"no continuation has a finite score (prompt {broken[0]}, {len(broken)} of {len(generations)} prompts): "
            "the logits of the LLM are NaN; check its weights, or use llm_dtype float32 or bfloat16"
        )


def _check_arguments(prompts: Sequence[Sequence[int]], num_beams: int, max_new_tokens: int) -> None:
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(name, f"{value} is not allowed; give an integer >= 1")
    check_prompts(prompts)
