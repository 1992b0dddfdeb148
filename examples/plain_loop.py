"""Train a transformers model on a prepared dataset with a loop of your own; stop and go on exactly.

python examples/plain_loop.py OUT MODEL_DIRECTORY CHECKPOINT_DIRECTORY STEPS
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from maskpipe.data import Loader

ACCUMULATION = 2


def main(out: str, model_directory: str, checkpoint: str, steps: int) -> list[float]:
    saved = Path(checkpoint)
    begun = (saved / "loader.json").exists()
    model = AutoModelForCausalLM.from_pretrained(saved if begun else model_directory, dtype=torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = Loader(out, global_batch_size=4, batch_size=4 // ACCUMULATION)
    if begun:
        loader.load_state_dict(json.loads((saved / "loader.json").read_text()))
    losses = []
    for _ in range(steps):
        batches = [next(loader) for _ in range(ACCUMULATION)]
        # One denominator for the whole step: the mean over all its tokens with loss, not the mean of means.
        count = sum(batch.n_loss for batch in batches)
        total = 0.0
        for batch in batches:
            loss = model(**batch.as_hf(), num_items_in_batch=count).loss
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    saved.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(saved)
    (saved / "loader.json").write_text(json.dumps(loader.state_dict()))
    return losses


if __name__ == "__main__":
    print("\n".join(map(str, main(*sys.argv[1:4], int(sys.argv[4])))))
