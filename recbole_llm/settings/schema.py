"""Types and ranges of settings: our own keys, and those of RecBole whose bad values it would accept or trip over."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.registry import AXES, suggestion

NUMBER = (int, float)
TYPE_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Key:
    """What one setting may be.

    Attributes:
        types: accepted Python types; ``float`` takes integers too, ``int`` takes no True and False.
        low: smallest value of a number, and of the numbers in a list.
        high: largest value of a number.
        above: value that a number must exceed.
        below: value that a number must stay under.
        choices: the only texts accepted.
        null: whether ``~`` (None) is accepted.
        pattern: regular expression that a whole text must match.
        like: a text that does, for the message.
        share: the rule for amounts: an integer is a count from `low` (1 by default), a decimal a share of at most 1,
            above 0 where counts are.
    """

    types: tuple[type, ...]
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    null: bool = False
    pattern: str = ""
    like: str = ""
    share: bool = False

    @property
    def text_only(self) -> bool:
        """Whether a value is text whatever it looks like: the folder ``2024``, the interval ``[3,5]``."""
        return self.types == (str,) and not self.choices

    def accepts(self, value: Any) -> bool:
        """Whether the value has an accepted type and lies in range."""
        if value is None:
            return self.null
        if not self._right_type(value):
            return False
        if isinstance(value, str):
            matches = not self.pattern or re.fullmatch(self.pattern, value.replace(" ", ""))
            return bool(matches) and (not self.choices or value in self.choices)
        if isinstance(value, list):
            item = replace(self, types=self._item_types, null=False)
            return bool(value or self.types == (list,)) and all(item.accepts(part) for part in value)
        return not isinstance(value, NUMBER) or self._in_range(value)

    @property
    def _item_types(self) -> tuple[type, ...]:
        """Types of a list's items: those that may stand in its place, else text."""
        return tuple(kind for kind in self.types if kind is not list) or (str,)

    def _right_type(self, value: Any) -> bool:
        if isinstance(value, bool):
            return bool in self.types
        return isinstance(value, self.types) or (isinstance(value, int) and float in self.types)

    def _in_range(self, value: float) -> bool:
        if self.share:
            return value >= self._least if isinstance(value, int) else 0 < value <= 1 or value == self._least
        limits = (
            self.low is None or value >= self.low,
            self.high is None or value <= self.high,
            self.above is None or value > self.above,
            self.below is None or value < self.below,
        )
        return math.isfinite(value) and all(limits)

    @property
    def _least(self) -> float:
        """Smallest count."""
        return 1 if self.low is None else self.low

    def __str__(self) -> str:
        """What is allowed, in words: ``an integer >= 1``."""
        if self.share:
            bracket = "(" if self._least else "["
            return f"an integer >= {self._least:g} (a count) or a decimal in {bracket}0, 1] (a share)"
        limits = {">=": self.low, "<=": self.high, ">": self.above, "<": self.below}
        bounds = " and ".join(
            f"{sign} {limit if isinstance(limit, int) else f'{limit:g}'}"
            for sign, limit in limits.items()
            if limit is not None
        )
        names = " or ".join(TYPE_NAMES[kind] for kind in self.types)
        if self.like:
            return f"{TYPE_NAMES[str]} like {self.like}" + (", or ~" if self.null else "")
        words = f"one of {', '.join(self.choices)}" if self.choices else f"{names} {bounds}".strip()
        return words + (", or ~" if self.null else "")


def _one_of(*choices: str, null: bool = False) -> Key:
    return Key((str,), choices=choices, null=null)


def _axis(axis: str) -> Key:
    return _one_of(*AXES[axis])


TEXT, OPTIONAL_TEXT, SWITCH = Key((str,)), Key((str,), null=True), Key((bool,))
COUNT, OPTIONAL_COUNT, NATURAL = Key((int,), low=1), Key((int,), low=1, null=True), Key((int,), low=0)
RATE, WEIGHT, ANY_NUMBER = Key((float,), above=0), Key((float,), low=0), Key((float,))
FIELDS = Key((list,), null=True)
_RANGE = r"[\[(]-?[\d.]+,(inf|[\d.]+)[\])]"
INTERVAL = Key((str,), null=True, pattern=rf"{_RANGE}(;{_RANGE})*", like="[3,inf)")

