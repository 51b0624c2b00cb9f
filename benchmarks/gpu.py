"""A language model of real size on a GPU: tokens per second and memory of tuning and generation, beside the libraries'.

    python -m benchmarks.gpu [--size llama-3.2-3b] [--steps 8] [--repeats 3] [--json out.json]

The weights are random, made from the model's config: speed and memory do not depend on what they say, and nothing is
downloaded. Four procedures take turns in one process, on the same rows:

tuning       ours: passes of as many tokens as the device has memory for, logits at answers only, dropout by token;
             TRL's SFTTrainer on prompts and completions, LoRA of the same sizes (left out, in a line, without ``trl``)
generation   ours: :func:`recbole_llm.llm.beam_search`; ``generate`` of transformers on the same padded prompts, as many
             at a time as ours takes; EOS is forbidden, so that both make the same number of tokens

Tokens are those of prompts and answers, padding not counted. A time is the median over the turns; memory is the most
that PyTorch held on the GPU, on a CPU the most the process has held so far. ``--size tiny`` tries the script on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.reports import write_report
from recbole_llm.adapter import LoraAdapter
from recbole_llm.adapter.dropout import draw_by_token
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.budget import TokenBudget, run_batches
from recbole_llm.llm.generation import beam_search
from recbole_llm.llm.precision import resolve_dtype, use_tensor_cores
from recbole_llm.report.environment import peak_mib, versions

EOS, PAD, ORDINARY = 2, 0, 3  # special tokens, and the first ordinary one
TARGETS = ("q_proj", "v_proj")
LORA: dict[str, Any] = {"r": 8, "alpha": 16, "dropout": 0.05, "target_modules": TARGETS}
SIZES: dict[str, dict[str, Any]] = {
    "llama-3.2-3b": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
ROWS = {"llama-3.2-3b": {"rows": 128, "prompt": 256, "answer": 12}, "tiny": {"rows": 8, "prompt": 24, "answer": 6}}
NO_TRL = "trl is not installed: SFTTrainer is left out; `pip install trl` brings it"
Measured = dict[str, Any]


def make_model(size: str, device: torch.device) -> LlamaForCausalLM:
    """A random Llama of one of :data:`SIZES`, in the number type that ``llm_dtype: auto`` has on the device."""
    config = LlamaConfig(**SIZES[size], bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD)
    torch.manual_seed(0)
    use_tensor_cores(device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, resolve_dtype("auto", device)))
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def make_rows(size: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts, of lengths around the size's, and of their answers."""
    own, generator = ROWS[size], torch.Generator().manual_seed(1)

    def draw(n: int) -> list[int]:
        found: list[int] = torch.randint(ORDINARY, SIZES[size]["vocab_size"], (n,), generator=generator).tolist()
        return found

    shares = [0.5 + (row % 8) / 7 for row in range(own["rows"])]
    prompts = [draw(max(2, round(share * own["prompt"]))) for share in shares]
    return prompts, [[*draw(own["answer"] - 1), EOS] for _ in prompts]


