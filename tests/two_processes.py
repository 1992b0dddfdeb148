"""Two ranks that run examples; started by test_data_trainers.py. They are forks of one process, which has imported all.

python -m tests.two_processes OUT MODEL DIRECTORY STEPS     MASTER_ADDR and MASTER_PORT are set
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed
import transformers

from tests.test_data_trainers import example

NAMES = ("accelerate_loop", "hf_trainer")


def one_rank(rank: int, examples: dict[str, Any], out: str, model: str, directory: str, steps: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo")
    losses = {name: module.main(out, model, str(Path(directory) / name), steps) for name, module in examples.items()}
    (Path(directory) / f"losses-{rank}.json").write_text(json.dumps(losses))
    # torch 2.13 ends gloo's threads while it holds the GIL, which one of them may wait for, to let go of a tensor.
    os._exit(0)


def main(out: str, model: str, directory: str, steps: int) -> int:
    torch.set_num_threads(1)
    _ = transformers.LlamaForCausalLM  # imported when it is named
    examples = {name: example(name) for name in NAMES}
    forks = multiprocessing.get_context("fork")
    ranks = [
        forks.Process(target=one_rank, args=(rank, examples, out, model, directory, steps), daemon=True)
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode or 0) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], int(sys.argv[4])))