LLM_KEYS: Mapping[str, Key] = {
    "llm_path": TEXT,
    "llm_revision": OPTIONAL_TEXT,
    "llm_dtype": _one_of("float32", "bfloat16", "float16", "auto"),
    "quant": _one_of("8bit", "4bit", null=True),
    "attn_implementation": OPTIONAL_TEXT,
    "gradient_checkpointing": SWITCH,
    "trust_remote_code": SWITCH,
    "tiny_vocab_size": COUNT,
    "tiny_hidden_size": COUNT,
    "tiny_n_layers": COUNT,
    "tiny_n_heads": COUNT,
    "tiny_context_length": COUNT,
    "tiny_steps": COUNT,
    "tiny_batch_tokens": COUNT,
    "tiny_learning_rate": RATE,
    "tiny_weight_decay": WEIGHT,
    "tiny_seed": NATURAL,
    "item_text_fields": FIELDS,
    "domain": TEXT,
    "prompt_style": _one_of("alpaca", "plain", "chat"),
    "max_prompt_tokens": COUNT,
    "num_beams": COUNT,
    "max_new_tokens": COUNT,
    "length_penalty": Key((float,), low=-100, high=100),
    "first_line": SWITCH,
    "generation_batch_tokens": COUNT,
}

AXIS_KEYS: Mapping[str, Key] = {
    "llm_recommender": OPTIONAL_TEXT,
    "adapter": _axis("adapter"),
    "lora_r": COUNT,
    "lora_alpha": RATE,
    "lora_dropout": Key((float,), low=0, below=1),
    "lora_target_modules": Key((str, list)),
    "ilora_num_experts": COUNT,
    "ilora_gate": _one_of("linear", "mlp", "topk", "noisy"),
    "ilora_gate_hidden_size": COUNT,
    "ilora_gate_top_k": Key((int,), low=2),
    "ilora_gate_noise": WEIGHT,
    "ilora_permuted": SWITCH,
    "ilora_scale": _one_of("expert_rank", "rank"),
    "gate_lr_ratio": RATE,
    "side_weight_decay": WEIGHT,
    "prompt_schedule": _one_of("direct", "two_stage", "linear"),
    "coreset": _axis("coreset"),
    "coreset_size": Key((int, float), share=True),
    "coreset_unit": _one_of("row", "user"),
    "coreset_pool": Key((int, float), share=True, null=True),
    "coreset_file": OPTIONAL_TEXT,
    "coreset_vectors": _one_of("recommender", "llm"),
    "coreset_encoder": TEXT,
    "ccs_n_groups": COUNT,
    "ccs_hard_prune_ratio": Key((float,), low=0, below=1),
    "d2_pruning_n_neighbours": COUNT,
    "d2_pruning_gamma_forward": WEIGHT,
    "d2_pruning_gamma_reverse": WEIGHT,
    "dsir_n_buckets": COUNT,
    "dsir_max_ngram": COUNT,
    "dsir_smoothing": RATE,
    "tf_dcon_n_clusters": COUNT,
    "recranker_n_clusters": COUNT,
    "dealrec_weight": WEIGHT,
    "dealrec_n_groups": COUNT,
    "dealrec_hard_prune_ratio": Key((float,), low=0, below=1),
    "dealrec_scaling": _one_of("minmax", "rank", "clip"),
    "goracs_gradient_weight": WEIGHT,
    "goracs_max_exchanges": NATURAL,
    "goracs_n_candidates": COUNT,
    "goracs_method": _one_of("auto", "exact", "approximate"),
    "goracs_pool_size": COUNT,
    "goracs_table_gib": RATE,
    "goracs_start": _one_of("greedy", "capacity"),
    "goracs_scale_distances": SWITCH,
    "goracs_scale_norms": SWITCH,
    "goracs_compat": _one_of("none", "reference"),
    "fdmat_n_targets": COUNT,
    "fdmat_max_exchanges": NATURAL,
    "qdit_weight": Key((float,), low=0, high=1),
    "qdit_n_targets": COUNT,
    "influence_method": _one_of("cg", "lissa", "exact"),
    "damping_ratio": WEIGHT,
    "influence_damping": Key((float,), low=0, null=True),
    "influence_scale": Key((float,), above=0, null=True),
    "influence_steps": OPTIONAL_COUNT,
    "influence_step_rows": OPTIONAL_COUNT,
    "influence_target": _one_of("train", "valid"),
    "influence_weights": _one_of("attention", "ffn", "all"),
    "effort_weights": _one_of("all", "last", "reference"),
    "effort_tokens": _one_of("answer", "all"),
    "curriculum": Key(
        (str,), pattern=r"none|sd_only|adaptive|fixed:(0|1|[01]?\.\d+)", like="none, sd_only, adaptive or fixed:0.5"
    ),
    "alpha": Key((float, list), low=0),
    "distance_rows": COUNT,
    "sd_select": _one_of("top", "nearest"),
    "sd_empty": _one_of("real", "keep"),
    "sd_file": OPTIONAL_TEXT,
    "sd_permuted": SWITCH,
    "grounding": _axis("grounding"),
    "title_length_penalty": Key((float,), low=-100, high=100),
    "title_renormalize": SWITCH,
    "lm_weight": Key((float,), low=0, high=1),
    "faiss_index": TEXT,
    "reweight": _one_of("none", "popularity", "collaborative"),
    "gamma": Key((float,), low=0, null=True),
    "recommender": TEXT,
    "recommender_config": Key((dict,), null=True),
}

