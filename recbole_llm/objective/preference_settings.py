"""Settings of the axis ``preference``: a stage after fine-tuning that prefers right answers to wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from recbole_llm.declare import Declared, Setting, Settings
from recbole_llm.errors import InputError
from recbole_llm.registry import find_choice

if TYPE_CHECKING:
    from recbole_llm.objective.preferences import PreferenceObjective

BETAS = {"sdpo": 1.0}  # what the authors' script has; 0.1 elsewhere
N_NEGATIVES = {"sdpo": 3, "dmpo": 3}
SELF_PLAY, SELF_GENERATED = "sprec", "self_generated"


@dataclass(frozen=True)
class PreferenceSettings(Declared):
    """The axis ``preference`` and what belongs to it."""

    preference: Annotated[
        str,
        Setting(
            "stage after fine-tuning that prefers right answers to wrong ones",
            choices={
                "none": "",
                "dpo": "pairs",
                "sdpo": "softmax over several wrong ones",
                "dmpo": "their mean",
                "rpo": "those of other rows too, by likeness of prompts",
                "rpo_diagonal": "those of other rows too, a fifth of the loss",
                "sprec": "dpo against the model's own answers, in rounds",
            },
            axis="preference",
        ),
    ] = "none"
    beta: Annotated[
        float | list[float] | None,
        Setting(
            "strength of the preference loss",
            above=0,
            note="the best of a list on validation",
            null="is 1 for sdpo, else 0.1",
            key="pref_beta",
        ),
    ] = None
    n_neg: Annotated[
        int | None,
        Setting("wrong answers of a row", low=1, high=1024, null="is 3 for sdpo and dmpo, else 1", key="n_neg"),
    ] = None
    negatives: Annotated[
        str,
        Setting(
            "where wrong answers come from",
            choices={
                "random": "any",
                "popular": "by training count",
                "similar": "titles nearest to the target's",
                "in_prompt": "others of the prompt's candidates",
                SELF_GENERATED: "the model's own answer, as always with sprec",
            },
            key="pref_negatives",
        ),
    ] = "random"
    resample: Annotated[
        bool, Setting("draw new wrong answers for every epoch of the stage", key="negatives_resample")
    ] = False
    mask_user_train: Annotated[
        bool,
        Setting("exclude from the wrong answers all items of the row's user before the split", key="mask_user_train"),
    ] = False
    nll_weight: Annotated[
        float,
        Setting(
            "weight of the right answers' mean token loss, added to the preference loss", low=0, key="pref_nll_weight"
        ),
    ] = 0.0
    self_negative: Annotated[
        str,
        Setting(
            "what of the model's own answer is used as wrong",
            choices={"grounded": "the title nearest to it", "raw": "its text as it is"},
            scope="sprec and pref_negatives=self_generated",
            key="self_negative",
        ),
    ] = "grounded"
    epochs: Annotated[
        int, Setting("epochs of the preference stage, of each round with sprec", low=1, high=10_000, key="pref_epochs")
    ] = 1
    learning_rate: Annotated[
        float | None,
        Setting(
            "largest learning rate of the preference stage",
            above=0,
            null="is a tenth of learning_rate",
            key="pref_learning_rate",
        ),
    ] = None
    rounds: Annotated[
        int, Setting("rounds of answers, fine-tuning and dpo", low=1, high=10_000, scope="sprec", key="pref_rounds")
    ] = 5
    round_rows: Annotated[int, Setting("rows drawn for a round", low=1, scope="sprec", key="pref_round_rows")] = 2048
    temperature: Annotated[
        float,
        Setting("temperature of the weights by similarity of prompts", above=0, scope="rpo", key="rpo_temperature"),
    ] = 0.5
    prompts: Annotated[
        str,
        Setting(
            "vectors that the similarity of prompts is computed from",
            choices={
                "recommender": "its states of the histories",
                "llm": "the untuned LLM's embeddings",
                "none": "all weigh 1",
            },
            scope="rpo",
            key="rpo_prompts",
        ),
    ] = "recommender"

    @property
    def betas(self) -> list[float]:
        """The strengths that are tried."""
        if self.beta is None:
            return [BETAS.get(self.preference, 0.1)]
        return list(dict.fromkeys(map(float, self.beta))) if isinstance(self.beta, list | tuple) else [float(self.beta)]

    @property
    def n_negatives(self) -> int:
        """Wrong answers of a row."""
        return 1 if self.are_own else self.n_neg or N_NEGATIVES.get(self.preference, 1)

    @property
    def are_own(self) -> bool:
        """Whether they are the model's own answers, of which there is one."""
        return SELF_PLAY == self.preference or self.negatives == SELF_GENERATED

    @property
    def n_draws(self) -> int:
        """How often they are drawn: once, or for every epoch."""
        return self.epochs if self.resample else 1


