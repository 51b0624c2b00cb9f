"""The ledger's worlds, arms and claims. A new claim is an entry here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.claims.declare import Arm, Claim, Measure, Paper, Real, Trial, World
from benchmarks.planted import PlantedSettings

SEEDS = tuple(range(2020, 2030))
MEASURES = {
    "loss": Measure("test loss", bigger=False, margin=0.01),
    "category": Measure("right category first", bigger=True, margin=0.03),
    "item": Measure("right item first", bigger=True, margin=0.03),
    "ndcg@10": Measure("NDCG@10", bigger=True, margin=0.003),
    "first epoch": Measure("loss of the first epoch", bigger=False, margin=0.05, per_user=False),
    "distilled category": Measure("distilled answers of the right category", bigger=True, margin=0.03, per_user=False),
    "distilled item": Measure("distilled answers that are right", bigger=True, margin=0.03, per_user=False),
}

# ---------------------------------------------------------------------------------------------------------- worlds

Settings = dict[str, Any]
NEWEST: Settings = {"MAX_ITEM_LIST_LENGTH": 1}  # the rule reads no more of a history
SOFT_RUN: Settings = {**NEWEST, "train_sample_size": 256, "epochs": 8, "distance_rows": 64, "valid_sample_size": 8}
# 64 rows in 32 steps; all 1,000 rows once are 32 steps too.
FEW_RUN: Settings = {
    **NEWEST,
    "train_batch_size": 32,
    "epochs": 16,
    "coreset_size": 64,
    "num_beams": 1,
    "recommender_config": {"epochs": 20, "eval_step": 0, "train_batch_size": 256},
}
GATED_RUN: Settings = {
    **NEWEST,
    "train_batch_size": 32,
    "epochs": 6,
    "num_beams": 1,
    "valid_sample_size": 8,
    "lora_r": 16,
    "lora_alpha": 32,
    "recommender_config": {
        "epochs": 30,
        "eval_step": 0,
        "train_batch_size": 128,
        "learning_rate": 0.005,
        "hidden_dropout_prob": 0.1,
        "attn_dropout_prob": 0.1,
    },
}
ONE_RULE = PlantedSettings(
    n_users=200,
    min_length=8,
    max_length=8,
    n_categories=6,
    items_per_category=20,
    p_category=0.95,
    p_item=0.0,
    items_seed=1,
)
WORLDS = {
    world.name: world
    for world in (
        World(
            "noisy",
            "1,200 items in 12 categories. The next item's category follows from the last one's with probability 0.5, "
            "the item in it by popularity alone. 256 training rows.",
            PlantedSettings(
                n_users=250,
                n_categories=12,
                items_per_category=100,
                n_brands=10,
                n_series=5,
                p_category=0.5,
                p_item=0.0,
                min_length=6,
                max_length=8,
                items_seed=1,
            ),
            {**SOFT_RUN, "tiny_n_layers": 2},
        ),
        World(
            "exact",
            "24 items, each of a category of its own, and each with one successor: nothing is left to chance. 256 "
            "training rows.",
            PlantedSettings(
                n_users=250,
                n_categories=24,
                items_per_category=1,
                n_brands=10,
                n_series=5,
                p_category=1.0,
                p_item=1.0,
                min_length=6,
                max_length=8,
                items_seed=1,
            ),
            SOFT_RUN,
        ),
        World(
            "rare",
            "Two groups of users whose rules contradict each other, told by the brand of the last item. A tenth of the "
            "users are of the second group, but most of the validation and test rows follow its rule.",
            replace(ONE_RULE, n_groups=2, group_visible="item", last_group=0.1, shift=0.6),
            FEW_RUN,
            check=("minority", "random"),
        ),
        World(
            "noise",
            "One rule for all; three of ten training targets are items drawn at random.",
            replace(ONE_RULE, mislabelled=0.3),
            FEW_RUN,
            check=("clean", "random"),
        ),
        World(
            "even",
            "One rule for all, no row better than another: training, validation and test rows are drawn alike.",
            ONE_RULE,
            FEW_RUN,
        ),
        World(
            "groups",
            "Four groups of users whose rules contradict each other. A group has items of its own, and nothing in "
            "their titles tells whose they are: SASRec, which reads ids, can know a user's group, the LLM cannot.",
            replace(ONE_RULE, n_groups=4, group_visible="id"),
            GATED_RUN,
        ),
        World("one-group", "The same with one group: one rule for all.", ONE_RULE, GATED_RUN),
    )
}

# ------------------------------------------------------------------------------------------------------------ arms

# The paper's strata without its code's cut of the highest scores; influence on the loss of the validation rows.
DEALREC = {"coreset": "dealrec", "dealrec_hard_prune_ratio": 0.0, "influence_target": "valid"}
GORACS = {"coreset": "goracs", "goracs_max_exchanges": 30, "goracs_n_candidates": 10}
# Ranked among titles alone, in the two ways there are: by beams, and by the likelihood of every title.
BEAMS = {"grounding": "constrained", "num_beams": 10, "title_renormalize": True}
TITLES = {"grounding": "likelihood", "title_renormalize": True}
ARMS = {
    "tuned": Arm("fine-tuned, as many steps", "BIGRec", {"epochs": 16}),
    "soft-10": Arm("SOFT, α = 10", "SOFT", {"alpha": 10}),
    "soft-100": Arm("SOFT, α = 100", "SOFT", {"alpha": 100}),
    "sd-only": Arm("distilled answers only", "SOFT", {"curriculum": "sd_only"}),
    "weak-10": Arm("SOFT, α = 10, answers of a weak model", "SOFT", {"alpha": 10}, teacher_epochs=3),
    "weak-sd": Arm("answers of a weak model only", "SOFT", {"curriculum": "sd_only"}, teacher_epochs=3),
    "all": Arm("all rows, as many steps", "BIGRec", {"epochs": 1}),
    "random": Arm("random rows", "BIGRec", {"coreset": "random"}),
    "dealrec": Arm("DEALRec", "BIGRec", {**DEALREC}),
    "influence": Arm("DEALRec without effort", "BIGRec", {**DEALREC, "dealrec_weight": 0.0}),
    "goracs": Arm("GORACS, λ = 0.1", "BIGRec", {**GORACS, "goracs_gradient_weight": 0.1}),
    "goracs-0": Arm("GORACS, λ = 0", "BIGRec", {**GORACS, "goracs_gradient_weight": 0.0}),
    "el2n": Arm("EL2N", "BIGRec", {"coreset": "el2n"}),
    "minority": Arm("oracle: random rows of the second group", "BIGRec", rows="rows of the last group"),
    "clean": Arm("oracle: random rows that are not mislabelled", "BIGRec", rows="rows that are not mislabelled"),
    # On BIGRec, not on LLaRA: LLaRA's prompts hold SASRec's item vectors, which tell the group to LoRA as well.
    "ilora": Arm("iLoRA", "BIGRec", {"adapter": "ilora"}),
    "lora": Arm("LoRA", "BIGRec"),
    "lora-17": Arm("LoRA of rank 17", "BIGRec", {"lora_r": 17, "lora_alpha": 34}),
    "others": Arm("iLoRA, gates of other rows", "BIGRec", {"adapter": "ilora", "ilora_permuted": True}),
    **{
        f"{objective}-{name}": Arm(f"{objective}, {words}", "BIGRec", {**ranked, "objective": objective})
        for name, words, ranked in (("beams", "by beams", BEAMS), ("titles", "by every title's likelihood", TITLES))
        for objective in ("nll", "msl", "bear")
    },
}

# ---------------------------------------------------------------------------------------------------------- claims

UNCERTAIN = "the category can be learned, the title cannot: many titles stay likely"
CERTAIN = "one title is right, and it can be learned"

Where = tuple[str, str]  # a world, and why the claim is true or false in it


def _of_rows(
    key: str,
    sentence: str,
    source: str,
    arms: tuple[str, str],
    true: Where,
    false: Where,
    measure: str = "loss",
    sure: bool = True,
    real: Real | None = None,
) -> Claim:
    """A claim that one choice of rows is better than another."""
    trials = [Trial(world, why, measure, sure=sure) for world, why in (true, false)]
    return Claim(key, sentence, source, arms[0], arms[1], trials[0], trials[1], real)


MINORITY_COUNTS = "the second group is rare among the rows to choose from and common among those that are evaluated"
NOISE_STANDS_OUT = "what stands out among the rows is that their targets are random"
ALL_ALIKE = "no row is better than another"
PAPERS = (
    Paper(
        "SOFT",
        "SOFT (arXiv 2505.20771)",
        (
            Claim(
                "soft",
                "SOFT is more accurate than fine-tuning, here with as many steps.",
                "abstract: 37.59 % on average",
                "soft-10",
                "tuned",
                true=Trial(
                    "noisy",
                    "half of the true titles are of a random category, and which title of a category it is cannot be "
                    "known; the distilled answers are mostly of the category that follows by the rule",
                    "category",
                ),
                false=Trial("exact", "every true title is certain; a distilled answer is it, or an error", "item"),
                real=Real("ml-100k-10", "SOFT, constrained", "BIGRec, constrained, two epochs"),
            ),
            Claim(
                "easier",
                "Distilled answers are easier to learn: the first epoch's loss on them is lower.",
                "figure 2, left: about 47 %",
                "sd-only",
                "tuned",
                true=Trial("noisy", "what cannot be known of a true title is not in them", "first epoch"),
                false=Trial("exact", "true titles have nothing that cannot be known", "first epoch"),
            ),
            Claim(
                "kind",
                "Distilled answers are of the right category far more often than they are right.",
                "figure 2, right, and figure 3",
                "sd-only",
                "sd-only",
                true=Trial(
                    "noisy", "the category can be learned, the title cannot", "distilled category", "distilled item"
                ),
                false=Trial("exact", "who learns the rule knows the title", "distilled category", "distilled item"),
            ),
            Claim(
                "adaptive",
                "The self-adaptive curriculum is more accurate than distilled answers alone.",
                "ablation (w/o SA)",
                "soft-10",
                "sd-only",
                true=Trial(
                    "exact",
                    "the answers are those of a weak model, tuned for 3 epochs; only true titles correct them",
                    "item",
                    arms=("weak-10", "weak-sd"),
                ),
                false=Trial("noisy", "true titles add nothing but noise", "category"),
                real=Real("ml-100k-10", "SOFT, constrained", "SOFT's distilled answers only"),
            ),
            Claim(
                "alpha",
                "Accuracy depends on α: a smaller one, 10, is better than 100.",
                "figure 5",
                "soft-10",
                "soft-100",
                true=Trial("noisy", "with α = 100 all epochs but the first learn noise", "category"),
                false=Trial("exact", "the sooner true titles come, the better", "item"),
            ),
        ),
    ),
    Paper(
        "DEALRec",
        "DEALRec (arXiv 2401.17197)",
        (
            _of_rows(
                "dealrec",
                "DEALRec's rows are better than as many at random.",
                "overall comparison, 1,024 rows",
                ("dealrec", "random"),
                ("rare", MINORITY_COUNTS),
                ("noise", NOISE_STANDS_OUT),
                real=Real("ml-100k-few", "BIGRec, DEALRec's 1,024 rows", "BIGRec, random 1,024 rows"),
            ),
            _of_rows(
                "dealrec-all",
                "DEALRec's few rows are better than all rows, here with as many steps.",
                "comparison with full fine-tuning",
                ("dealrec", "all"),
                ("rare", MINORITY_COUNTS),
                ("noise", NOISE_STANDS_OUT),
                measure="category",
                real=Real("ml-100k-few", "BIGRec, DEALRec's 1,024 rows", "BIGRec, 8,192 rows"),
            ),
            _of_rows(
                "effort",
                "Without effort, DEALRec is worse.",
                "ablation, figure 4",
                ("dealrec", "influence"),
                ("rare", "rows of the second group may be the harder ones"),
                ("noise", "hard rows may be the mislabelled ones"),
                sure=False,
            ),
        ),
    ),
    Paper(
        "GORACS",
        "GORACS (arXiv 2506.04015)",
        (
            _of_rows(
                "goracs",
                "GORACS' rows are better than as many at random.",
                "table 1",
                ("goracs", "random"),
                ("rare", MINORITY_COUNTS),
                ("even", ALL_ALIKE),
                real=Real("ml-100k-few", "BIGRec, GORACS' 1,024 rows", "BIGRec, random 1,024 rows"),
            ),
            _of_rows(
                "goracs-dealrec",
                "GORACS' rows are better than DEALRec's.",
                "table 1",
                ("goracs", "dealrec"),
                ("rare", MINORITY_COUNTS + ", and GORACS goes where these lie"),
                ("even", ALL_ALIKE),
                real=Real("ml-100k-few", "BIGRec, GORACS' 1,024 rows", "BIGRec, DEALRec's 1,024 rows"),
            ),
            _of_rows(
                "goracs-all",
                "GORACS' few rows are better than all rows, here with as many steps.",
                "abstract",
                ("goracs", "all"),
                ("rare", MINORITY_COUNTS),
                ("even", ALL_ALIKE),
                measure="category",
                real=Real("ml-100k-few", "BIGRec, GORACS' 1,024 rows", "BIGRec, 8,192 rows"),
            ),
            _of_rows(
                "goracs-gradient",
                "The gradient norms help: λ = 0.1 is better than λ = 0.",
                "equation 10",
                ("goracs", "goracs-0"),
                ("rare", "the LLM may have more to learn from rows of the second group"),
                ("noise", "large gradients may be those of mislabelled rows"),
                sure=False,
            ),
            _of_rows(
                "el2n",
                "Rows chosen by EL2N are worse than random ones.",
                "table 1: 29 of 30 cells, with GraNd",
                ("random", "el2n"),
                ("noise", NOISE_STANDS_OUT),
                ("rare", MINORITY_COUNTS),
            ),
        ),
    ),
    Paper(
        "iLoRA",
        "iLoRA (arXiv 2408.10159)",
        tuple(
            Claim(
                key,
                sentence,
                source,
                "ilora",
                other,
                true=Trial("groups", "after one category, each group goes on to another", "loss"),
                false=Trial("one-group", "there is one rule for everybody", "loss"),
                real=real,
            )
            for key, other, sentence, source, real in (
                (
                    "ilora",
                    "lora",
                    "iLoRA is better than LoRA of the same rank.",
                    "abstract: 11.4 % on average",
                    Real("ml-100k-few", "iLoRA, 8,192 rows", "LLaRA, 8,192 rows"),
                ),
                (
                    "weights",
                    "lora-17",
                    "It is not the weights: LoRA with more of them is worse too.",
                    "abstract: < 1 %",
                    None,
                ),
                (
                    "gates",
                    "others",
                    "It is the instance: with the gates of other rows iLoRA is worse.",
                    "abstract",
                    None,
                ),
            )
        ),
    ),
    Paper(
        "objectives",
        "MSL (arXiv 2504.04178) and BEAR (arXiv 2601.22925)",
        tuple(
            Claim(
                f"{better}-{worse}-{name}",
                f"{better.upper()} is more accurate than {worse.upper()} where {words}.",
                source,
                f"{better}-{name}",
                f"{worse}-{name}",
                true=Trial("noisy", UNCERTAIN, "ndcg@10", sure=False),
                false=Trial("exact", CERTAIN, "item", sure=False),
            )
            for name, words in (
                ("beams", "beams rank that can only be titles"),
                ("titles", "every title is ranked by its likelihood"),
            )
            for better, worse, source in (
                ("msl", "nll", "MSL, abstract"),
                ("bear", "nll", "BEAR, abstract"),
                ("bear", "msl", "BEAR, abstract"),
            )
        ),
    ),
)


def cells() -> list[tuple[World, str]]:
    """Every world and arm that a claim or a check needs, each once, in the order of the papers."""
    found: dict[tuple[str, str], None] = {}
    for paper in PAPERS:
        for claim in paper.claims:
            for trial in claim.trials.values():
                found |= dict.fromkeys((trial.world, arm) for arm in trial.arms or (claim.better, claim.worse))
    for world in WORLDS.values():
        found |= dict.fromkeys((world.name, arm) for arm in world.check or ())
    return [(WORLDS[world], arm) for world, arm in found]
