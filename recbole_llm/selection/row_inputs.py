"""What selectors need to know of rows, by name: each input is of one source, and what takes a model is a stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.classic.auxiliary import AuxiliaryRecommender
from recbole_llm.coreset import Selector
from recbole_llm.errors import InputError
from recbole_llm.evaluation import protocol_of
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.report import peak_mib
from recbole_llm.selection.data_inputs import DataInputs
from recbole_llm.selection.llm_inputs import LLMInputs
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.recommender_inputs import RecommenderInputs, check_solver
from recbole_llm.selection.text_inputs import TextInputs
from recbole_llm.stages import MANIFEST, write_json

OF_RECOMMENDER = ("influence", "el2n", "grand", "recommender_vectors")
OF_LLM = ("effort", "gradient_norms", "quality", "choice_errors", "llm_vectors")
OF_TEXTS = ("embeddings", "valid_embeddings")
OF_GATED_LLM = ("effort", "gradient_norms", "quality", "choice_errors")  # by its loss, with the adapter on
OF_CLICKS = {"el2n": "choice_errors", "grand": "gradient_norms"}  # of the LLM; the recommender is one of next items
VALUES, FACTS = "values.npy", "facts.json"


def check_needs(selector: Selector, config: Any, valid_rows: Any) -> None:
    """Refuse, before anything is computed, a selector whose inputs this run cannot give.

    Raises:
        InputError: it looks at validation rows and there are none, goes by influence where the model predicts clicks,
            looks at gates that are not there yet, or a solver is given a setting of another one.
    """
    needs = {own_name(need.name, config) for need in selector.needs}
    by_validation = needs & {"target_texts", "valid_embeddings"}
    if (by_validation or "influence" in needs and config["influence_target"] == "valid") and valid_rows is None:
        raise InputError(f"coreset: {selector.name} looks at validation rows, and there are none; change eval_args")
    if protocol_of(config).has_labels and "influence" in needs:
        raise InputError(
            f"coreset: {selector.name} goes by influence on a recommender of next items, and {config['model']} "
            "predicts clicks; choose another, such as goracs or grand"
        )
    if config["ilora_permuted"] and needs.intersection(OF_GATED_LLM):
        raise InputError(
            f"ilora_permuted: coreset {selector.name} goes by the LLM before training, when there are no gates of "
            "others; choose another coreset, or set it False"
        )
    if "influence" in needs:
        check_solver(config)


class RowInputs:
    """Every :class:`recbole_llm.coreset.Input` of some rows: the method of its name, of the source that it is of.

    What takes a model to compute is a stage of its own, so that selectors, budgets and seeds of the draw share it.

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
        config: Any,
        pool: Pool,
        examples: Sequence[TokenPair],
        needs: Sequence[str] = (),
    ) -> None:
        self.model, self.config, self.pool = model, config, pool
        self.needs_states = "recommender_vectors" in [own_name(name, config) for name in needs]
        self.data = DataInputs(model, config, pool)
        self.text = TextInputs(model, config, self.data, examples)
        self.llm = LLMInputs(model, config, self.data, examples)
        self.facts: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.peak_mib = 0.0

    @cached_property
    def recommender(self) -> RecommenderInputs:
        """The source that is the surrogate: the model's auxiliary recommender where it has one.

        A new one stays here: what a model has borrowed is among the facts of its fine-tuning, which does not depend on
        who chose the rows.
        """
        name = self.config["recommender"]
        found = vars(self.model).get("auxiliary")
        if found is None:
            found = AuxiliaryRecommender(self.config, name, self.model.stages, needs_states=self.needs_states)
        self.seconds[name] = seconds_of(self.model.stages.root / found.fingerprint)
        return RecommenderInputs(found, self.config, self.pool)

    def get(self, name: str) -> Any:
        """The input of this name, computed or found; None where these rows have none."""
        name = own_name(name, self.config)
        source = self._source(name)
        if source is self.data:
            return getattr(source, name)()
        folder = self.model.stages.get(
            name.replace("_", "-"), source.facts(name), lambda place: self._keep(source, name, place)
        )
        self.seconds[name] = seconds_of(folder)
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.peak_mib = max(self.peak_mib, found.pop("peak_mib"))
        if found:
            self.facts[name] = found
        return np.load(folder / VALUES)

    def _source(self, name: str) -> RecommenderInputs | LLMInputs | TextInputs | DataInputs:
        if name in OF_RECOMMENDER:
            return self.recommender
        if name in OF_LLM:
            return self.llm
        return self.text if name in OF_TEXTS else self.data

    def _keep(self, source: Any, name: str, folder: Path) -> None:
        np.save(folder / VALUES, getattr(source, name)())
        reported = source.influence_facts if name == "influence" else {}
        write_json(folder / FACTS, {**reported, "peak_mib": peak_mib()})


def own_name(name: str, config: Any) -> str:
    """What stands for an input.

    For ``vectors`` what ``coreset_vectors`` says; for ``gradient_norms`` of answers the effort; for what goes by the
    recommender's loss on the next item, where clicks are predicted, the same of the LLM's choice between Yes and No.
    """
    if name == "vectors":
        return f"{config['coreset_vectors']}_vectors"
    if protocol_of(config).has_labels:
        return OF_CLICKS.get(name, name)
    return "effort" if name == "gradient_norms" else name


def seconds_of(stage: Path) -> float:
    """What a stage took when it was computed."""
    return json.loads((stage / MANIFEST).read_text(encoding="utf-8"))["seconds"]
