"""Files for serving a tuned LLM without this package: the exact prompt, and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recbole.data.interaction import Interaction

from recbole_llm.disk import write_json
from recbole_llm.model.base import LLMRecommender
from recbole_llm.prompt.layout import NONE
from recbole_llm.prompt.settings import most_shown
from recbole_llm.property_files import dump_yaml
from recbole_llm.report import RunResult

PROMPT, CARD = "prompt.json", "README.md"
READABLE = 0o644
_GENERATION = ("num_beams", "max_new_tokens", "length_penalty")


def write_prompt(folder: Path, model: LLMRecommender, rows: Interaction) -> dict[str, Any]:
    """Write ``prompt.json``: the fixed texts around the titles, the tokens around the text, and one filled prompt.

    Args:
        folder: folder of the run.
        model: the recommender.
        rows: rows to take the example from, the first that can be shown.

    Returns:
        What the file holds.
    """
    prompts, config = model.prompts, model.config
    layout = prompts.layout
    facts: dict[str, Any] = {
        **layout.facts(),
        "title": layout.show("{title}"),
        "separator": layout.separator + layout.before_title,
        "empty": NONE,
        "starts_with": model.backbone.bos_token_id,
        "eos_token_id": prompts.eos_token_id,
        "max_prompt_tokens": prompts.max_prompt_tokens,
        "max_history": most_shown(config) or config["MAX_ITEM_LIST_LENGTH"],
        "item_slots": prompts.item_slots,
        "generation": _generation(model),
    }
    for example in model.examples(rows[: min(len(rows), 100)]):
        if prompts.has_prompt(example):
            titles = [model.catalog.titles[item] for item in prompts.shown(example).history]
            text, token_ids = prompts.text(example), prompts.prompt(example)
            known = [title for title in titles if title is not None]
            facts["example"] = {"history": known, "prompt": text, "token_ids": token_ids}
            facts["is_plain_text"] = _tokens_of_text(model, text) == token_ids
            break
    write_json(folder / PROMPT, facts)
    return facts


def _generation(model: LLMRecommender) -> dict[str, Any]:
    """Generation settings with which transformers searches as the run did, without padding or BOS."""
    forbidden = list(model.backbone.forbidden_token_ids)
    options = {name: model.config[name] for name in _GENERATION}
    return {**options, "suppress_tokens": forbidden} if forbidden else options


def _tokens_of_text(model: LLMRecommender, text: str) -> list[int]:
    """The tokens of a whole prompt, as one who has only its text would make them."""
    first = model.backbone.bos_token_id
    start = [] if first is None or model.prompts.layout.style == "chat" else [first]
    return start + [int(token) for token in model.backbone.tokenizer.encode(text, add_special_tokens=False)]


def write_card(folder: Path, model: LLMRecommender, result: RunResult, prompt: dict[str, Any]) -> None:
    """Write the card of a run's adapter, and let everybody read the adapter's files.

    Args:
        folder: folder of the run; without ``adapter/``, as an untuned LLM leaves it, nothing is written.
        model: the recommender.
        result: the run's line in a table.
        prompt: what :func:`write_prompt` gave.
    """
    adapter = folder / "adapter"
    if not adapter.is_dir():
        return
    config, base = model.config, _base_of(adapter, model)
    head = {"base_model": base, "library_name": "peft", "tags": ["sequential-recommendation", "recbole-llm"]}
    metrics = {name: value for name, value in result.test.items() if value is not None}
    lines = [
        f"---\n{dump_yaml(head)}---",
        f"# {result.model} on {result.dataset}",
        f"{base}, tuned by [recbole-llm](https://pypi.org/project/recbole-llm/): {config.effective_point()}, on "
        f"{result.train_rows:,} rows of `{result.dataset}`, seed {result.seed}. `../config.yaml` holds every setting.",
        "## Results",
        "\n".join([f"{result.n_rows:,} test rows.", *(f"- {note}" for note in (*result.notes, *result.warnings))]),
        "| metric | value |\n|---|---:|\n" + "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items()),
        "## Prompt",
        f"`../prompt.json` holds it in parts: `texts`, with the titles of `slots` ({', '.join(prompt['slots'])})"
        " between them, shown and separated as it says; the newest title is the last. One prompt, filled:",
        f"```text\n{prompt.get('example', {}).get('prompt', '')}\n```",
        "## Use",
        *_use(base, model, prompt),
    ]
    (adapter / CARD).write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    for file in adapter.iterdir():
        if file.is_file():
            file.chmod(READABLE)


def _base_of(adapter: Path, model: LLMRecommender) -> str:
    """Where peft finds the LLM that the adapter belongs to."""
    file = adapter / "adapter_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") if file.is_file() else None
    base = str(found or model.backbone.name)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def _use(base: str, model: LLMRecommender, prompt: dict[str, Any]) -> list[str]:
    """How to load and ask it, as far as that works without this package."""
    if model.config["adapter"] != "lora" or len(prompt["slots"]) > 1 or not prompt.get("is_plain_text"):
        return [
            "Its prompts or weights need more than text: load it with `recbole_llm.load_run`, and ask it by "
            "`recommend`."
        ]
    start = f"[{prompt['starts_with']}] + " if prompt["starts_with"] is not None and prompt["style"] != "chat" else ""
    options = {**prompt["generation"], "eos_token_id": prompt["eos_token_id"], "do_sample": False}
    search = ", ".join(f"{name}={value!r}" for name, value in options.items())
    first_line = '.strip().partition("\\n")[0]' if model.config["first_line"] else ""
    return [
        "With transformers and peft alone; the answer is a title as `title` shows it, which still has to be found in"
        " the catalogue (`recbole_llm.load_run(...).recommend` does so).",
        "```python\n"
        "import json, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{base}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype=torch.float32)\n'
        "# In place of the LLM's own defaults of generation, which the run did not follow.\n"
        f"model.generation_config = GenerationConfig({search})\n"
        'model = PeftModel.from_pretrained(model, "adapter").eval()\n'
        'prompt = json.load(open("prompt.json", encoding="utf-8"))\n'
        'shown = [prompt["title"].format(title=title) for title in prompt["example"]["history"]]\n'
        'text = prompt["texts"][0] + prompt["separator"].join(shown) + prompt["texts"][1]\n'
        f"ids = torch.tensor([{start}tokenizer(text, add_special_tokens=False).input_ids])\n"
        "answer = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1]:]\n"
        "text = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)\n"
        f"print(text{first_line})\n"
        "```",
    ]
