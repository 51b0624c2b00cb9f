# %% [markdown]
# # Serve recommendations over HTTP
#
#     python examples/serve_fastapi.py saved/<run> --port=8000
#     curl localhost:8000/recommend -H "Content-Type: application/json" -d '{"history": ["Toy Story (1995)"], "k": 5}'
#
# For a LoRA run with `grounding: embedding`, this needs only transformers, peft and the run's files: the prompt in
# `prompt.json`, the adapter, the titles of the items. `PlainModel` is all of it, on one screen. Any other run is served
# by the package itself. The server needs FastAPI: `pip install 'recbole-llm[serve]'`.

# %%
import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

# %% [markdown]
# The catalogue is the data set's `.item` file. A history may name items by id or by title.


# %%
def on_one_line(text: str) -> str:
    """A text without line breaks, tabs and outer blanks, as the run read it."""
    return re.sub(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+", " ", text).strip()


def read_titles(config: dict[str, Any]) -> dict[str, str]:
    """Item id to title, of the items that have one."""
    separator = config["field_separator"].encode().decode("unicode_escape")
    text = (Path(config["data_path"]) / f"{config['dataset']}.item").read_text(
        encoding=config.get("encoding") or "utf-8"
    )
    head, *lines = [line.rstrip("\r").split(separator) for line in text.lstrip("\ufeff").split("\n") if line]
    names, types = zip(*(name.split(":") for name in head), strict=True)
    column = {key: names.index(config[key]) for key in ("ITEM_ID_FIELD", "title_field", "title_with") if config[key]}
    between = config.get("seq_separator") or None

    def text_of(line: list[str], key: str) -> str:
        """A text on one line; of a sequence its words, with one blank between them."""
        value = line[column[key]]
        if types[column[key]] == "token_seq":
            value = " ".join(word for word in value.split(between) if word)
        return on_one_line(value)

    titles: dict[str, str] = {}
    for line in reversed(lines):  # of several lines for an item the first counts
        title = text_of(line, "title_field")
        extra = text_of(line, "title_with") if "title_with" in column else ""
        if title:
            titles[line[column["ITEM_ID_FIELD"]]] = f"{title} ({extra})" if extra else title
        else:
            titles.pop(line[column["ITEM_ID_FIELD"]], None)
    return titles


class UnknownItem(ValueError):
    """An item of a history that the catalogue does not have."""


# %% [markdown]
# The tuned LLM answers with a title in quotes; the untuned one embeds it, and the nearest titles are the answer.


# %%
class PlainModel:
    """A run of BIGRec or SOFT with LoRA, by transformers and peft."""

    def __init__(self, folder: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging as transformers_logging

        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()

        self.config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        self.prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        base = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_device = "bfloat16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
        dtype = {"auto": on_device, "saved": "auto"}.get(self.config["llm_dtype"], self.config["llm_dtype"])
        llm = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        # The LLM may come with defaults of its own, such as a repetition penalty, which the run did not follow.
        options = {**self.prompt["generation"], "eos_token_id": self.prompt["eos_token_id"], "do_sample": False}
        llm.generation_config = GenerationConfig(**options)
        self.model = PeftModel.from_pretrained(llm, folder / "adapter").eval().to(self.device)
        titles = read_titles(self.config)
        numbered = json.loads((folder / "ids.json").read_text(encoding="utf-8"))["ids"][self.config["ITEM_ID_FIELD"]]
        self.ids = sorted(titles, key={item: row for row, item in enumerate(numbered)}.__getitem__)
        self.titles = [titles[item] for item in self.ids]
        self.row_of = {title: row for row, title in reversed([*enumerate(self.titles)])}  # of equal titles the first
        self.row_of_id = {item: row for row, item in enumerate(self.ids)}
        self.vectors = self.embed(self.titles)

    def recommend(self, history: list[str], k: int, exclude_seen: bool) -> dict[str, Any]:
        """The best items after a history of ids or titles, and what the LLM said."""
        rows = self._rows(history)
        answer = self.answer([self.titles[row] for row in rows])
        named = self.row_of.get(answer)
        vector = self.vectors[named] if named is not None else self.embed([answer])[0]
        scores = -(self.vectors.double() - vector.double()).square().sum(dim=1).sqrt()
        order = scores.argsort(descending=True, stable=True).tolist()
        seen = {self.titles[row] for row in rows if exclude_seen}
        best = [row for row in order if self.titles[row] not in seen][:k]
        items = [{"item_id": self.ids[row], "title": self.titles[row], "score": float(scores[row])} for row in best]
        return {"answer": answer, "items": items}

    def _rows(self, history: list[str]) -> list[int]:
        """Rows of the catalogue of a history of ids, of titles, or of both where each item is clear."""
        found = [self._found(item) for item in history]
        by_id, by_title = zip(*found, strict=True)
        for whole, other in ((by_id, by_title), (by_title, by_id)):
            if None not in whole:
                if None not in other and whole != other:
                    raise UnknownItem("the history reads as item ids and as titles of other items; name one otherwise")
                return list(whole)
        for item, (own, titled) in zip(history, found, strict=True):
            if own is not None and titled is not None and own != titled:
                raise UnknownItem(f"'{item}' is the id of one item and the title of another; name it the other way")
        return [titled if own is None else own for own, titled in found]

    def _found(self, item: str) -> tuple[int | None, int | None]:
        by_id, by_title = self.row_of_id.get(item), self.row_of.get(item)
        if by_id is None and by_title is None:
            raise UnknownItem(f"the catalogue has no item or title '{item}'")
        return by_id, by_title

    @torch.no_grad()
    def answer(self, titles: list[str]) -> str:
        """The title that the tuned LLM names after these, without its quotes."""
        shown = titles[-self.prompt["max_history"] :]
        while len(ids := self._tokens(shown)) > self.prompt["max_prompt_tokens"] and len(shown) > 1:
            shown = shown[1:]  # the oldest titles are dropped first
        asked = torch.tensor([ids], device=self.device)
        found = self.model.generate(asked, attention_mask=torch.ones_like(asked))[0, len(ids) :]
        text = self.tokenizer.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.config["first_line"]:
            text = text.strip().partition("\n")[0]
        return on_one_line(text).removeprefix('"').removesuffix('"').strip()

    def _tokens(self, titles: list[str]) -> list[int]:
        before, after = self.prompt["texts"]
        listed = self.prompt["separator"].join(self.prompt["title"].format(title=title) for title in titles)
        starts = self.prompt["starts_with"]
        start = [] if starts is None or self.prompt["style"] == "chat" else [starts]
        return (
            start
            + self.tokenizer(before + (listed or self.prompt["empty"]) + after, add_special_tokens=False).input_ids
        )

    @torch.no_grad()
    def embed(self, texts: list[str], batch: int = 64) -> torch.Tensor:
        """The untuned LLM's last hidden state at each text's last token, float32 [texts, d]."""
        decoder, vectors = self.model.get_base_model().get_decoder(), []
        with self.model.disable_adapter():
            for first in range(0, len(texts), batch):
                own = [self.tokenizer(text).input_ids for text in texts[first : first + batch]]
                own = [ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids for ids in own]
                own = [ids or [self.prompt["eos_token_id"]] for ids in own]
                width = max(map(len, own))
                ids = torch.tensor([row + [0] * (width - len(row)) for row in own], device=self.device)
                lengths = torch.tensor([len(row) for row in own], device=self.device)
                mask = (torch.arange(width, device=self.device) < lengths[:, None]).long()
                states = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                vectors.append(states[torch.arange(len(own)), lengths - 1].float())
        return torch.cat(vectors)


# %% [markdown]
# Everything else needs the package: full fine-tuning, gates, item vectors in prompts, other groundings, re-weighting,
# and RecBole's sequential models.


# %%
class WholeRun:
    """Any run that can recommend after a history."""

    def __init__(self, folder: Path) -> None:
        from recbole_llm import load_run

        self.run = load_run(folder)

    def recommend(self, history: list[str], k: int, exclude_seen: bool) -> dict[str, Any]:
        """The best items after a history of ids or titles."""
        try:
            found = self.run.recommend([history], k=k, exclude_seen=exclude_seen)
        except ValueError as error:
            raise UnknownItem(str(error)) from error
        return {"answer": None, "items": found[["item_id", "title", "score"]].to_dict("records")}


def is_plain(folder: Path) -> bool:
    """Whether text is all that the run's model needs."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not (folder / "adapter" / "adapter_config.json").is_file() or not (folder / "prompt.json").is_file():
        return False
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    by_distance = config["grounding"] == "embedding" and config["reweight"] == "none"
    whole = config["quant"] in (None, "none") and config["adapter"] == "lora" and not config["candidates"]
    return by_distance and whole and prompt["slots"] == ["history"] and bool(prompt.get("is_plain_text"))


# %%
def create_app(folder: str | Path) -> Any:
    """The application: ``POST /recommend`` and ``GET /health``."""
    from fastapi import FastAPI, HTTPException
    from pydantic import BaseModel, ConfigDict, Field

    class Question(BaseModel):
        model_config = ConfigDict(extra="forbid")  # a misspelt key is no default
        history: list[str] = Field(min_length=1, description="item ids or titles, the oldest first")
        k: int = Field(10, ge=1, le=1000)
        exclude_seen: bool = True

    folder = Path(folder)
    model = PlainModel(folder) if is_plain(folder) else WholeRun(folder)
    app = FastAPI(title=f"recommendations of {folder.resolve().name}")

    @app.post("/recommend")
    def recommend(question: Question) -> dict[str, Any]:
        try:
            return model.recommend(question.history, question.k, question.exclude_seen)
        except UnknownItem as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"run": folder.resolve().name, "engine": type(model).__name__}

    return app


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the recommendations of a finished run over HTTP.")
    parser.add_argument("run", nargs="?", type=Path, help="folder of the run: saved/<model>-<data set>-<time>")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    words = parser.parse_args()
    if words.run is None:
        parser.print_help()
    elif not (words.run / "config.yaml").is_file():
        parser.error(f"{words.run} is not a run folder: it has no config.yaml; give saved/<model>-<data set>-<time>")
    else:
        import uvicorn

        uvicorn.run(create_app(words.run), host=words.host, port=words.port)
