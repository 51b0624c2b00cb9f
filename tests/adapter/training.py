"""What the adapter tests share: a few steps of training, logits to compare, and planted faults."""

import hashlib
import json

import torch
from safetensors.torch import load_file, save_file

from recbole_llm.adapter.base import MANIFEST

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def train(model, steps=3, lr=0.05):
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()
    return model.eval()


def damage(folder, change):
    """Replace the tensors of a folder and renew the note, so that only the tensors themselves can give it away."""
    path = next(folder.glob("*.safetensors"))
    save_file(change(load_file(path)), path, {"format": "pt"})
    note = json.loads((folder / MANIFEST).read_text())
    note["sha256"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(note))
