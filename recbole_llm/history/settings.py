"""Settings of the axis ``history_policy`` of LLM models, and of the model SAR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError


@dataclass(frozen=True)
class HistorySettings(Declared):
    """The axis ``history_policy``: how many items the prompts of a trained LLM model show."""

    history_policy: Annotated[
        str,
        Setting(
            "how many items of a history a trained model's prompts show",
            choices={"fixed": "as many as it was trained on", "sar": "what an actor-critic chooses for each row"},
            axis="history_policy",
        ),
    ] = "fixed"
    history_lengths: Annotated[
        list[int] | int,
        Setting(
            "numbers of newest items to choose from",
            low=1,
            high=65_536,
            note="those above MAX_ITEM_LIST_LENGTH are it",
            scope="sar",
        ),
    ] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50])
    history_price: Annotated[
        float,
        Setting(
            "price of a prompt with all items against one with none, in log-likelihood per answer token",
            low=0,
            scope="sar",
        ),
    ] = 0.1
    history_rows: Annotated[
        int, Setting("training rows whose answers are scored at every length, drawn by seed", low=1, scope="sar")
    ] = 512
    history_updates: Annotated[int, Setting("updates of actor and critic, of 64 rows each", low=1, scope="sar")] = 500

    def choices(self, longest: int) -> list[int]:
        """The lengths that differ, ascending: none longer than a history can be."""
        return _distinct(self.history_lengths, longest)


@dataclass(frozen=True)
class SarSettings(Declared):
    """The actor-critic of SAR (arXiv 2108.01442), and what it is rewarded for."""

    prefix = "sar_"

    backbone: Annotated[
        str, Setting("RecBole model that reads the shortened histories", choices=("SASRec", "GRU4Rec"))
    ] = "SASRec"
    lengths: Annotated[
        list[int] | int,
        Setting(
            "numbers of newest items to choose from", low=1, high=65_536, note="those above MAX_ITEM_LIST_LENGTH are it"
        ),
    ] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50])
    gamma: Annotated[
        float, Setting("weight of a user's next reward in the return", low=0, high=1, note="0 is a bandit")
    ] = 0.82
    reward: Annotated[
        str,
        Setting(
            "reward of a choice, before its price",
            choices={
                "loglik": "the target's log-probability, -10 at least",
                "ndcg": "NDCG@10",
                "hit": "whether it is the first",
            },
        ),
    ] = "loglik"
    cost: Annotated[float, Setting("price of the longest history, proportionally less for shorter ones", low=0)] = 0.0
    standardise: Annotated[bool, Setting("standardise the rewards of an episode")] = False
    state_dim: Annotated[
        int, Setting("width of the actor's state", low=2, high=4096, note="a multiple of 2, the number of heads")
    ] = 64
    state_len: Annotated[int, Setting("newest items that the actor reads", low=1, high=65_536)] = 50
    entropy: Annotated[float, Setting("weight of the actor's entropy", low=0)] = 0.01
    critic_weight: Annotated[float, Setting("weight of the critic's loss", low=0)] = 0.5
    actor_weight: Annotated[float, Setting("weight of the actor's loss", low=0)] = 1.0
    warmup_epochs: Annotated[int, Setting("epochs of the backbone alone, on lengths drawn uniformly", low=0)] = 5

    def choices(self, longest: int) -> list[int]:
        """The lengths that differ, ascending: none longer than a history can be.

        Example:
            >>> SarSettings(lengths=[5, 1, 50, 20]).choices(10)
            [1, 5, 10]
        """
        return _distinct(self.lengths, longest)


def _distinct(lengths: list[int] | int, longest: int) -> list[int]:
    given = lengths if isinstance(lengths, list | tuple) else [lengths]
    return sorted({min(length, longest) for length in given})


def check_sar(final: Mapping[str, Any]) -> None:
    """Refuse an actor whose state has no two heads.

    Args:
        final: resolved settings.

    Raises:
        InputError: which setting.
    """
    settings = SarSettings.from_settings(final)
    if settings.state_dim % 2:
        raise InputError("sar_state_dim", f"{settings.state_dim} is odd; give a multiple of 2, the number of heads")
    if final["loss_type"] != "CE":
        raise InputError("loss_type", f"SAR has CE, not {final['loss_type']}; leave it out", kind="conflict")
