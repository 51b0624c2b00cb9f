"""The public formulas are called by name and by position: both stay, further arguments have defaults."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

FORMULAS = """
adapter.allocate_ranks(spectra, threshold=None, budget=None, r_min=1, r_max=None)
adapter.gate_weights(logits, temperature=1.0, square_root=False, top_k=None)
adapter.instance_lora(x, A, B, gates, scaling)
adapter.load_balance_loss(probabilities, mask=None)
adapter.mixed_lora(x, A, B, weights, scaling, mix="product")
adapter.mo_sara_branch(x, U, Vt, lam, gates, v)
adapter.rank_from_spectrum(singular_values, threshold, r_min=1, r_max=None)
adapter.route_experts(states, router, mask=None)
coreset.allocate_budget(group_sizes, budget)
coreset.combine_scores(influence, effort, weight)
coreset.goracs_select(train_embeddings, valid_embeddings, gradient_norms, budget, gradient_weight, max_exchanges=100,
    n_candidates=30, train_labels=None, valid_labels=None, scale_distances=True, scale_norms=True, seed=0,
    return_info=False)
coreset.influence_scores(per_sample_loss, params, direction)
coreset.inverse_hvp(hvp, vector, method="cg", damping=0.0, matrix=None, scale=1.0, rescale=True)
coreset.proxy_objective(distances, gradient_norms, selected, gradient_weight)
coreset.stratified_sample(scores, budget, n_groups, hard_prune_ratio=0.0, seed=0)
curriculum.adaptive_weight(distance, initial_distance, alpha, epoch=None)
curriculum.mean_distance(predicted, target)
grounding.ItemIndex(embeddings, rankable=None, representative=None, factory="Flat")
grounding.reweight(distances, weights, gamma)
history.actor_critic_losses(log_probs, values, returns)
history.discounted_returns(rewards, gamma, standardise=False)
history.last_items(history, length, max_length, pad=0)
llm.TitleTrie(token_ids_per_item, eos_token_id)
llm.all_item_loss(users, items, targets, tau)
llm.answer_loss(model, input_ids, attention_mask, labels, position_ids=None)
llm.infonce_loss(x, y, tau)
llm.soft_target_loss(x, y, tau)
llm.soft_targets(x, y, tau)
llm.thin_attributes(attributes, ratio, order)
objective.adaptive_temperature(positive, legal_logits, n_root, previous, eta=0.25, momentum=0.05)
objective.bear_loss(logits, targets, legal, tau=1.0, k=10, xi=1.0, weight=1.0, rows=None, row_weights=None)
objective.bear_weights(logits, targets, legal, tau=1.0, k=10, xi=1.0, weight=1.0, rows=None, row_weights=None)
objective.cft_loss(factual, counterfactual, targets, rows, beta=0.25, weight=0.1, row_weights=None)
objective.cft_weights(length, beta)
objective.choice_loss(log_probs, labels)
objective.dmpo_loss(chosen, rejected, beta, mask=None, row_weights=None)
objective.dpo_loss(chosen, rejected, beta, mask=None, row_weights=None, smoothing=0.0)
objective.false_negative_mask(candidates, target, history, representative, rankable)
objective.interleave(distances)
objective.masked_log_probs(logits, targets, legal, tau=1.0)
objective.msl_loss(logits, targets, legal, tau=1.0, reduction="answer", rows=None, row_weights=None)
objective.rpo_diagonal_loss(chosen, rejected, beta, diagonal=0.8)
objective.rpo_loss(chosen, rejected, weights, beta, mask=None)
objective.rpo_weights(chosen_prompts, rejected_prompts, temperature, mask=None)
objective.sdpo_loss(chosen, rejected, beta, mask=None, row_weights=None)
objective.simpo_loss(chosen, rejected, beta, gamma)
report.answer_metrics(generated, candidates, targets, rule="strict")
report.category_coverage(items, categories, n_categories)
report.intra_list_distance(items, distances)
report.novelty(items, counts)
rerank.ModularDispersionBandit(n_relevance, n_dispersion, ridge=1.0, prior=None)
rerank.ModularDispersionBandit.recommend(self, x, distances, length, alpha=0.0, half_relevance=False)
rerank.ModularDispersionBandit.update(self, x, z, y)
rerank.ModularDispersionBandit.width(self, x, z)
rerank.greedy_list(relevance, distances, length, half_relevance=False)
rerank.list_value(items, relevance, distances)
rerank.mmr_list(relevance, similarity, length, trade_off)
rerank.rerank_scores(base, order)
semantic_ids.CodeTrie(codes)
semantic_ids.assignment_probabilities(vectors, codebook, temperature)
semantic_ids.codebook_loss(semantic, snapped)
semantic_ids.collision_rate(codes)
semantic_ids.disambiguate(codes)
semantic_ids.dynamic_head(x, item_weight, item_bias, semantic_weight, semantic_bias, clip)
semantic_ids.quantisation_loss(vectors, codebooks, codes, commitment=0.25, reduction="sum")
semantic_ids.residual_quantise(vectors, codebooks)
semantic_ids.sinkhorn_assignment(distances, epsilon, iterations=50)
semantic_ids.snap_to_codebook(vectors, codebook)
"""


@pytest.mark.parametrize("formula", FORMULAS.replace("\n    ", " ").split("\n")[1:-1])
def test_names_and_order_of_arguments_stay(formula):
    room, _, path = formula.partition("(")[0].partition(".")
    found = import_module(f"recbole_llm.{room}")
    for name in path.split("."):
        found = getattr(found, name)
    wanted = eval(f"lambda {formula.partition('(')[2][:-1]}: None")  # of the lines above alone
    stated = [(one.name, one.default) for one in inspect.signature(wanted).parameters.values()]
    parameters = list(inspect.signature(found).parameters.values())
    assert [(one.name, one.default) for one in parameters[: len(stated)]] == stated
    for further in parameters[len(stated) :]:
        assert further.default is not further.empty or further.kind is further.VAR_KEYWORD
