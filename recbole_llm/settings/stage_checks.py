"""Checks of what the stages of an LLM run need: validation rows, answers to learn from.

Each is made from the settings alone before anything is loaded, and again by the stage itself, which knows the data:
files may leave no validation row where the settings ask for some.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from recbole_llm.curriculum import make_curricula
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.llm.settings import TINY
from recbole_llm.objective.settings import NLL
from recbole_llm.prompt.settings import most_shown
from recbole_llm.registry import find_choice

if TYPE_CHECKING:
    from recbole_llm.objective import TokenObjective


def has_rows(settings: Mapping[str, Any], phase: str) -> bool:
    """Whether the split leaves rows of a phase, as far as the settings tell.

    Args:
        settings: settings of the run, resolved.
        phase: ``"valid"`` or ``"test"``.
    """
    if settings.get("benchmark_filename") is not None:
        return True
    ((kind, value),) = settings["eval_args"]["split"].items()
    if kind == "LS":
        return value in ("valid_and_test", f"{phase}_only")
    return kind != "RS" or bool(value[("train", "valid", "test").index(phase)] > 0)


def check_test_rows(settings: Mapping[str, Any]) -> None:
    """Refuse a split without training or without test rows.

    Raises:
        InputError: it has none.
    """
    ((kind, value),) = settings["eval_args"]["split"].items()
    if settings.get("benchmark_filename") is None and kind != "LS" and not value[0]:
        message = f"split: {settings['eval_args']['split']} leaves 0 training rows; give {kind}: [0.8, 0.1, 0.1]"
        raise InputError("eval_args", message, kind="conflict")
    if not has_rows(settings, "test"):
        raise InputError(
            "eval_args",
            f"split: {settings['eval_args']['split']} leaves rows for training and 0 test rows; give {{LS: "
            "valid_and_test} or {LS: test_only}",
            kind="conflict",
        )


def check_order(settings: Mapping[str, Any]) -> None:
    """Refuse rows at random: a row's history is what came before it.

    Raises:
        InputError: ``order: RO``.
    """
    if settings["eval_args"]["order"] != "TO":
        raise InputError(
            "eval_args", "order: RO has no history before a row; give order: TO, the order of time", kind="conflict"
        )


def check_gamma(settings: Settings, has_valid_rows: bool) -> None:
    """Refuse a search for gamma without the rows it needs.

    Raises:
        InputError: there are none, or they are ranked among sampled items.
    """
    search = settings["reweight"] != "none" and settings["gamma"] is None
    if search and not (has_valid_rows and settings["eval_args"]["mode"]["valid"] == "full"):
        raise InputError(
            "gamma", "it is searched on the full ranking of validation rows; set --gamma=<number>", kind="missing"
        )


def check_validation(settings: Settings, has_valid_rows: bool) -> None:
    """Refuse early stopping, or a choice among values of ``alpha``, that nothing is validated for.

    Raises:
        InputError: which setting needs validation rows.
    """
    epochs, step = settings["epochs"], settings["eval_step"]
    if not epochs:
        return
    if not has_valid_rows and step and settings["stopping_step"]:
        raise InputError(
            "stopping_step",
            "there are no validation rows for early stopping; set --stopping_step=0",
            kind="conflict",
        )
    if (has_valid_rows and 0 < step <= epochs) or len(make_curricula(settings)) < 2:
        return
    if has_valid_rows:
        raise InputError(
            "alpha", "a list of values, but no epoch is validated; give one value or set eval_step", kind="conflict"
        )
    raise InputError(
        "alpha",
        "there are no validation rows to choose one of several values by; give one",
        kind="conflict",
    )


def check_permuted(settings: Settings) -> None:
    """Refuse gates of other training rows where there is no training.

    Raises:
        InputError: ``ilora_permuted`` with ``epochs: 0``.
    """
    if settings["adapter"] == "ilora" and settings["ilora_permuted"] and not settings["epochs"]:
        raise InputError(
            "ilora_permuted",
            "needs epochs > 0: before training there are no other rows' gates to use",
            kind="conflict",
        )


def check_learner(settings: Settings) -> None:
    """Refuse an optimiser of sparse gradients.

    Raises:
        InputError: it is one.
    """
    if settings["learner"] == "sparse_adam":
        raise InputError(
            "learner", "sparse_adam takes sparse gradients, and an LLM's are dense; choose adamw", kind="conflict"
        )


def reads_states(adapter: type | None, settings: Settings) -> bool:
    """Whether an adapter of these settings has weights that depend on the state of a row's history."""
    asked = getattr(adapter, "reads_states", None)
    return bool(asked(settings)) if asked is not None else getattr(adapter, "needs_states", False) is True


