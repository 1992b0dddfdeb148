"""TRL's SFTTrainer on a dataset that `maskpipe export --to trl --unpack` wrote: its loop, our ids and labels.

python examples/trl_sft.py OUT MODEL_DIRECTORY CHECKPOINT_DIRECTORY STEPS

Rows are single documents here, padded by TRL's collator, right for any attention. Without `unpack` they are packed, for
SFTConfig(padding_free=True) and an attention that reads borders.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from maskpipe import exports


def main(out: str, model_directory: str, checkpoint: str, steps: int) -> list[float]:
    rows = Path(checkpoint) / "rows"
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    exports.export(out, rows, "trl", options=exports.Options(unpack=True))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_directory, dtype="float32"),
        args=SFTConfig(
            output_dir=checkpoint, max_steps=steps, per_device_train_batch_size=4, max_length=None,
            learning_rate=0.01, lr_scheduler_type="constant", optim="sgd", logging_steps=1, report_to="none",
            disable_tqdm=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
        ),
        train_dataset=load_dataset("parquet", data_files=str(rows / "*.parquet"), split="train",
                                   cache_dir=str(Path(checkpoint) / "cache")),
        processing_class=AutoTokenizer.from_pretrained(out),
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print("\n".join(map(str, main(*sys.argv[1:4], int(sys.argv[4])))))
