"""Settings of the axis ``preference``: a stage after fine-tuning in which right answers are to gain on wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting, Settings
from recbole_llm.errors import InputError

BETAS = {"sdpo": 1.0}  # what the authors' script has; 0.1 elsewhere
N_NEGATIVES = {"sdpo": 3, "dmpo": 3}
SELF_PLAY = "sprec"


@dataclass(frozen=True)
class PreferenceSettings(Declared):
    """The axis ``preference`` and what belongs to it."""

    preference: Annotated[
        str,
        Setting(
            "stage after fine-tuning that sets right answers apart from wrong ones",
            choices={
                "none": "",
                "dpo": "pairs",
                "sdpo": "softmax over several wrong ones",
                "dmpo": "their mean",
                "rpo": "those of other rows too",
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
        Setting("wrong answers of a row", low=1, null="is 3 for sdpo and dmpo, else 1", key="n_neg"),
    ] = None
    negatives: Annotated[
        str,
        Setting(
            "which items the wrong answers are",
            choices={"random": "any", "popular": "by training count", "similar": "titles nearest to the target's"},
            note="sprec's are the model's own",
            key="pref_negatives",
        ),
    ] = "random"
    epochs: Annotated[
        int, Setting("epochs of the preference stage, of each round with sprec", low=1, key="pref_epochs")
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
        int, Setting("rounds of answers, fine-tuning and dpo", low=1, scope="sprec", key="pref_rounds")
    ] = 5
    round_rows: Annotated[int, Setting("rows drawn for a round", low=1, scope="sprec", key="pref_round_rows")] = 2048
    temperature: Annotated[
        float,
        Setting("temperature of the weights by likeness of prompts", above=0, scope="rpo", key="rpo_temperature"),
    ] = 0.5
    prompts: Annotated[
        str,
        Setting(
            "vectors that say how alike prompts are",
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
        return self.n_neg or N_NEGATIVES.get(self.preference, 1)


def compares_histories(settings: Settings) -> bool:
    """Whether the auxiliary recommender's states of the histories say how alike prompts are."""
    return (settings["preference"], settings["rpo_prompts"]) == ("rpo", "recommender")


def check_preference(model: str, has_answers: bool, settings: Settings, has_valid_rows: bool) -> None:
    """Refuse what the preference stage does not go with.

    Args:
        model: its name, for messages.
        has_answers: whether it writes titles.
        settings: of the run, resolved.
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
    if not settings["epochs"]:
        raise InputError(
            "preference",
            f"{value} starts from a fine-tuned LLM, and epochs is 0; set epochs, or --preference=none",
            kind="conflict",
        )
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
