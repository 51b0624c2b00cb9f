"""Which rows to train on: scores, selectors and sampling. Arrays in, row ids out; independent of RecBole."""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.coreset.ccs import CCSSelector
    from recbole_llm.coreset.d2_pruning import D2PruningSelector
    from recbole_llm.coreset.dealrec import DEALRecSelector
    from recbole_llm.coreset.dsir import DSIRSelector
    from recbole_llm.coreset.el2n import EL2NSelector, el2n_scores
    from recbole_llm.coreset.fdmat import FDMatSelector
    from recbole_llm.coreset.goracs.select import GoracsInfo, goracs_select
    from recbole_llm.coreset.goracs.selector import GoracsSelector
    from recbole_llm.coreset.goracs.settings import GoracsSettings
    from recbole_llm.coreset.goracs.transport import proxy_objective
    from recbole_llm.coreset.gradients.effort import effort_scores, effort_weights, losses_per_row
    from recbole_llm.coreset.gradients.norms import GradientNorms
    from recbole_llm.coreset.grand import GraNdSelector, grand_scores
    from recbole_llm.coreset.herding import HerdingSelector
    from recbole_llm.coreset.influence.derivative import influence_scores
    from recbole_llm.coreset.influence.eigenvalues import extreme_eigenvalues
    from recbole_llm.coreset.influence.influence import Influence, row_influence
    from recbole_llm.coreset.influence.losses import parameter_losses
    from recbole_llm.coreset.influence.mean_loss import MeanLoss
    from recbole_llm.coreset.influence.solvers import Solution, inverse_hvp, solve
    from recbole_llm.coreset.k_center import KCenterSelector
    from recbole_llm.coreset.moderate import ModerateSelector
    from recbole_llm.coreset.qdit import QDITSelector
    from recbole_llm.coreset.random import RandomSelector
    from recbole_llm.coreset.recranker import RecRankerSelector
    from recbole_llm.coreset.scores import (
        allocate_budget,
        combine_scores,
        resolve_budget,
        scale_scores,
        score_strata,
        stratified_sample,
    )
    from recbole_llm.coreset.selector import Input, Selection, Selector
    from recbole_llm.coreset.tf_dcon import TFDConSelector

__all__ = [
    "CCSSelector",
    "D2PruningSelector",
    "DEALRecSelector",
    "DSIRSelector",
    "EL2NSelector",
    "FDMatSelector",
    "GoracsInfo",
    "GoracsSelector",
    "GoracsSettings",
    "GraNdSelector",
    "GradientNorms",
    "HerdingSelector",
    "Influence",
    "Input",
    "KCenterSelector",
    "MeanLoss",
    "ModerateSelector",
    "QDITSelector",
    "RandomSelector",
    "RecRankerSelector",
    "Selection",
    "Selector",
    "Solution",
    "TFDConSelector",
    "allocate_budget",
    "combine_scores",
    "effort_scores",
    "effort_weights",
    "el2n_scores",
    "extreme_eigenvalues",
    "goracs_select",
    "grand_scores",
    "influence_scores",
    "inverse_hvp",
    "losses_per_row",
    "parameter_losses",
    "proxy_objective",
    "resolve_budget",
    "row_influence",
    "scale_scores",
    "score_strata",
    "solve",
    "stratified_sample",
]

__getattr__ = lazy_exports(__name__, __file__)
