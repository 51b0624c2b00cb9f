"""Inputs of selectors by name, looked up among the providers of the run's task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.selection.data_inputs import ClickDataInputs, DataInputs
from recbole_llm.selection.llm_inputs import ClickLLMInputs, LLMInputs
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.provider import Provider, RowInput, RowInputStage, find_input
from recbole_llm.selection.recommender_inputs import RecommenderInputs, RecommenderVectors
from recbole_llm.selection.text_inputs import ClickTextInputs, TextInputs
from recbole_llm.settings.config import Config
from recbole_llm.stages import read_manifest


class Providers(NamedTuple):
    """Who provides the inputs of a task."""

    data: type[DataInputs]
    text: type[TextInputs]
    llm: type[LLMInputs]
    recommender: type[RecommenderVectors]


PROVIDERS: Mapping[str, Providers] = {
    "next-item": Providers(DataInputs, TextInputs, LLMInputs, RecommenderInputs),
    # The recommender is one of next items: of clicks it gives vectors, but no loss.
    "click": Providers(ClickDataInputs, ClickTextInputs, ClickLLMInputs, RecommenderVectors),
}


class RowInputs:
    """Every :class:`recbole_llm.coreset.Input` of some rows, from the provider that declares it.

    Args:
        model: the recommender, untuned.
        config: the resolved config.
        pool: the rows to choose from.
        examples: prompt and response of each of these.
        needs: names of the inputs that will be asked for.

    Attributes:
        facts: input to what its computation reports, such as the Hessian's eigenvalues.
        seconds: input to what its computation took, whenever that was; that of the recommender's training included.
        peak_mib: the most memory that a process held until one of these computations ended.
    """

    def __init__(
        self,
        model: LLMRecommender,
        config: Config,
        pool: Pool,
        examples: Sequence[TokenPair],
        needs: Sequence[str] = (),
    ) -> None:
        self.model, self.config, self.pool, self.examples = model, config, pool, examples
        self.kinds = PROVIDERS[config.task]
        self.needed = frozenset(self._find(name)[1].name for name in needs)
        self.facts: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.peak_mib = 0.0
        self.made: dict[type[Provider], Provider] = {}

    def get(self, name: str) -> Any:
        """The input of this name, computed or found; None where these rows have none."""
        kind, declared = self._find(name)
        provider = self.provider(kind)
        if not provider.is_kept:
            return declared.compute(provider)
        stage = RowInputStage(provider, declared)
        values = self.model.stages.run(stage)
        self.note_seconds(declared.name, self.model.stages.folder(stage))
        self.peak_mib = max(self.peak_mib, stage.peak_mib)
        if stage.reported:
            self.facts[declared.name] = stage.reported
        return values

    def provider(self, kind: type[Provider]) -> Provider:
        """The provider of a kind for these rows, made on first use: the recommender's may have to be trained."""
        if kind not in self.made:
            self.made[kind] = kind.of(self)
        return self.made[kind]

    @property
    def data(self) -> DataInputs:
        """What the rows themselves say."""
        return self.provider(self.kinds.data)  # type: ignore[return-value]

    @property
    def text(self) -> TextInputs:
        """What an encoder of texts says."""
        return self.provider(self.kinds.text)  # type: ignore[return-value]

    @property
    def llm(self) -> LLMInputs:
        """What the untuned LLM says."""
        return self.provider(self.kinds.llm)  # type: ignore[return-value]

    @property
    def recommender(self) -> RecommenderVectors:
        """What the auxiliary recommender says."""
        return self.provider(self.kinds.recommender)  # type: ignore[return-value]

    def note_seconds(self, name: str, stage: Path) -> None:
        """Note what a stage took when it was computed."""
        self.seconds[name] = read_manifest(stage)["seconds"]

    def _find(self, name: str) -> tuple[type[Provider], RowInput]:
        found = find_input(name, self.kinds, self.config)
        if found is None:
            raise KeyError(f"nobody provides {name} for the task {self.config.task}")
        return found
