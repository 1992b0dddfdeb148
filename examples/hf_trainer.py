"""The same with transformers' Trainer: it takes the loader as it is, and its checkpoints hold the loader's state.

python examples/hf_trainer.py OUT MODEL_DIRECTORY CHECKPOINT_DIRECTORY STEPS
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from maskpipe.data import Loader

ACCUMULATION = 2


class PackedTrainer(Trainer):
    """A Trainer whose batches come from a Loader, unwrapped: a DataLoader around it would collate batches again, and
    Accelerate's would cut them up among ranks that have their own already."""

    def __init__(self, *args: Any, loader: Loader, **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=loader, **kwargs)
        self.loader = loader
        self.add_callback(_SaveLoader(loader))

    def get_train_dataloader(self) -> Any:
        return self.loader

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint is not None:
            self.loader.load_state_dict(json.loads((Path(resume_from_checkpoint) / "loader.json").read_text()))
        return super().train(resume_from_checkpoint, **kwargs)


class _SaveLoader(TrainerCallback):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (directory / "loader.json").write_text(json.dumps(self.loader.state_dict()))


def main(out: str, model_directory: str, checkpoint: str, steps: int) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    last = get_last_checkpoint(checkpoint) if Path(checkpoint).is_dir() else None
    done = int(Path(last).name.removeprefix("checkpoint-")) if last else 0
    arguments = TrainingArguments(
        output_dir=checkpoint,
        max_steps=done + steps,
        save_steps=steps,
        logging_steps=1,
        gradient_accumulation_steps=ACCUMULATION,
        ignore_data_skip=True,  # the loader goes on by its own state
        optim="sgd",
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to="none",
        disable_tqdm=True,
    )
    loader = Loader(out, global_batch_size=4, batch_size=4 // (arguments.world_size * ACCUMULATION), yields="hf")
    trainer = PackedTrainer(model, arguments, loader=loader)
    trainer.train(resume_from_checkpoint=last)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry and entry["step"] > done]


if __name__ == "__main__":
    print("\n".join(map(str, main(*sys.argv[1:4], int(sys.argv[4])))))
