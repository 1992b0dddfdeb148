"""The streaming loader: datasets of shards to batches of tensors, exact after any change of the run.

for batch in maskpipe.data.Loader("out/", global_batch_size=64, epochs=1):
    loss = model(**batch.as_hf()).loss
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError("maskpipe.data needs torch: pip install 'maskpipe[torch]'") from None

from maskpipe.data.batch import Batch
from maskpipe.data.isolation import Isolation, probe
from maskpipe.data.loader import Loader
from maskpipe.remote.cache import ShardCache

__all__ = ["Batch", "Isolation", "Loader", "ShardCache", "probe"]
