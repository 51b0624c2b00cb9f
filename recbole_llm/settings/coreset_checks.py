"""Checks of a coreset's requirements: validation rows, gates and solvers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from recbole_llm.coreset.settings import SAME
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.objective.settings import NLL

if TYPE_CHECKING:
    from recbole_llm.coreset import Selector

# Inputs of selectors that are of validation rows; influence may be.
OF_VALIDATION = ("target_texts", "valid_embeddings")
# Inputs that go by the LLM with its adapter on, by task: of clicks it is the LLM that gives el2n and grand.
BY_ADAPTER: Mapping[str, Collection[str]] = {
    "next-item": ("effort", "gradient_norms", "quality"),
    "click": ("effort", "gradient_norms", "quality", "el2n", "grand"),
}
# Inputs that need the loss of a recommender of next items.
OF_NEXT_ITEMS = ("influence",)


def on_validation(name: str, settings: Settings) -> bool:
    """Whether an input of selectors, by its name, looks at validation rows."""
    return name in OF_VALIDATION or (name == "influence" and settings["influence_target"] == "valid")


def check_needs(
    selector: Selector | type[Selector], model: str, task: str, settings: Settings, has_valid_rows: bool
) -> None:
    """Refuse a selector whose inputs this run cannot give.

    Args:
        selector: the selector, or its class.
        model: name of the model, for the message.
        task: ``"next-item"`` or ``"click"``.
        settings: settings of the run, resolved.
        has_valid_rows: whether there are validation rows.

    Raises:
        InputError: it looks at validation rows and there are none, needs an input that the task has none of, looks at
            gates that are not there yet, or settings of the computation do not go together.
    """
    needs = [need.name for need in selector.needs]
    for name in needs:
        if task == "click" and name in OF_NEXT_ITEMS:
            raise InputError(
                "coreset",
                f"{selector.name} needs {name} of a next-item recommender, and {model} predicts clicks; choose "
                "another, such as goracs or grand",
                kind="conflict",
            )
    if not has_valid_rows and any(on_validation(name, settings) for name in needs):
        raise InputError(
            "coreset",
            f"{selector.name} needs validation rows, and there are none; change eval_args",
            kind="missing",
        )
    if settings["ilora_permuted"] and any(name in BY_ADAPTER[task] for name in needs):
        raise InputError(
            "ilora_permuted",
            f"coreset {selector.name} reads the LLM before training, when there are no gates of other rows yet; "
            "choose another coreset, or set ilora_permuted: False",
            kind="conflict",
        )
    if "influence" in needs:
        _check_solver(settings)


def check_scored_tokens(needs: Collection[str], task: str, settings: Settings) -> None:
    """Refuse an objective of answers for the tokens of prompts, where the LLM scores rows.

    Args:
        needs: names of the selector's inputs.
        task: ``"next-item"`` or ``"click"``.
        settings: settings of the run, resolved.

    Raises:
        InputError: ``effort_tokens``.
    """
    if not any(name in BY_ADAPTER[task] for name in needs):
        return
    objective = settings["objective"]
    if settings["coreset_objective"] == SAME and objective != NLL and settings["effort_tokens"] == "all":
        raise InputError(
            "effort_tokens",
            f"all takes the prompt's tokens in, and objective={objective} is a loss of answers; set "
            f"--effort_tokens=answer, or --coreset_objective={NLL}",
            kind="conflict",
        )


def _check_solver(settings: Settings) -> None:
    """Refuse settings of another solver than the one of influence."""
    method = settings["influence_method"]
    for key in ("influence_scale", "influence_step_rows"):
        if settings[key] is not None and method != "lissa":
            raise InputError(
                key, f"only applies to influence_method: lissa (got {method}); leave it out", kind="conflict"
            )
    if settings["influence_steps"] is not None and method == "exact":
        raise InputError("influence_steps", "influence_method: exact takes no steps; leave it out", kind="conflict")