class Bench:
    """Model, rows and the procedures that are compared.

    Args:
        size: one of :data:`SIZES`.
        device: where the model is.
        steps: of an optimiser, in a turn of tuning; each over all rows.
        beams: of generation.
    """

    def __init__(self, size: str, device: torch.device, steps: int, beams: int) -> None:
        self.size, self.device, self.steps, self.beams = size, device, steps, beams
        self.prompts, self.answers = make_rows(size)
        self.n_tokens = sum(map(len, self.prompts)) + sum(map(len, self.answers))
        self.n_new = ROWS[size]["answer"]
        self.budgets: dict[str, int] = {}
        self.own_seconds = 0.0

    def tuning(self) -> tuple[Callable[[], object], int]:
        """Steps of ours, and the tokens of a turn."""
        model = LoraAdapter(**LORA).attach(make_model(self.size, self.device))
        draws = draw_by_token(model)
        scorer = BranchScorer(model.train(), PAD, draws)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
        budget = TokenBudget.of_setting("micro_batch_tokens", "auto", model, training=True)
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

        def step(number: int) -> None:
            def run(rows: list[int]) -> None:
                draws.use_rows(rows)
                own = [self.prompts[row] for row in rows], [[self.answers[row]] for row in rows]
                loss = -scorer.log_probs(*own).values.sum() / sum(map(len, self.answers))
                loss.backward()

            optimizer.zero_grad(set_to_none=True)
            with draws.step(number):
                run_batches(lengths, budget, run)
            optimizer.step()
            self.budgets["tuning"] = budget.tokens

        return lambda: [step(number) for number in range(self.steps)], self.steps * self.n_tokens

    def sft_trainer(self) -> tuple[Callable[[], object], int]:
        """The same by TRL, whose batches are rows; as many as ours has tokens for."""
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        names = word_names(SIZES[self.size]["vocab_size"])

        def words(tokens: Sequence[int]) -> str:
            return " ".join(names[token] for token in tokens)

        rows = [
            {"prompt": words(prompt), "completion": " " + words(answer[:-1])}  # TRL adds EOS
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
        ]
        longest = max(map(len, self.prompts)) + self.n_new
        at_once = max(1, min(len(rows), self.budgets.get("tuning", longest) // longest))
        while len(rows) % at_once:  # gradient accumulation takes whole batches
            at_once -= 1
        lora = LoraConfig(
            r=LORA["r"],
            lora_alpha=LORA["alpha"],
            lora_dropout=LORA["dropout"],
            target_modules=list(TARGETS),
        )

        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                config = SFTConfig(
                    output_dir=folder,
                    per_device_train_batch_size=at_once,
                    gradient_accumulation_steps=len(rows) // at_once,
                    max_steps=self.steps,
                    max_length=None,
                    learning_rate=1e-4,
                    bf16=self.device.type == "cuda",
                    use_cpu=self.device.type == "cpu",
                    gradient_checkpointing=False,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                )
                trainer = SFTTrainer(
                    make_model(self.size, self.device),
                    args=config,
                    train_dataset=Dataset.from_list(rows),
                    processing_class=word_tokenizer(names),
                    peft_config=lora,
                )
                started = time.perf_counter()
                trainer.train()
                self.own_seconds = time.perf_counter() - started  # without the model and its tokenizer

        return run, self.steps * self.n_tokens

    def generation(self) -> tuple[Callable[[], object], int]:
        """Beams of ours, and the new tokens of a turn's answers."""
        model = make_model(self.size, self.device)
        budget = TokenBudget.of_setting("generation_batch_tokens", "auto", model)

        def run() -> list[list[int]]:
            found = beam_search(
                model,
                self.prompts,
                eos_token_id=EOS,
                pad_token_id=PAD,
                num_beams=self.beams,
                max_new_tokens=self.n_new,
                forbidden_token_ids=[EOS],
                max_batch_tokens=budget,
            )
            self.budgets["generation"] = budget.tokens
            return [answer.token_ids for answer in found]

        return run, self.n_new * len(self.prompts)

    def generate(self) -> tuple[Callable[[], object], int]:
        """The same by transformers."""
        model = make_model(self.size, self.device)
        longest = self.beams * (max(map(len, self.prompts)) + self.n_new)
        at_once = max(1, self.budgets.get("generation", longest) // longest)

        def run() -> list[list[int]]:
            found: list[list[int]] = []
            for start in range(0, len(self.prompts), at_once):
                own = self.prompts[start : start + at_once]
                width = max(map(len, own))
                ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in own], device=self.device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in own], device=self.device)
                output = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    num_beams=self.beams,
                    do_sample=False,
                    min_new_tokens=self.n_new,
                    max_new_tokens=self.n_new,
                    pad_token_id=PAD,
                )
                found += output[:, width:].tolist()
            return found

        return run, self.n_new * len(self.prompts)


def word_names(count: int) -> list[str]:
    """A word for each token; no special one begins another."""
    return ["<pad>", "<s>", "</s>", *(f"t{token}" for token in range(ORDINARY, count))]


def word_tokenizer(names: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of words between blanks, each a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=names[1]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=names[EOS], pad_token=names[PAD])


def measure(bench: Bench, name: str, repeats: int) -> Measured:
    """Time and memory of one procedure; the first turn warms up."""
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    bench.own_seconds = 0.0
    run, n_tokens = getattr(bench, name)()
    seconds = []
    for _ in range(repeats + 1):
        started, bench.own_seconds = time.perf_counter(), 0.0
        run()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(bench.own_seconds or time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_mib()
    middle = statistics.median(seconds[1:] or seconds)
    return {"seconds": middle, "tokens per second": n_tokens / middle, "peak MiB": peak}


def compare(size: str, device: torch.device, steps: int = 8, repeats: int = 3, beams: int = 4) -> dict[str, Any]:
    """All procedures, with the setting.

    Args:
        size: one of :data:`SIZES`.
        device: where they run.
        steps: of an optimiser in a turn.
        repeats: turns after the first.
        beams: of generation.
    """
    bench = Bench(size, device, steps, beams)
    procedures = ["tuning", "sft_trainer", "generation", "generate"]
    notes = []
    if importlib.util.find_spec("trl") is None:
        procedures.remove("sft_trainer")
        notes.append(NO_TRL)
    found = {name: measure(bench, name, repeats) for name in procedures}
    setting: dict[str, Any] = {"size": size, **ROWS[size], "beams": beams, "steps": steps, "repeats": repeats}
    setting |= {f"{name} tokens at once": tokens for name, tokens in bench.budgets.items()}
    setting["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    setting["number type"] = resolve_dtype("auto", device)
    return {"setting": setting, "procedures": found, "notes": notes, "environment": versions()}


def table(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = ["| procedure | tokens/s | seconds | peak MiB |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {own['tokens per second']:,.0f} | {own['seconds']:.2f} | {own['peak MiB']:,.0f} |"
        for name, own in result["procedures"].items()
    ]
    setting = ", ".join(f"{name} {value}" for name, value in result["setting"].items())
    return "\n".join([setting, "", *lines, *(f"\n{note}" for note in result["notes"])])


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print a table and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="llama-3.2-3b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=8, help="of an optimiser in a turn (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns after the first (default %(default)s)")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    chosen = parser.parse_args(words)
    result = compare(chosen.size, torch.device(chosen.device), chosen.steps, chosen.repeats, chosen.beams)
    print(table(result))
    if chosen.json:
        write_report(chosen.json, result)


if __name__ == "__main__":
    main()
