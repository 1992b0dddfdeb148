"""The same with Accelerate: it wraps model and optimizer; the loader shards for itself and is not wrapped.

accelerate launch examples/accelerate_loop.py OUT MODEL_DIRECTORY CHECKPOINT_DIRECTORY STEPS
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from maskpipe.data import Loader


def main(out: str, model_directory: str, checkpoint: str, steps: int) -> list[float]:
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    loader = Loader(out, global_batch_size=4, device=accelerator.device, **ranks)
    accelerator.register_for_checkpointing(loader)  # save_state and load_state keep its state_dict
    if Path(checkpoint).exists():
        accelerator.load_state(checkpoint)
    losses = []
    for _ in range(steps):
        batch = next(loader)
        # Accelerate averages gradients over processes; the loss is to be a mean over the tokens of all of them.
        count = accelerator.reduce(torch.tensor(batch.n_loss, device=accelerator.device), "sum")
        loss = model(**batch.as_hf(), num_items_in_batch=count).loss
        accelerator.backward(loss * accelerator.num_processes)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), "sum")))
    accelerator.save_state(checkpoint)
    return losses


if __name__ == "__main__":
    print("\n".join(map(str, main(*sys.argv[1:4], int(sys.argv[4])))))
