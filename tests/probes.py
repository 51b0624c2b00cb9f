"""What is known of an LLM's fast paths from one command to the next: finding out takes a tenth of a small command.

What commands say and do of paths that work is the same as without; paths that fail are found out anew, and the tests
of the probe itself (``tests/llm``) call it as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from recbole_llm.llm import probe
from recbole_llm.llm.capabilities import FastPath, Finding, at_most, recall, remember
from recbole_llm.llm.parts import text_config
from recbole_llm.model import base


def fingerprint(model: nn.Module) -> str:
    """Of all that decides what a model computes: its class and its modules', its config and its weights."""
    digest = hashlib.sha256(f"{text_config(model).to_json_string()}{model.training}".encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__} {module.training}".encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def remembered() -> Iterator[None]:
    """A context in which commands ask about the same LLM, paths and length once."""
    known: dict[tuple[str, FastPath, int], Finding] = {}
    find_out = probe.probe_llm

    def probe_llm(
        model: nn.Module, paths: Iterable[FastPath], n_tokens: int, name: str = "the LLM"
    ) -> dict[FastPath, Finding]:
        wanted = [path for path in FastPath if path in set(paths)]
        length, of = at_most(model, n_tokens), fingerprint(model)
        if any(recall(model, path, length) or (of, path, length) not in known for path in wanted):
            found = find_out(model, wanted, n_tokens, name)
            works = {path: finding for path, finding in found.items() if finding.works and finding.n_tokens}
            known.update({(of, path, length): finding for path, finding in works.items()})
            return found
        found = {path: known[of, path, length] for path in wanted}
        for path, finding in found.items():
            remember(model, path, finding)
        if found:
            probe.log.log(*probe._line(found, length, name))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "probe_llm", probe_llm)
        yield