def resolved_unit(model: str, task: str, adapter: type, settings: Settings) -> str:
    """What fine-tuning computes at once: ``"row"`` or ``"user"``.

    Args:
        model: name of the model, for the message.
        task: ``"next-item"`` or ``"click"``.
        adapter: class of the adapter.
        settings: settings of the run.

    Raises:
        InputError: ``train_unit: user`` is asked for, and the rows of a user do not begin alike.
    """
    unit: str | None = settings["train_unit"]
    obstacle = None
    if task == "click":
        obstacle = f"{model} lists liked and disliked titles apart, so prompts of a user do not begin alike"
    elif reads_states(adapter, settings):
        obstacle = f"adapter {settings['adapter']} has other weights for every row, so none is computed for two"
    elif most_shown(settings) is not None:
        obstacle = "prompt_items shows the end of a history, so prompts of a user do not begin alike"
    elif settings["group_by_length"]:
        obstacle = "group_by_length puts rows of one length into a step, and a user's rows differ in theirs"
    if unit == "user" and obstacle:
        raise InputError("train_unit", f"{obstacle}; set train_unit: row", kind="conflict")
    if unit is not None:
        return unit
    some = ("train_sample_size", "coreset_file")
    on_all = settings["coreset"] == "none" and all(settings[key] is None for key in some)
    return "user" if settings["llm_path"] == TINY and on_all and not obstacle else "row"


def check_readable(key: str, file: Path) -> None:
    """Refuse a file that cannot be opened.

    Args:
        key: the setting that names it.
        file: its path.

    Raises:
        InputError: the system's reason.
    """
    try:
        file.open("rb").close()
    except OSError as error:
        raise InputError(key, f"{file} cannot be read ({error.strerror}); set the right one", kind="file") from error


def not_writable(folder: Path, reason: str | None) -> InputError:
    """The refusal of a ``checkpoint_dir``."""
    return InputError("checkpoint_dir", f"cannot write to {folder} ({reason}); set another one", kind="file")


def check_answers(model: str, has_answers: bool, settings: Settings) -> None:
    """Refuse a curriculum of a model that writes no titles.

    Raises:
        InputError: it has no answers to learn from.
    """
    if settings["curriculum"] != "none" and not has_answers:
        raise InputError("curriculum", f"{model} generates no answers to distil; set curriculum: none", kind="conflict")


def check_objective(model: str, has_answers: bool, settings: Settings) -> None:
    """Refuse what the objective does not go with; one of another distribution says so itself.

    Raises:
        InputError: the model writes no titles, or see :meth:`recbole_llm.objective.TokenObjective.check`.
    """
    objective = cast("type[TokenObjective] | None", find_choice("objective", settings["objective"]))
    if objective is None:
        return
    if not has_answers:
        message = f"{model} writes no titles, which {settings['objective']} is about; set --objective={NLL}"
        raise InputError("objective", message, kind="conflict")
    objective.check(settings)


def check_on_trie(settings: Settings) -> None:
    """Refuse settings of raw distilled answers where these are titles, and rows without any where an objective weighs.

    Raises:
        InputError: which.
    """
    if settings["sd_rows"] is not None and settings["objective"] != NLL:
        raise InputError(
            "sd_rows",
            f"objective={settings['objective']} weighs the answers of every row, and with sd_rows some have none; "
            f"leave it out, or set --objective={NLL}",
            kind="conflict",
        )
    if not settings["distil_on_trie"]:
        return
    if settings["sd_num_beams"] is not None:
        raise InputError(
            "sd_num_beams",
            "it only applies to raw answers, and distil_on_trie distils the first title of num_beams beams; "
            "leave it out",
            kind="conflict",
        )
    for key, allowed in (("sd_select", "top"), ("sd_empty", "real")):
        if settings[key] != allowed:
            raise InputError(
                key,
                f"'{settings[key]}' only applies to raw answers, and distil_on_trie distils the title ranked first; "
                f"set --{key}={allowed}",
                kind="conflict",
            )
    if settings["candidates"]:
        raise InputError(
            "distil_on_trie",
            "it ranks the catalogue, and with candidates nothing is ranked; leave one of them out",
            kind="conflict",
        )


def check_teaching(model: str, task: str, is_classic: bool, settings: Settings) -> None:
    """Refuse to teach a classic model what is no ranking of the catalogue, or needs no teaching.

    Args:
        model: its name.
        task: ``"next-item"`` or ``"click"``.
        is_classic: whether a classic model is what the run serves.
        settings: settings of the run, resolved.

    Raises:
        InputError: why.
    """
    if settings["distill_into"] is None:
        return
    obstacle = None
    if task == "click":
        obstacle = f"{model} predicts clicks and ranks no items"
    elif settings["candidates"]:
        obstacle = f"with candidates {model} ranks no catalogue"
    elif is_classic:
        obstacle = f"{model} is served by a classic model as it is"
    if obstacle:
        raise InputError("distill_into", f"{obstacle}; leave it out", kind="conflict")