TRAINING_KEYS: Mapping[str, Key] = {
    "epochs": NATURAL,
    "train_batch_size": COUNT,
    "learner": _one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "learning_rate": RATE,
    "weight_decay": WEIGHT,
    "warmup_steps": Key((int, float), low=0, share=True),
    "lr_scheduler": _one_of("linear", "constant", "cosine", "cosine_unshifted"),
    "lr_floor": Key((float,), low=0, below=1),
    "clip_grad_norm": Key((dict,), null=True),
    "eval_step": NATURAL,
    "stopping_step": NATURAL,
    "enable_amp": SWITCH,
    "micro_batch_tokens": COUNT,
    "group_by_length": SWITCH,
    "train_sample_size": OPTIONAL_COUNT,
    "valid_sample_size": OPTIONAL_COUNT,
    "test_sample_size": OPTIONAL_COUNT,
    "sample_seed": NATURAL,
    "bad_lines": _one_of("error", "drop"),
    "sample_for": _one_of("both", "llm", "all"),
    "train_neg_sample_args": Key((dict,), null=True),
}

JUDGE_KEYS: Mapping[str, Key] = {
    "eval_args": Key((dict,)),
    "repeatable": SWITCH,
    "metrics": Key((str, list)),
    "topk": Key((int, list), low=1),
    "valid_metric": TEXT,
    "eval_batch_size": COUNT,
    "metric_decimal_place": NATURAL,
    "loss_decimal_place": NATURAL,
    "MAX_ITEM_LIST_LENGTH": COUNT,
    "windows": _one_of("all", "full"),
    "category_field": OPTIONAL_TEXT,
    "candidates": Key((int,), low=2, null=True),
    "title_field": TEXT,
    "title_with": OPTIONAL_TEXT,
}

DATA_KEYS: Mapping[str, Key] = {
    "dataset": TEXT,
    "data_path": TEXT,
    "checkpoint_dir": TEXT,
    "seed": Key((int,), low=0, high=2**32 - 1),
    "USER_ID_FIELD": TEXT,
    "ITEM_ID_FIELD": TEXT,
    "RATING_FIELD": TEXT,
    "TIME_FIELD": TEXT,
    "load_col": Key((dict,), null=True),
    "unload_col": Key((dict,), null=True),
    "threshold": Key((dict,), null=True),
    "val_interval": Key((dict,), null=True),
    "user_inter_num_interval": INTERVAL,
    "item_inter_num_interval": INTERVAL,
}

CLASSIC_SCHEMA: Mapping[str, Key] = {**TRAINING_KEYS, **JUDGE_KEYS, **DATA_KEYS}
SCHEMA: Mapping[str, Key] = {**LLM_KEYS, **AXIS_KEYS, **CLASSIC_SCHEMA}

