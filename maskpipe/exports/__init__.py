"""export: a dataset in the form of trainers that know nothing of maskpipe.

    rows.py              a row as arrays, and what no target can say: pairs, weights other than 0 and 1
    parquet.py           rows in Parquet files, a row group at a time
    hf.py                input_ids, labels, position_ids, seq_lengths
    trl.py               input_ids, labels, seq_lengths
    trl_dpo.py           pairs: prompt_ids, chosen_ids, rejected_ids
    megatron_bridge.py   input_ids, loss_mask moved by one, seq_start_id
    olmo.py              token ids, label mask and document borders in plain arrays

Whatever the target, tokens with loss are counted on the way out and must be those of the manifest; a target that would
lose some is refused, or told to by a flag and then counted. Memory: about 1,000,000 tokens.
"""

from maskpipe.exports.exporting import Exported, TargetName, export
from maskpipe.exports.rows import Options

__all__ = ["Exported", "Options", "TargetName", "export"]
