"""The preference of a run: wrong answers, their reference, and a stage for each β, or rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from recbole_llm.model.bigrec import BIGRec
from recbole_llm.objective.preference_settings import SELF_PLAY, PreferenceSettings
from recbole_llm.settings.config import Config
from recbole_llm.timeline import timeline
from recbole_llm.trainer.negatives import WrongAnswers, contrasts_across, draw_negatives, known_items
from recbole_llm.trainer.preference_loss import ContrastRows
from recbole_llm.trainer.preference_stages import Preference, PreferenceStage, ReferenceStage
from recbole_llm.trainer.self_play import OwnAnswersStage, round_name, self_play
from recbole_llm.trainer.tuning import Tuning, TuningResult
from recbole_llm.trainer.tuning_stages import Start


def preference_stages(config: Config) -> list[str]:
    """Names of the stages that :func:`prefer` goes through, in their order; none without a preference.

    Args:
        config: the resolved config.
    """
    settings = PreferenceSettings.from_settings(config.final_config_dict)
    if settings.preference == "none":
        return []
    if settings.preference == SELF_PLAY:
        return [round_name(number) for number in range(1, settings.rounds + 1)]
    return [ReferenceStage.name, *[PreferenceStage.name] * len(settings.betas)]


def prefer(tuning: Tuning, tuned: TuningResult | None) -> list[TuningResult]:
    """Run the preference stages of a run after its last tuning stage, or on the LLM as it is.

    Args:
        tuning: what the stages share.
        tuned: the last tuning stage; None where there was none.

    Returns:
        A result for each strength, or for each round; the model has the weights of the last.
    """
    settings = PreferenceSettings.from_settings(tuning.config.final_config_dict)
    start = Start.untuned(tuning) if tuned is None else Start.of(tuning, tuned)
    if settings.preference == SELF_PLAY:
        return self_play(tuning, start, settings)
    timeline().begin(ReferenceStage.name)  # the wrong answers included
    model = cast(BIGRec, tuning.model)
    known = known_items(model, tuning.rows, settings.mask_user_train)
    own = Preference(tuning, tuning.rows, start, _wrong_answers(tuning, start, settings, known), settings)
    draws = _contrast_rows(own, model.stages.run(ReferenceStage(own)), known)
    found: list[TuningResult] = []
    for beta in settings.betas:
        timeline().begin(PreferenceStage.name)
        found.append(model.stages.run(PreferenceStage(own, beta, draws)))
    return found


def _wrong_answers(
    tuning: Tuning, start: Start, settings: PreferenceSettings, known: Sequence[Sequence[int]]
) -> WrongAnswers:
    """Those of all draws, side by side; or the one that the model itself answers before the stage."""
    model, rows = cast(BIGRec, tuning.model), tuning.rows
    if settings.are_own:
        every = np.arange(len(rows.examples))
        return model.stages.run(OwnAnswersStage(tuning, rows, start, every, settings, "answers"))
    kind, count = settings.negatives, settings.n_negatives
    drawn = [draw_negatives(model, rows, kind, count, known, draw) for draw in range(settings.n_draws)]
    return WrongAnswers(np.concatenate(drawn, axis=1))


def _contrast_rows(own: Preference, reference: np.ndarray, known: Sequence[Sequence[int]]) -> list[ContrastRows]:
    """What each draw of the wrong answers is set against; rows that stand against one another have vectors as well."""
    settings, count, choice = own.settings, own.settings.n_negatives, own.objective
    vectors = _prompt_vectors(own) if choice.across_rows and choice.compares_prompts else None
    whole = ContrastRows(own.wrong.mask, reference, prompts=vectors)
    draws = np.split(own.wrong.items, settings.n_draws, axis=1)
    across = [contrasts_across(own.model, own.rows, items, known) if choice.across_rows else None for items in draws]
    return [whole.of_draw(number, count, across[number]) for number in range(len(draws))]


def _prompt_vectors(own: Preference) -> np.ndarray | None:
    """Vectors that say how alike the rows' prompts are: float32 [rows, d]; None where all are alike."""
    model, vectors = own.model, None
    if own.settings.prompts == "recommender":
        vectors = model.auxiliary.sequence_states(own.rows.histories)
    elif own.settings.prompts == "llm":
        texts = [model.prompts.text(example) for example in model.examples(own.rows.readable)]
        vectors = model.embed(texts, truncation_side="left")  # of a history that is too long, the newest items count
    return vectors
