"""Settings of item codes: vectors, quantiser, and the tasks that an LLM is tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError

NEXT, USER_SEARCH = "next", "user_search"
LARGE_CATALOGUE = 5_000  # items, above which a level has more codes
FEW_CODES, MANY_CODES = 64, 256


@dataclass(frozen=True)
class CodeSettings(Declared):
    """How items get their codes (the line of TIGER, arXiv 2305.05065, and LC-Rec, arXiv 2311.09049).

    Raises:
        InputError: a value out of range, or ``sid_tasks`` without the task that ranks.

    Example:
        >>> CodeSettings.from_settings({"sid_levels": 2}).codes_per_level(n_items=100)
        64
    """

    quantizer: Annotated[
        str,
        Setting(
            "how vectors are turned into codes",
            choices={"rkmeans": "k-means of the residuals, level by level", "rqvae": "an autoencoder with codewords"},
        ),
    ] = "rkmeans"
    source: Annotated[
        str,
        Setting(
            "vectors of items",
            choices={
                "text": "the untuned LLM's states of title and item_text_fields",
                "id": "those of the auxiliary recommender",
                "llmemb": "of the LLM tuned on views of items, as LLMEmb's (scft_*)",
            },
        ),
    ] = "text"
    levels: Annotated[int, Setting("levels of a code, without the counter", low=1, high=8)] = 3
    codes: Annotated[
        int | None,
        Setting(
            "distinct codes of a level",
            low=2,
            high=4096,
            null=f"is {FEW_CODES}, or {MANY_CODES} for more than {LARGE_CATALOGUE:,} items",
        ),
    ] = None
    dim: Annotated[int, Setting("width of a codeword", low=1, high=4096, scope="rqvae")] = 32
    epochs: Annotated[int, Setting("epochs of the autoencoder", low=1, scope="rqvae")] = 200
    assign: Annotated[
        str,
        Setting(
            "codes in the autoencoder's training",
            choices={"argmin": "the nearest", "sample": "drawn by distance, ever nearer"},
            scope="rqvae",
        ),
    ] = "argmin"
    assign_temperature: Annotated[
        float,
        Setting("initial temperature of drawing", above=0, note="it falls to 0.05 or stays below", scope="rqvae"),
    ] = 1.0
    sinkhorn: Annotated[
        float | None,
        Setting(
            "epsilon of the assignment that gives vectors of one code other last codewords",
            above=0,
            null="leaves all of them to the counter",
        ),
    ] = None
    tasks: Annotated[
        list[str],
        Setting(
            "what the LLM is tuned on",
            choices={
                NEXT: "history to the next item",
                "item2text": "code to title",
                "text2item": "title to code",
                USER_SEARCH: "an item and who took it to the next who did, of TTDS",
            },
            note="a list with next in it",
        ),
    ] = field(default_factory=lambda: [NEXT])

    prefix: ClassVar[str] = "sid_"

    def __post_init__(self) -> None:
        super().__post_init__()
        if NEXT not in self.tasks or len(set(self.tasks)) < len(self.tasks):
            given = ", ".join(self.tasks)
            raise InputError("sid_tasks", f"[{given}] must hold {NEXT}, which ranks items, and no task twice")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CodeSettings:
        """See :class:`Declared`."""
        return super().from_settings(settings)

    def codes_per_level(self, n_items: int) -> int:
        """Codewords of a level: no more than there are items."""
        wanted = self.codes or (MANY_CODES if n_items > LARGE_CATALOGUE else FEW_CODES)
        return min(wanted, n_items)

    def facts(self) -> dict[str, Any]:
        """What decides the codes of given vectors, as JSON values."""
        own: dict[str, Any] = {"quantizer": self.quantizer, "levels": self.levels, "codes": self.codes}
        if self.quantizer == "rqvae":
            own |= {"dim": self.dim, "epochs": self.epochs, "assign": self.assign}
            own |= {"temperature": self.assign_temperature} if self.assign == "sample" else {}
        return own if self.sinkhorn is None else {**own, "sinkhorn": self.sinkhorn}


@dataclass(frozen=True)
class TwinSettings(Declared):
    """Codes of users beside those of items, and codes that follow the LLM while it learns (TTDS, arXiv 2409.09253)."""

    refresh_every: Annotated[
        int, Setting("epochs between two refreshes of the codes", low=0, scope="TTDS", note="0 keeps the first ones")
    ] = 1
    refresh_steps: Annotated[
        int, Setting("training steps of the quantisers at a refresh", low=0, scope="TTDS", note="1,024 vectors each")
    ] = 200
    user_tower: Annotated[bool, Setting("users have codes too", scope="TTDS")] = True
    rq_weight: Annotated[
        float, Setting("weight of the quantisers' loss at a refresh", low=0, scope="TTDS", note="0 leaves them")
    ] = 1.0
    con_weight: Annotated[
        float, Setting("weight of the contrastive loss between the states of codes and of texts", low=0, scope="TTDS")
    ] = 1.0
    rec_weight: Annotated[
        float, Setting("weight of the squared distance between the states of codes and of texts", low=0, scope="TTDS")
    ] = 1.0
    con_tau: Annotated[float, Setting("temperature of the contrastive loss", above=0, scope="TTDS")] = 0.1
    user_text_fields: Annotated[
        list[str] | None,
        Setting(
            "user fields whose text gives a user's vector",
            scope="TTDS",
            null="takes the mean vector of the items that it took, as for users without text",
        ),
    ] = None
    fixed_epochs: Annotated[int, Setting("epochs of a second tuning, on the final codes", low=0, scope="TTDS")] = 0
    fixed_learning_rate: Annotated[
        float | None,
        Setting(
            "largest learning rate of the second tuning", above=0, scope="TTDS", null="is a tenth of learning_rate"
        ),
    ] = None

    @property
    def follows_llm(self) -> bool:
        """Whether anything depends on the LLM's states of texts."""
        return bool(self.refresh_every or self.con_weight or self.rec_weight)

    def facts(self) -> dict[str, Any]:
        """What the first tuning depends on, as JSON values."""
        own = asdict(self)
        for later in ("fixed_epochs", "fixed_learning_rate", *(() if self.user_text_fields else ("user_text_fields",))):
            own.pop(later)
        return own
