"""LLM-based sequential recommendation as a plugin for RecBole.

    import recbole_llm

    run = recbole_llm.run("BIGRec", "ml-100k", train_sample_size=1024)
    run.metrics["ndcg@10"]
    run.recommend(["Toy Story (1995)", "Babe (1995)"], k=5)
    run = recbole_llm.load_run(run.folder)

Importing this package is fast: RecBole, torch and transformers are neither imported nor patched. The packages ``llm``,
``adapter``, ``coreset``, ``curriculum``, ``grounding``, ``history``, ``objective``, ``prompt``, ``report``, ``rerank``
and ``semantic_ids`` are independent of RecBole and can be used alone.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.errors import InputError
    from recbole_llm.experiment.compare import compare
    from recbole_llm.experiment.load import load_run
    from recbole_llm.experiment.run import run
    from recbole_llm.experiment.run_record import Run
    from recbole_llm.experiment.tune import Tuned, tune
    from recbole_llm.report.table import ResultTable
    from recbole_llm.settings.config import Config

__version__ = "0.1.0"
__all__ = ["Config", "InputError", "ResultTable", "Run", "Tuned", "__version__", "compare", "load_run", "run", "tune"]

__getattr__ = lazy_exports(__name__, __file__)
