"""Settings shared by adapters: which adapter, and the training of modules beside the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting


@dataclass(frozen=True)
class AdapterSettings(Declared):
    """The axis ``adapter``, and training of what stands beside the LLM: gate network and projector."""

    adapter: Annotated[
        str,
        Setting(
            "which weights are trained",
            choices={
                "lora": "",
                "ilora": "instance-wise",
                "reclora": "a mixture for each user",
                "mosara": "diagonals between singular vectors",
                "full": "all weights",
            },
            axis="adapter",
        ),
    ] = "lora"
    gate_lr_ratio: Annotated[
        float,
        Setting(
            "learning rate of the gate network, as a share of learning_rate", above=0, scope="ilora, reclora, mosara"
        ),
    ] = 0.3
    side_weight_decay: Annotated[
        float, Setting("weight decay of modules beside the LLM (gate network, projector)", low=0)
    ] = 1e-5
