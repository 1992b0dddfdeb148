"""One rank of two that runs examples; started by test_data_trainers.py.

python -m tests.two_processes OUT MODEL DIRECTORY STEPS     RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed

from tests.test_data_trainers import example


def main(out: str, model: str, directory: str, steps: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    losses = {
        name: example(name).main(out, model, str(Path(directory) / name), steps)
        for name in ("accelerate_loop", "hf_trainer")
    }
    (Path(directory) / f"losses-{os.environ['RANK']}.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
