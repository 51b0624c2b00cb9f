"""Settings of GORACS, and the search method that follows from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, ClassVar

from recbole_llm.coreset.goracs.costs import rows_that_fit, table_bytes
from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class GoracsSettings(Declared):
    """How GORACS searches (arXiv 2506.04015).

    Attributes:
        gradient_weight: lambda, >= 0, of the gradient norms, which count in favour of a row; the authors' examples use
            0.1 for next items and 0.5 for clicks.
        max_exchanges: exchanges of one selected row for another, >= 0 (per class); 100 and 20 in the authors' examples.
        n_candidates: selected rows and other rows that are compared in search of an exchange, each >= 1, and four times
            as many where no exchange improves; 30 and 3 there.
        method: ``exact`` considers every row; ``approximate`` searches in pools of rows and needs a few passes over
            all; ``auto`` is exact where a table of all costs fits into ``table_gib``.
        pool_size: rows of a pool of the approximate way, >= 1; fewer where two pools do not fit into one table, but at
            least twice the budget.
        table_gib: memory that one table of costs may take, > 0; without a table the exact way computes costs again by
            blocks whenever it needs them.
        start: ``greedy`` as in the paper, or ``capacity``, where each row serves its full share of validation rows
            (exact way only).
        scale_distances: divide the distances by the largest.
        scale_norms: divide the gradient norms by the largest.
        compat: ``reference`` repeats the authors' code, which ranks exchanges by another score and in another order and
            fills up with the first rows once none gains.

    Example:
        >>> GoracsSettings(gradient_weight=0.2)
        GoracsSettings(gradient_weight=0.2)
    """

    gradient_weight: Annotated[
        float, Setting("lambda: weight of the gradient norms against the distances", low=0, note="0 computes none")
    ] = 0.1
    max_exchanges: Annotated[
        int, Setting("exchanges after the greedy start", low=0, note="in each class of a click task")
    ] = 100
    n_candidates: Annotated[
        int, Setting("selected rows and other rows that are compared in search of an exchange", low=1)
    ] = 30
    method: Annotated[
        str,
        Setting(
            "which rows are searched",
            choices={
                "auto": "exact where a table of all costs fits",
                "exact": "all rows",
                "approximate": "pools of rows",
            },
        ),
    ] = "auto"
    pool_size: Annotated[
        int,
        Setting(
            "rows of a pool of the approximate method",
            low=1,
            note="fewer where two pools exceed goracs_table_gib, at least twice as many as are chosen",
        ),
    ] = 16384
    table_gib: Annotated[float, Setting("largest table of costs, in GiB", above=0, note="4 bytes a cost")] = 1.0
    start: Annotated[
        str,
        Setting(
            "start of the exact method",
            choices={"greedy": "the paper's", "capacity": "each row serves its share of validation rows"},
        ),
    ] = "greedy"
    scale_distances: Annotated[bool, Setting("divide the distances by the largest")] = True
    scale_norms: Annotated[bool, Setting("divide the gradient norms by the largest")] = True
    compat: Annotated[
        str,
        Setting(
            "procedure to follow",
            choices={"none": "", "reference": "the paper's code: other ranking and order of exchanges"},
        ),
    ] = "none"

    prefix: ClassVar[str] = "goracs_"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compat == "reference" and self.method == "approximate":
            raise InputError(
                "goracs_method", "approximate has no counterpart in the authors' code; use exact", kind="conflict"
            )

    def fits(self, n_train: int, n_valid: int) -> bool:
        """Whether a table of all costs may be made."""
        return table_bytes(n_train, n_valid) <= self.table_gib * 2**30

    def why_approximate(self, n_train: int, n_valid: int) -> str:
        """The reason, for a line of the log, where not every row is considered."""
        if self.method == "approximate":
            return "goracs_method is approximate"
        return f"a {n_train} x {n_valid} cost table exceeds goracs_table_gib ({self.table_gib:g})"

    def pool_rows(self, n_train: int, n_valid: int, budget: int) -> int:
        """Rows of a pool; two are searched at once."""
        wanted = min(max(self.pool_size, 2 * budget), n_train)
        fitting = rows_that_fit(n_valid, self.table_gib * 2**30)
        if min(2 * wanted, n_train) <= fitting:
            return wanted
        if 2 * budget <= fitting // 2:
            log.info("GORACS: pools of %d rows, not %d, as two fit into goracs_table_gib.", fitting // 2, wanted)
            return fitting // 2
        smallest = min(2 * budget, n_train)
        needed = table_bytes(min(2 * smallest, n_train), n_valid) / 2**30
        log.warning(
            "GORACS: two pools of twice the budget, %d rows each, take %.2g GiB, more than goracs_table_gib (%g).",
            *(smallest, needed, self.table_gib),
        )
        return smallest

    def is_exact(self, n_train: int, n_valid: int) -> bool:
        """Whether every row is considered."""
        if self.method == "auto":
            return self.compat == "reference" or self.fits(n_train, n_valid)
        return self.method == "exact"
