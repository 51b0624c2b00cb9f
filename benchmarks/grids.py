"""The tables of accuracy: on which data, by which commands, which lines, compared with what.

``benchmarks/results.py`` runs and writes them. A new table is a :class:`Grid` in :data:`GRIDS`, and two marks in the
page.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (2020, 2021, 2022)
MOVIES = ("--dataset=ml-100k",)
SMALL_MOVIES = ("--config_files=benchmarks/ml-100k.yaml",)
# What benchmarks/smollm2.yaml says of rows, users and histories
FEW_USERS = (
    "--MAX_ITEM_LIST_LENGTH=10",
    "--train_sample_size=512",
    "--valid_sample_size=100",
    "--test_sample_size=500",
)
# So that each of nine systems is tuned three times within a night on two cores
EQUAL_ROWS = ("--train_sample_size=2048", "--valid_sample_size=300", "--sample_for=all")
TITLES = ("--grounding=constrained", "--num_beams=20")
NEW_ITEMS = ("--repeatable=False",)  # of models that rank all others without the items that a user had
POP_NEW = "Pop, items of the user left out"
THREE_EPOCHS = ("--epochs=3", "--lr_scheduler=constant")


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
        cells: cell name to the arguments of its command, without the seed.
        lines: the table's lines.
        seeds: of every cell.
        compared_with: titles of the lines that all others are compared with; by default every line.
        protocol: how rows are evaluated, a key of :data:`recbole_llm.evaluation.PROTOCOLS`.
        metrics: shown beside those of the protocol.
    """

    name: str
    cells: dict[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    seeds: tuple[int, ...] = SEEDS
    compared_with: tuple[str, ...] = ()
    protocol: str = "ranks"
    metrics: tuple[str, ...] = ()


Cells = dict[str, tuple[str, ...]]


def named(name: str, cells: Cells) -> Cells:
    """Cells by the names that their files have."""
    return {f"{name}-{cell}": words for cell, words in cells.items()}


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


def real_llm_grid(name: str, of: tuple[str, ...]) -> Grid:
    """The four methods with an LLM that was trained on real text, on few rows: 512 drawn by seed, or chosen of 2,048.

    Args:
        name: of the grid.
        of: arguments that say which data.
    """
    data = (*of, "--config_files=benchmarks/smollm2.yaml")
    cells = {
        "classics": ("--model=Pop,SASRec", *of, *FEW_USERS),
        "pop-new": ("--model=Pop", *of, *FEW_USERS, *NEW_ITEMS),
        "bigrec": ("--model=BIGRec", *data),
        "popularity": ("--model=BIGRec", *data, "--reweight=popularity"),
        "constrained": ("--model=BIGRec", *data, *TITLES),
        "bear": ("--model=BEAR", *data, *TITLES),
        "sdpo": ("--model=SDPO", *data, *TITLES),
        "untuned": ("--model=BIGRec", *data, "--epochs=0"),
        "soft": ("--model=SOFT", *data, "--alpha=10"),
        "ilora": ("--model=iLoRA", *data),
        "goracs": ("--model=BIGRec", *data, "--train_sample_size=2048", "--coreset=goracs", "--coreset_size=512"),
        "dealrec": ("--model=BIGRec", *data, "--train_sample_size=2048", "--coreset=dealrec", "--coreset_size=512"),
    }
    lines = (
        Line("Pop", f"{name}-classics", "Pop"),
        Line(POP_NEW, f"{name}-pop-new", "Pop"),
        Line("SASRec, all rows", f"{name}-classics", "SASRec"),
        Line("SASRec, 512 rows", f"{name}-classics", "SASRec (512 rows)"),
        Line("BIGRec, untuned", f"{name}-untuned", "BIGRec"),
        Line("BIGRec on random rows", f"{name}-bigrec", "BIGRec"),
        Line("BIGRec, popularity-weighted", f"{name}-popularity", "BIGRec"),
        Line("BIGRec, constrained", f"{name}-constrained", "BIGRec"),
        Line("BEAR, constrained", f"{name}-bear", "BEAR"),
        Line("S-DPO, constrained", f"{name}-sdpo", "SDPO"),
        Line("SOFT", f"{name}-soft", "SOFT"),
        Line("iLoRA", f"{name}-ilora", "iLoRA"),
        Line("GORACS", f"{name}-goracs", "BIGRec"),
        Line("DEALRec", f"{name}-dealrec", "BIGRec"),
    )
    plain = ("BIGRec on random rows", "BIGRec, constrained")  # tuned alike, ranked otherwise
    return Grid(name, named(name, cells), lines, seeds=SEEDS[:2], compared_with=("Pop", *plain))


ALL_ROWS = ("--config_files=properties/demo.yaml", "--topk=[1,5,10,20]")  # the regime of ``make demo``


def all_rows_grid(history: int, seeds: tuple[int, ...] = SEEDS, more: bool = False) -> Grid:
    """The tiny LLM tuned on all rows of MovieLens-100K beside Pop and SASRec.

    Args:
        history: items of history that every model of the table is shown.
        seeds: of every cell.
        more: with the other ways to rank what one tuning has learned, and the parts of SOFT.
    """
    name, data = f"ml-100k-{history}", (*MOVIES, f"--MAX_ITEM_LIST_LENGTH={history}")
    bigrec, soft = (("--model=" + model, *data, *ALL_ROWS) for model in ("BIGRec", "SOFT"))
    nearest = (*bigrec, "--grounding=embedding", "--num_beams=4")
    searched = (*soft, *TITLES, "--curriculum_epochs=3", "--lr_scheduler=constant", "--alpha=[1,10,100]")
    shown: dict[str, tuple[str, str, tuple[str, ...]]] = {
        "pop": ("Pop, all interactions", "Pop", ("--model=Pop", *data)),
        "pop-new": (POP_NEW, "Pop", ("--model=Pop", *data, *NEW_ITEMS)),
        "sasrec": ("SASRec, all rows", "SASRec", ("--model=SASRec", *data)),
        "constrained": ("BIGRec, constrained", "BIGRec", (*bigrec, *TITLES)),
        "soft": ("SOFT, constrained", "SOFT", (*soft, *TITLES)),
    }
    if more:
        shown |= {
            "embedding": ("BIGRec, embedding", "BIGRec", nearest),
            "popularity": ("BIGRec, embedding and popularity", "BIGRec", (*nearest, "--reweight=popularity")),
            "likelihood": ("BIGRec, likelihood", "BIGRec", (*bigrec, "--grounding=likelihood")),
            "twice": ("BIGRec, constrained, two epochs", "BIGRec", (*bigrec, *TITLES, "--epochs=2")),
            "sd-only": ("SOFT's distilled answers only", "SOFT", (*soft, *TITLES, "--curriculum=sd_only")),
            "thrice": ("BIGRec, constrained, three epochs at one rate", "BIGRec", (*bigrec, *TITLES, *THREE_EPOCHS)),
            "soft-alpha": ("SOFT, constrained, three epochs at one rate, α by validation", "SOFT", searched),
        }
    cells = {cell: words for cell, (_, _, words) in shown.items()}
    lines = tuple(Line(title, f"{name}-{cell}", model) for cell, (title, model, _) in shown.items())
    compared = ("Pop, all interactions", "BIGRec, constrained")
    return Grid(name, named(name, cells), lines, seeds=seeds, compared_with=compared)


def few_rows_grid(name: str) -> Grid:
    """The same LLM on 8,192 rows seen once, or on 1,024 of these, chosen or at random, seen eight times.

    A gate's weights differ from row to row, so that nothing of a pass is shared: all models compute rows apart.
    """
    data = (*MOVIES, "--MAX_ITEM_LIST_LENGTH=10", *ALL_ROWS, "--train_unit=row", "--train_sample_size=8192", *TITLES)
    chosen = ("--model=BIGRec", *data, "--epochs=8", "--coreset_size=1024")
    pop = ("--model=Pop", *MOVIES, "--MAX_ITEM_LIST_LENGTH=10")
    shown: dict[str, tuple[str, tuple[str, ...]]] = {
        "pop": ("Pop", pop),
        "pop-new": (POP_NEW, (*pop, *NEW_ITEMS)),
        "bigrec": ("BIGRec, 8,192 rows", ("--model=BIGRec", *data)),
        "llara": ("LLaRA, 8,192 rows", ("--model=LLaRA", *data, "--adapter=lora")),
        "ilora": ("iLoRA, 8,192 rows", ("--model=iLoRA", *data, "--adapter=ilora")),
    }
    for selector, title in (("random", "random"), ("dealrec", "DEALRec's"), ("goracs", "GORACS'")):
        shown[selector] = (f"BIGRec, {title} 1,024 rows", (*chosen, f"--coreset={selector}"))
    cells = {cell: words for cell, (_, words) in shown.items()}
    lines = tuple(
        Line(title, f"{name}-{cell}", words[0].removeprefix("--model=")) for cell, (title, words) in shown.items()
    )
    compared = ("BIGRec, 8,192 rows", "BIGRec, random 1,024 rows", "LLaRA, 8,192 rows")
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
    """The other systems beside Pop, SASRec and BIGRec, on rows so few that most are tuned on them in minutes.

    Args:
        name: of the grid.
        data: arguments of every command.
    """
    small = ("--config_files=benchmarks/games-tiny.yaml",)  # of the offline LLM, where a model has one
    alone, with_llm = ("Pop", "SASRec", "SOLID", "SAR", "LMDH"), ("BIGRec", "SemID", "TTDS", "Laser")
    cells = {model: (f"--model={model}", *data, *(small if model in with_llm else ())) for model in (*alone, *with_llm)}
    cells["Pop-new"] = (*cells["Pop"], *NEW_ITEMS)
    lines = [Line(model, f"{name}-{model}", model) for model in (*alone, *with_llm)]
    lines.insert(1, Line(POP_NEW, f"{name}-Pop-new", "Pop"))
    return Grid(name, named(name, cells), tuple(lines), compared_with=("Pop", "SASRec"))


GAMES = ("--dataset=amazon-games-tiny", "--data_path=saved/data")
ARTISTS = ("--dataset=lastfm-hetrec", "--data_path=saved/data")
GRIDS = (
    all_rows_grid(10, more=True),
    all_rows_grid(20, seeds=SEEDS[:1]),
    few_rows_grid("ml-100k-few"),
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
    vectors_grid("ml-100k-llmemb", (*MOVIES, *EQUAL_ROWS)),
    vectors_grid("games-tiny-llmemb", GAMES),
    systems_grid("ml-100k-systems", (*MOVIES, *EQUAL_ROWS)),
    systems_grid("games-tiny-systems", GAMES),
    real_llm_grid("ml-100k-smollm2", MOVIES),
    real_llm_grid("lastfm-smollm2", ARTISTS),
    click_grid("ml-100k-click", (*MOVIES, "--train_sample_size=4096", "--valid_sample_size=300")),
)
