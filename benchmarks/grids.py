"""The tables of accuracy: on which data, by which commands, which lines, compared with what.

``benchmarks/results.py`` runs and writes them. A new table is a :class:`Grid` in :data:`GRIDS`, and two marks in the
page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.coresets import oracle_file
from benchmarks.planted import PlantedSettings

SEEDS = (2020, 2021, 2022)
WORLDS = Path("saved") / "worlds"  # of benchmarks/planted.py, one per name and seed
# With the two newest items alone, which say nearly all there is to know, the small LLM learns the rule in four epochs
# (validation of seed 2020, all rows); with ten, in six or not at all.
NEWEST = ("--MAX_ITEM_LIST_LENGTH=2",)
SMALL = ("--config_files=benchmarks/planted.yaml",)  # settings of the LLM models on a planted world
MOVIES = ("--dataset=ml-100k",)
SMALL_MOVIES = ("--config_files=benchmarks/ml-100k.yaml",)
# What benchmarks/smollm2.yaml says of rows, users and histories
FEW_USERS = (
    "--MAX_ITEM_LIST_LENGTH=10",
    "--train_sample_size=512",
    "--valid_sample_size=100",
    "--test_sample_size=500",
)
TITLES = ("--grounding=constrained", "--num_beams=20")
FEW_MOVIES = ("--prompt_style=plain", "--train_sample_size=2048", "--valid_sample_size=300", "--stopping_step=0")


@dataclass(frozen=True)
class Line:
    """One line of a table: a model's row in the result of a command.

    Attributes:
        title: what the table calls it.
        cell: name of the command's cell.
        model: name of the model in the command's own table.
    """

    title: str
    cell: str
    model: str


@dataclass(frozen=True)
class Grid:
    """One table on one data set.

    Attributes:
        name: of the section in the page.
        cells: cell name to the arguments of its command, without the seed; ``{seed}`` in them stands for it.
        lines: the table's lines.
        seeds: of every cell.
        compared_with: titles of the lines that all others are compared with; by default every line.
        protocol: how rows are evaluated, a key of :data:`recbole_llm.evaluation.PROTOCOLS`.
        world: settings of the planted world the cells run on, which gets the seed of the cell; None for real data.
        floor: title of the line from which the share of the way to the oracle is counted, in a world.
        oracle_shares: of training rows, for which a coreset of useful rows is written beside a world.
        metrics: shown beside those of the protocol.
    """

    name: str
    cells: dict[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    seeds: tuple[int, ...] = SEEDS
    compared_with: tuple[str, ...] = ()
    protocol: str = "ranks"
    world: PlantedSettings | None = None
    floor: str = ""
    oracle_shares: tuple[float, ...] = ()
    metrics: tuple[str, ...] = ()

    def world_folder(self, seed: int) -> Path:
        """``data_path`` of the world of a seed."""
        return WORLDS / f"{self.name}-{seed}"


def planted(name: str) -> tuple[str, ...]:
    """Arguments of every command of a grid on planted worlds."""
    return ("--dataset=planted", f"--data_path={WORLDS / name}-{{seed}}")


Cells = dict[str, tuple[str, ...]]


def named(name: str, cells: Cells, classics_on: tuple[str, ...] | None = None) -> Cells:
    """Cells by the names that their files have; with Pop and SASRec before them, where data for these are given."""
    if classics_on is not None:
        cells = {"pop": ("--model=Pop", *classics_on), "sasrec": ("--model=SASRec", *classics_on), **cells}
    return {f"{name}-{cell}": words for cell, words in cells.items()}


def classic_lines(name: str) -> tuple[Line, Line]:
    """The lines of the Pop and the SASRec that a grid runs."""
    return Line("Pop", f"{name}-pop", "Pop"), Line("SASRec, all rows", f"{name}-sasrec", "SASRec")


TOTAL = "fine-tuned, SOFT's total steps"
ADAPTIVE = "SOFT (adaptive)"


def soft_grid(name: str, data: tuple[str, ...], settings: tuple[str, ...], epochs: int, **options: Any) -> Grid:
    """What SOFT claims: against plain fine-tuning at equal cost, its own parts, and a placebo.

    Args:
        name: of the grid.
        data: arguments of every command.
        settings: arguments of the LLM models' commands.
        epochs: of each tuning stage; SOFT has two.
        options: of the grid; ``classics`` names the grid whose Pop and SASRec are shown, by default this one.
    """
    classics = options.pop("classics", name)
    bigrec, soft = (("--model=" + model, *data, *settings) for model in ("BIGRec", "SOFT"))
    once, twice = f"--epochs={epochs}", f"--epochs={2 * epochs}"
    cells = {
        "untuned": (*bigrec, "--epochs=0"),
        "fine-tuned": (*bigrec, once),
        "fine-tuned-total": (*bigrec, twice),
        "sd-only": (*soft, once, "--curriculum=sd_only"),
        "fixed": (*soft, once, "--curriculum=fixed:0.5"),
        "adaptive": (*soft, once, "--alpha=10"),
        "placebo": (*soft, once, "--alpha=10", "--sd_permuted=True"),
    }
    lines = (
        *classic_lines(classics),
        Line("untuned", f"{name}-untuned", "BIGRec"),
        Line("fine-tuned, SOFT's first stage", f"{name}-fine-tuned", "BIGRec"),
        Line(TOTAL, f"{name}-fine-tuned-total", "BIGRec"),
        Line("distilled answers only", f"{name}-sd-only", "SOFT"),
        Line("fixed weight 0.5", f"{name}-fixed", "SOFT"),
        Line(ADAPTIVE, f"{name}-adaptive", "SOFT"),
        Line("placebo: distilled answers permuted", f"{name}-placebo", "SOFT"),
    )
    commands = named(name, cells, data if classics == name else None)
    return Grid(name, commands, lines, compared_with=(TOTAL, ADAPTIVE), floor="Pop", **options)


# Few rows are seen more often: epochs, and epochs between validations, by share of the rows.
FEW = {0.02: ("--epochs=50", "--eval_step=10"), 0.1: ("--epochs=25", "--eval_step=5")}
# Share of random rows that could be tuned on while DEALRec selects the smaller one. On the planted world of seed 2020
# selection took 46 s, and a row 6.4 ms per epoch.
LONGER = {0.02: 0.057, 0.1: 0.174}


def coreset_grid(
    name: str,
    data: tuple[str, ...],
    settings: tuple[str, ...],
    epochs: int,
    selectors: tuple[str, ...],
    few: Mapping[float, tuple[str, ...]] = FEW,
    **options: Any,
) -> Grid:
    """What coresets claim: few rows, well chosen, against as many at random and against all.

    Args:
        name: of the grid.
        data: arguments of every command.
        settings: arguments of the LLM models' commands.
        epochs: on all rows.
        selectors: values of ``coreset``; ``oracle`` stands for a file of useful rows, ``longer`` for the random rows of
            :data:`LONGER`.
        few: shares of the rows, and how often they are seen.
        options: of the grid; ``classics`` names the grid whose Pop and SASRec are shown, by default this one.
    """
    classics = options.pop("classics", name)
    bigrec = ("--model=BIGRec", *data, *settings)
    cells = {"full": (*bigrec, f"--epochs={epochs}")}
    lines = [
        *classic_lines(classics),
        Line("all rows", f"{name}-full", "BIGRec"),
    ]
    for share, often in few.items():
        for selector in selectors:
            title, rows = f"{selector}, {share:.0%}", (f"--coreset={selector}", f"--coreset_size={share}")
            if selector == "oracle":
                rows = (f"--coreset_file={oracle_file(WORLDS / f'{name}-{{seed}}', share)}",)
            elif selector == "longer":
                title = f"random, time of dealrec, {share:.0%}"
                rows = ("--coreset=random", f"--coreset_size={LONGER[share]}")
            cells[f"{selector}-{share:g}"] = (*bigrec, *often, *rows)
            lines.append(Line(title, f"{name}-{selector}-{share:g}", "BIGRec"))
    commands = named(name, cells, data if classics == name else None)
    compared = ("all rows", *(f"random, {share:.0%}" for share in few))
    oracles = tuple(few) if "oracle" in selectors else ()
    return Grid(name, commands, tuple(lines), compared_with=compared, oracle_shares=oracles, **options)


def click_grid(name: str, settings: tuple[str, ...]) -> Grid:
    """Yes or no on few rows: at random in the sizes of TALLRec, and chosen by GORACS at one of them."""
    tallrec = ("--model=TALLRec", *settings)
    cells = {"lr": ("--model=LR", *settings[:1]), "untuned": (*tallrec, "--epochs=0")}
    lines = [Line("LR, all rows", f"{name}-lr", "LR"), Line("TALLRec, untuned", f"{name}-untuned", "TALLRec")]
    for selector, size in (("random", 16), ("random", 64), ("goracs", 64), ("random", 256)):
        # About as many rows are seen at every size, so that the sizes compare at equal cost.
        often = (f"--epochs={1920 // size}", f"--eval_step={480 // size}")
        cells[f"{selector}-{size}"] = (*tallrec, *often, f"--coreset={selector}", f"--coreset_size={size}")
        lines.append(Line(f"TALLRec, {selector}, {size} rows", f"{name}-{selector}-{size}", "TALLRec"))
    return Grid(name, named(name, cells), tuple(lines), compared_with=("TALLRec, random, 64 rows",), protocol="clicks")


def real_llm_grid(name: str, data: tuple[str, ...], classic: tuple[str, ...]) -> Grid:
    """The four methods with an LLM that was trained on real text, on few rows: 512 drawn by seed, or chosen of 2,048.

    Args:
        name: of the grid.
        data: arguments of the LLM models' commands.
        classic: arguments of RecBole's models.
    """
    cells = {
        "classics": ("--model=Pop,SASRec", *classic),
        "bigrec": ("--model=BIGRec", *data),
        "popularity": ("--model=BIGRec", *data, "--reweight=popularity"),
        "constrained": ("--model=BIGRec", *data, *TITLES),
        "untuned": ("--model=BIGRec", *data, "--epochs=0"),
        "soft": ("--model=SOFT", *data, "--alpha=10"),
        "ilora": ("--model=iLoRA", *data),
        "goracs": ("--model=BIGRec", *data, "--train_sample_size=2048", "--coreset=goracs", "--coreset_size=512"),
        "dealrec": ("--model=BIGRec", *data, "--train_sample_size=2048", "--coreset=dealrec", "--coreset_size=512"),
    }
    lines = (
        Line("Pop", f"{name}-classics", "Pop"),
        Line("SASRec, all rows", f"{name}-classics", "SASRec"),
        Line("SASRec, 512 rows", f"{name}-classics", "SASRec (512 rows)"),
        Line("BIGRec, untuned", f"{name}-untuned", "BIGRec"),
        Line("BIGRec on random rows", f"{name}-bigrec", "BIGRec"),
        Line("BIGRec, popularity-weighted", f"{name}-popularity", "BIGRec"),
        Line("BIGRec, constrained", f"{name}-constrained", "BIGRec"),
        Line("SOFT", f"{name}-soft", "SOFT"),
        Line("iLoRA", f"{name}-ilora", "iLoRA"),
        Line("GORACS", f"{name}-goracs", "BIGRec"),
        Line("DEALRec", f"{name}-dealrec", "BIGRec"),
    )
    return Grid(name, named(name, cells), lines, seeds=SEEDS[:2], compared_with=("Pop", "BIGRec on random rows"))


ALL_ROWS = ("--config_files=properties/demo.yaml", "--topk=[1,5,10,20]")  # the regime of ``make demo``


def all_rows_grid(history: int) -> Grid:
    """The tiny LLM tuned on all rows of MovieLens-100K, one tuning ranked in four ways, and what learns beside it.

    Args:
        history: items of history that every model of the table is shown.
    """
    name, data = f"ml-100k-{history}", (*MOVIES, f"--MAX_ITEM_LIST_LENGTH={history}")
    bigrec = ("--model=BIGRec", *data, *ALL_ROWS)
    nearest = (*bigrec, "--grounding=embedding", "--num_beams=4")
    # A gate's weights differ from row to row, so nothing is shared in a pass: few rows, seen once as well.
    few = (*ALL_ROWS, "--train_unit=row", "--train_sample_size=8192", *TITLES)
    cells = {
        "pop": ("--model=Pop", *data),
        "constrained": (*bigrec, *TITLES),
        "embedding": nearest,
        "popularity": (*nearest, "--reweight=popularity"),
        "soft": ("--model=SOFT", *data, *ALL_ROWS, *TITLES),
        "sasrec": ("--model=SASRec", *data),
        "llara": ("--model=LLaRA", *data, *few, "--adapter=lora"),
        "ilora": ("--model=iLoRA", *data, *few, "--adapter=ilora"),
        "likelihood": (*bigrec, "--grounding=likelihood"),
    }
    shown = (
        ("Pop, all interactions", "pop", "Pop"),
        ("SASRec, all rows", "sasrec", "SASRec"),
        ("BIGRec, embedding", "embedding", "BIGRec"),
        ("BIGRec, embedding and popularity", "popularity", "BIGRec"),
        ("BIGRec, constrained", "constrained", "BIGRec"),
        ("BIGRec, likelihood", "likelihood", "BIGRec"),
        ("SOFT, constrained", "soft", "SOFT"),
        ("LLaRA, 8,192 rows", "llara", "LLaRA"),
        ("iLoRA, 8,192 rows", "ilora", "iLoRA"),
    )
    lines = tuple(Line(title, f"{name}-{cell}", model) for title, cell, model in shown)
    compared = ("Pop, all interactions", "BIGRec, constrained")
    return Grid(name, named(name, cells), lines, compared_with=compared)


def vectors_grid(name: str, data: tuple[str, ...]) -> Grid:
    """LLMEmb in three backbones beside them on ids alone, head and tail apart."""
    backbones = ("SASRec", "GRU4Rec", "BERT4Rec")
    classic = {name: (f"--model={name}", *data, "--head_share=0.2") for name in backbones}
    own = {f"LLMEmb-{name}": ("--model=LLMEmb", f"--rat_backbone={name}", *data) for name in backbones}
    untuned = {"LLMEmb-untuned": ("--model=LLMEmb", "--scft_steps=0", *data)}
    plain = {"LLMEmb-unaligned": ("--model=LLMEmb", "--rat_alpha=0", *data)}
    cells = {f"{name}-{cell}": words for cell, words in {**classic, **own, **untuned, **plain}.items()}
    lines = (
        *(Line(backbone, f"{name}-{backbone}", backbone) for backbone in backbones),
        *(Line(f"LLMEmb in {backbone}", f"{name}-LLMEmb-{backbone}", "LLMEmb") for backbone in backbones),
        Line("LLMEmb in SASRec, the untuned LLM's vectors", f"{name}-LLMEmb-untuned", "LLMEmb"),
        Line("LLMEmb in SASRec, not aligned", f"{name}-LLMEmb-unaligned", "LLMEmb"),
    )
    shown = tuple(f"{family}_{part}@10" for family in ("ndcg", "hit") for part in ("head", "tail"))
    return Grid(name, cells, lines, compared_with=("SASRec",), metrics=shown)


def systems_grid(name: str, data: tuple[str, ...]) -> Grid:
    """The systems beside the four methods, on data so small that each is tuned on all rows in a minute or two.

    Args:
        name: of the grid.
        data: arguments of every command.
    """
    small = ("--config_files=benchmarks/games-tiny.yaml",)  # of the offline LLM, where a model has one
    alone, with_llm = ("Pop", "SASRec", "SOLID", "SAR", "LMDH"), ("BIGRec", "SemID", "TTDS", "Laser")
    cells = {model: (f"--model={model}", *data, *(small if model in with_llm else ())) for model in (*alone, *with_llm)}
    lines = tuple(Line(model, f"{name}-{model}", model) for model in (*alone, *with_llm))
    return Grid(name, named(name, cells), lines, compared_with=("Pop", "SASRec"))


GAMES = ("--dataset=amazon-games-tiny", "--data_path=saved/data")
CONTRADICTING = (*planted("planted-ilora"), *NEWEST)
GRIDS = (
    Grid(
        name="ml-100k",
        cells={
            "ml-100k-pop": ("--model=Pop", "--dataset=ml-100k"),
            "ml-100k-sasrec": ("--model=SASRec", "--dataset=ml-100k", "--train_sample_size=8192"),
            "ml-100k-untuned": ("--model=BIGRec", "--dataset=ml-100k", "--epochs=0"),
            "ml-100k-bigrec": ("--model=BIGRec", "--dataset=ml-100k"),
        },
        lines=(
            Line("Pop, all interactions", "ml-100k-pop", "Pop"),
            Line("SASRec, all rows", "ml-100k-sasrec", "SASRec"),
            Line("SASRec, 8,192 rows", "ml-100k-sasrec", "SASRec (8192 rows)"),
            Line("BIGRec, untuned", "ml-100k-untuned", "BIGRec"),
            Line("BIGRec", "ml-100k-bigrec", "BIGRec"),
        ),
    ),
    all_rows_grid(10),
    all_rows_grid(20),
    soft_grid("planted-soft", planted("planted-soft"), SMALL, epochs=3, world=PlantedSettings()),
    soft_grid("ml-100k-soft", MOVIES, FEW_MOVIES, epochs=2, seeds=SEEDS[:1], classics="ml-100k"),
    Grid(
        name="planted-ilora",
        cells=named(
            "planted-ilora",
            {
                cell: (*words, *CONTRADICTING, *SMALL, "--epochs=6", "--eval_step=2")
                for cell, words in {
                    "lora": ("--model=LLaRA",),
                    "lora-17": ("--model=LLaRA", "--lora_r=17"),
                    "ilora": ("--model=iLoRA",),
                    "others": ("--model=iLoRA", "--ilora_permuted=True"),
                }.items()
            },
            classics_on=CONTRADICTING,
        ),
        lines=(
            *classic_lines("planted-ilora"),
            Line("LoRA", "planted-ilora-lora", "LLaRA"),
            Line("LoRA of rank 17: more weights than iLoRA", "planted-ilora-lora-17", "LLaRA"),
            Line("iLoRA", "planted-ilora-ilora", "iLoRA"),
            Line("iLoRA, gates of other rows", "planted-ilora-others", "iLoRA"),
        ),
        compared_with=("LoRA", "iLoRA"),
        world=PlantedSettings(n_groups=4, group_visible="item"),
        floor="Pop",
    ),
    Grid(
        name="ml-100k-llara",
        cells=named(
            "ml-100k",
            {
                cell: (*words, *MOVIES, *SMALL_MOVIES, "--epochs=2")
                for cell, words in {
                    "llara": ("--model=LLaRA",),
                    "ilora": ("--model=iLoRA",),
                    "constrained": ("--model=BIGRec", "--grounding=constrained", "--num_beams=20"),
                    # A second per row: no epoch is chosen, the last one stands.
                    "likelihood": (
                        "--model=BIGRec",
                        "--grounding=likelihood",
                        "--eval_step=0",
                        "--valid_sample_size=20",
                    ),
                }.items()
            },
        ),
        lines=(
            *classic_lines("ml-100k"),
            Line("BIGRec, embedding", "ml-100k-soft-fine-tuned", "BIGRec"),
            Line("BIGRec, constrained", "ml-100k-constrained", "BIGRec"),
            Line("BIGRec, likelihood", "ml-100k-likelihood", "BIGRec"),
            Line("LLaRA", "ml-100k-llara", "LLaRA"),
            Line("iLoRA", "ml-100k-ilora", "iLoRA"),
        ),
        compared_with=("LLaRA", "BIGRec, embedding"),
    ),
    Grid(
        name="ml-100k-candidates",
        cells={
            "ml-100k-candidates": (
                "--model=SASRec,LLaRA,iLoRA",
                *MOVIES,
                *SMALL_MOVIES,
                "--LLaRA.epochs=2",
                "--iLoRA.epochs=2",
                "--SASRec.stopping_step=10",  # of RecBole's: its 0 stops at the first validation without a gain
                "--candidates=20",
                "--sample_for=all",
            ),
        },
        lines=tuple(Line(name, "ml-100k-candidates", name) for name in ("SASRec", "LLaRA", "iLoRA")),
        seeds=SEEDS[:1],
        protocol="answers",
    ),
    coreset_grid(
        "planted-coreset",
        (*planted("planted-coreset"), *NEWEST),
        SMALL,
        epochs=5,
        selectors=("random", "longer", "el2n", "ccs", "dealrec", "oracle"),
        world=PlantedSettings(mislabelled=0.2, redundant=0.2),
        floor="Pop",
    ),
    coreset_grid(
        "planted-shift",
        (*planted("planted-shift"), *NEWEST),
        SMALL,
        epochs=5,
        selectors=("random", "dealrec", "goracs"),
        few={0.1: FEW[0.1]},
        world=PlantedSettings(n_groups=4, group_visible="item", shift=0.5),
        floor="Pop",
    ),
    coreset_grid(
        "ml-100k-coreset",
        MOVIES,
        (*SMALL_MOVIES, "--train_sample_size=4096"),
        epochs=2,
        selectors=("random", "dealrec", "goracs"),
        few={0.02: ("--epochs=20", "--eval_step=10")},
        classics="ml-100k",
    ),
    vectors_grid("ml-100k-llmemb", MOVIES),
    vectors_grid("games-tiny-llmemb", GAMES),
    systems_grid("games-tiny-systems", GAMES),
    real_llm_grid("ml-100k-smollm2", (*MOVIES, "--config_files=benchmarks/smollm2.yaml"), (*MOVIES, *FEW_USERS)),
    click_grid("ml-100k-click", (*MOVIES, "--train_sample_size=4096", "--valid_sample_size=300")),
)
