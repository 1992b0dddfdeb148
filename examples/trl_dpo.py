"""TRL's DPOTrainer on pairs that `prepare --objective preference` made: its batches and loss, our ids and masks.

python examples/trl_dpo.py OUT REFERENCE MODEL_DIRECTORY CHECKPOINT_DIRECTORY STEPS

REFERENCE is what `maskpipe reference-logps OUT REFERENCE --model …` made. TRL runs every pair as two padded rows, and
takes all that follows the prompt as the answer; for packed rows, and answers with tool outputs in between, use
`document_logps` and `pair_loss` in a loop of your own (three_stages.py).
"""

import sys
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from maskpipe.data import Loader
from maskpipe.losses import LossPlan, RefLogps


class TokenizedDPOTrainer(DPOTrainer):
    """A DPOTrainer that takes prompt_ids, chosen_ids, rejected_ids and reference log-probabilities as they are."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def pairs(out: str, reference_directory: str) -> Iterator[dict[str, Any]]:
    """What DPOTrainer has after its own preparation, one pair each."""
    loader = Loader(out, global_batch_size=1, rank=0, world_size=1, shuffle=False, epochs=1)
    reference = RefLogps.open(reference_directory, loader)
    for batch in loader:
        if batch.shared:
            raise ValueError("these pairs share their prompts; prepare them with --pair-layout separate")
        plan = LossPlan.from_batch(batch)
        documents, kept = batch.as_padded(), reference.documents(batch, plan).pairs
        for number, sides in enumerate([] if plan.pairs is None else plan.pairs.tolist()):
            (prompt, chosen), (other, rejected) = (split(documents, side) for side in sides)
            if prompt != other:
                raise ValueError("both answers of a pair must follow the same prompt")
            yield {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "ref_chosen_logps": float(kept.chosen[number]),
                "ref_rejected_logps": float(kept.rejected[number]),
            }


def split(documents: dict[str, Any], number: int) -> tuple[list[int], list[int]]:
    """(prompt, answer) of a document. What follows the last token with loss changes nothing before it."""
    ids, trained = documents["input_ids"][number].tolist(), (documents["labels"][number] != -100).nonzero()[:, 0]
    first, last = int(trained[0]), int(trained[-1])
    if last - first + 1 != len(trained):
        raise ValueError("an answer has tokens without loss in it, which TRL's completion mask cannot say")
    return ids[:first], ids[first : last + 1]


def main(out: str, reference_directory: str, model_directory: str, checkpoint: str, steps: int) -> list[float]:
    trainer = TokenizedDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_directory, dtype="float32"),
        args=DPOConfig(
            output_dir=checkpoint, max_steps=steps, per_device_train_batch_size=4, beta=0.1, max_length=None,
            precompute_ref_log_probs=True, learning_rate=1e-3, lr_scheduler_type="constant", optim="sgd",
            logging_steps=1, report_to="none", disable_tqdm=True, bf16=False, gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(list(pairs(out, reference_directory))),
        processing_class=AutoTokenizer.from_pretrained(out),
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print("\n".join(map(str, main(*sys.argv[1:5], int(sys.argv[5])))))
