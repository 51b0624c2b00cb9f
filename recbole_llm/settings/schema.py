"""Checks of names and values: declared settings, and RecBole's keys whose bad values it does not catch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from recbole_llm.declare import Key, Setting, keys_of
from recbole_llm.errors import InputError
from recbole_llm.registry import suggestion
from recbole_llm.settings.declarations import classic_keys, llm_keys, model_keys
from recbole_llm.settings.evaluation import EvalArgs

# RecBole's own way to several processes, which would take over the devices.
PROCESS_KEYS = ("local_rank", "local-rank", "nproc", "world_size", "offset", "group_offset", "ip", "port")
# What people who come from other tools call a setting, in lower case.
OTHER_NAMES = {
    "config_file": "config_files",
    "config": "config_files",
    "models": "model",
    "data": "dataset",
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "output_dir": "checkpoint_dir",
    "save_dir": "checkpoint_dir",
    "model_name_or_path": "llm_path",
    "base_model": "llm_path",
    "torch_dtype": "llm_dtype",
    "dtype": "llm_dtype",
    "bf16": "llm_dtype",
    "load_in_8bit": "quant",
    "load_in_4bit": "quant",
    "target_modules": "lora_target_modules",
    "beam_size": "num_beams",
    "max_len": "MAX_ITEM_LIST_LENGTH",
    "max_seq_length": "MAX_ITEM_LIST_LENGTH",
    "early_stopping_patience": "stopping_step",
    "patience": "stopping_step",
    "device": "use_gpu",
    "no_cuda": "use_gpu",
    "k": "topk",
}
UNREAD = ("config_file",)  # listed by RecBole, and read by nothing
PASSED_ON = ("clip_grad_norm",)  # RecBole's models hand the mapping to torch, which takes more than ours do


def is_text(key: str) -> bool:
    """Whether the values of this setting are text whatever they look like."""
    found = llm_keys().get(key) or model_keys().get(key)
    return found is not None and found.text_only


def check_value(key: str, value: object, default: object = None, is_llm: bool = True) -> None:
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
    declared = (llm_keys() if is_llm else classic_keys()).get(key) or model_keys().get(key)
    if declared is not None and not is_llm and key in PASSED_ON:
        declared = replace(declared, setting=replace(declared.setting, accept=None, like=""))
    allowed = declared or _like(key, default)
    if allowed is not None:
        allowed.check(value)
    if key == "eval_args" and isinstance(value, Mapping):
        _check_eval_args(value)


def _like(key: str, default: object) -> Key | None:
    """What a RecBole key takes, read off its default: only numbers and switches mean the same throughout RecBole."""
    if isinstance(default, bool):
        return Key(key, (bool, int), True, Setting("", low=0, high=1))
    return Key(key, (float,), True, Setting("")) if isinstance(default, int | float) else None


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    """Names and values inside ``eval_args``, which RecBole would take without a look."""
    parts = keys_of(EvalArgs)
    for name, value in eval_args.items():
        if name not in parts:
            hint = suggestion(str(name), parts, f"; it takes {', '.join(parts)}")
            raise InputError("eval_args", f"there is no key '{name}'{hint}", kind="unknown")
        parts[name].check(value, "eval_args: ")


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
        message = "RecBole's own processes are not used; start several by accelerate launch or torchrun"
        raise InputError(f"{source}{key}: {message}", kind="conflict", about=key)
    known = {*known} - {*UNREAD}
    if key not in known:
        other = OTHER_NAMES.get(key.lower().replace("-", "_"))
        if other in known:
            message = f"{source}{key} is not a setting of {where}; it is called {other} here"
            raise InputError(message, kind="unknown", about=key)
        hint = suggestion(key, known, "; recbole-llm --help <word> shows those that a word is in")
        raise InputError(f"{source}{key} is not a setting of {where}{hint}", kind="unknown", about=key)