# RecBole's own way to several processes, which would take over the devices.
PROCESS_KEYS = ("local_rank", "local-rank", "nproc", "world_size", "offset", "group_offset", "ip", "port")
LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")
EVAL_ARGS: Mapping[str, Key] = {
    "split": Key((dict,)),
    "order": _one_of("TO", "RO"),
    "group_by": _one_of("user", "none", null=True),
    "mode": Key((str, dict)),
}


def is_text(key: str) -> bool:
    """Whether the values of this setting are text whatever they look like."""
    return key in SCHEMA and SCHEMA[key].text_only


def check_value(key: str, value: Any, default: Any = None, is_llm: bool = True) -> None:
    """Check one setting.

    Args:
        key: name of the setting.
        value: the user's value.
        default: the value it replaces; it tells the type of keys without a schema entry (those of RecBole's models).
        is_llm: whether it is a setting of an LLM model. RecBole's models have keys of the same names (DiffRec's
            ``reweight``) that mean something else.

    Raises:
        InputError: wrong type or out of range, with what is allowed.
    """
    schema = SCHEMA if is_llm else CLASSIC_SCHEMA
    allowed = schema.get(key) or _like(default)
    if allowed is not None and not allowed.accepts(value):
        raise InputError(f"{key}: {value!r} is not allowed; give {allowed}")
    if key == "eval_args":
        _check_eval_args(value)
    if key == "threshold" and value is not None and (len(value) != 1 or not ANY_NUMBER.accepts(*value.values())):
        raise InputError(f"threshold: {value!r} is not allowed; give one column and a number, such as {{'rating': 4}}")
    if (
        is_llm
        and key == "clip_grad_norm"
        and value
        and (list(value) != ["max_norm"] or not RATE.accepts(*value.values()))
    ):
        raise InputError(f"clip_grad_norm: {value!r} is not allowed; give {{'max_norm': <a number > 0>}}, or ~")


def _like(default: Any) -> Key | None:
    """What a RecBole key takes, judged by its default: only numbers and switches mean the same throughout RecBole."""
    if isinstance(default, bool):
        return Key((bool, int), low=0, high=1, null=True)
    return Key((float,), null=True) if isinstance(default, NUMBER) else None


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    """Names and values inside ``eval_args``, which RecBole would take without a look."""
    for key, value in eval_args.items():
        if key not in EVAL_ARGS:
            hint = suggestion(str(key), EVAL_ARGS, f"; it takes {', '.join(EVAL_ARGS)}")
            raise InputError(f"eval_args: there is no key '{key}'{hint}")
        if not EVAL_ARGS[key].accepts(value):
            raise InputError(f"eval_args: {key}: {value!r} is not allowed; give {EVAL_ARGS[key]}")
    split = eval_args.get("split", {"LS": LEAVE_ONE_OUT[0]})
    if not _is_split(split):
        raise InputError(
            f"eval_args: split: {split!r} is not allowed; give {{LS: {' or '.join(LEAVE_ONE_OUT)}}} or "
            "{RS: [0.8, 0.1, 0.1]}"
        )


def _is_split(split: Mapping[str, Any]) -> bool:
    if len(split) != 1:
        return False
    ((kind, value),) = split.items()
    if kind == "LS":
        return value in LEAVE_ONE_OUT
    shares = Key((float, list), low=0)
    return kind in ("RS", "TS") and isinstance(value, list) and len(value) == 3 and shares.accepts(value)


def check_known(key: str, known: Iterable[str], where: str, source: str = "") -> None:
    """Refuse a setting that nothing reads.

    Args:
        key: name of the setting.
        known: every name there is.
        where: who would have to know it, for the message: ``"BIGRec"`` or ``"Pop or SASRec"``.
        source: where it came from, for the message: ``"--"`` or ``"config file a.yaml: "``.

    Raises:
        InputError: with the nearest known names.
    """
    if key in PROCESS_KEYS:
        raise InputError(f"{source}{key}: a run is one process; leave it out")
    known = set(known)
    if key not in known:
        hint = suggestion(key, known, "; the property files and docs/configuration.md list all of them")
        raise InputError(f"{source}{key} is no setting of {where}{hint}")