def compares_histories(settings: Settings) -> bool:
    """Whether the auxiliary recommender's states of the histories say how alike prompts are."""
    return (settings["preference"], settings["rpo_prompts"]) == ("rpo", "recommender")


def check_preference(model: str, has_answers: bool, settings: Settings, has_valid_rows: bool) -> None:
    """Refuse what the preference stage does not go with.

    Args:
        model: its name, for messages.
        has_answers: whether it writes titles.
        settings: settings of the run, resolved.
        has_valid_rows: whether there are validation rows.

    Raises:
        InputError: which setting.
    """
    value, beta = settings["preference"], settings["pref_beta"]
    if value == "none":
        return
    if not has_answers:
        message = f"{model} writes no titles to prefer; set --preference=none"
        raise InputError("preference", message, kind="conflict")
    if not settings["epochs"] and value == SELF_PLAY:
        raise InputError(
            "preference", "sprec starts from a fine-tuned LLM, and epochs is 0; set epochs", kind="conflict"
        )
    if not settings["epochs"] and settings["curriculum"] != "none":
        raise InputError(
            "curriculum", "epochs is 0, so no LLM is tuned that could distil answers; set epochs, or leave it out",
            kind="conflict",
        )  # fmt: skip
    several = isinstance(beta, list | tuple) and len(set(beta)) > 1
    if several and value == SELF_PLAY:
        raise InputError("pref_beta", "sprec's rounds follow one another with one strength; give one", kind="conflict")
    if several and not (has_valid_rows and 0 < settings["eval_step"] <= settings["pref_epochs"]):
        raise InputError(
            "pref_beta", "a list of values, but no epoch is validated; give one value or set eval_step", kind="conflict"
        )
    if value == SELF_PLAY and settings["n_neg"] not in (None, 1):
        raise InputError("n_neg", "sprec has one wrong answer, the model's own; leave n_neg out", kind="conflict")
    if value == SELF_PLAY and settings["candidates"]:
        raise InputError(
            "preference", "sprec's wrong answers are titles of the catalogue; leave candidates out", kind="conflict"
        )
    _check_negatives(value, settings)
    if value != SELF_PLAY and settings["pref_negatives"] == SELF_GENERATED:
        _check_self_generated(value, settings)


def _check_negatives(value: str, settings: Settings) -> None:
    """Refuse wrong answers that there are none of, or that cannot be drawn again.

    Raises:
        InputError: which setting.
    """
    kind = settings["pref_negatives"]
    if kind == "in_prompt" and not settings["candidates"]:
        raise InputError(
            "pref_negatives",
            "in_prompt takes the other titles that a prompt lists, and prompts list none; set candidates",
            kind="conflict",
        )
    if settings["negatives_resample"] and (value == SELF_PLAY or kind in ("similar", SELF_GENERATED)):
        own = "sprec's are the model's own" if value == SELF_PLAY else "the model answers once, before the stage"
        what = "similar ones are the nearest, not drawn" if kind == "similar" else own
        raise InputError("negatives_resample", f"{what}; leave negatives_resample out", kind="conflict")


def _check_self_generated(value: str, settings: Settings) -> None:
    """Refuse what does not go with one wrong answer of the model's own.

    Raises:
        InputError: which setting.
    """
    if settings["n_neg"] not in (None, 1):
        raise InputError("n_neg", "self_generated is one answer, the model's own; leave n_neg out", kind="conflict")
    if settings["candidates"]:
        raise InputError(
            "pref_negatives", "self_generated answers are of the whole catalogue; leave candidates out", kind="conflict"
        )
    choice = cast("type[PreferenceObjective]", find_choice("preference", value))
    if choice.across_rows and settings["self_negative"] == "raw":
        raise InputError(
            "self_negative",
            f"{value} sets a wrong answer against other rows, for which a text that may be no title cannot be told "
            "apart; give grounded",
            kind="conflict",
        )
