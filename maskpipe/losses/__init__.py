"""Losses that compute only what the plan of a batch says; importing this imports torch.

    plan = LossPlan.from_batch(batch)                                     which rows, which weights, which documents
    out = linear_cross_entropy(hidden, model.lm_head.weight, plan)        out.loss.backward(); out.metrics.by_role()
    policy = document_logps(hidden, model.lm_head.weight, plan).pairs     per side of each pair
    preference_loss("sigmoid", policy.chosen, policy.rejected, reference.chosen, reference.rejected, beta=0.1).loss

Every loss returns a sum and what it counts; normalise.py divides.
"""

from maskpipe.losses.cross_entropy import cross_entropy
from maskpipe.losses.document_logps import DocumentLogps, PairLogps, collect_documents, document_logps
from maskpipe.losses.linear_cross_entropy import BackendResult, linear_cross_entropy, register_backend
from maskpipe.losses.normalise import global_denominator, normalise
from maskpipe.losses.out import LossOut, Metric, TokenMetrics
from maskpipe.losses.plan import LossPlan
from maskpipe.losses.preference import (
    PreferenceOut,
    pair_loss,
    preference_loss,
    preference_losses,
    register_preference_loss,
)
from maskpipe.losses.reference_logps import RefLogps, write_reference_logps
from maskpipe.losses.unpaired import kto_kl, mismatched, unpaired_loss

__all__ = [
    "BackendResult", "DocumentLogps", "LossOut", "LossPlan", "Metric", "PairLogps", "PreferenceOut", "RefLogps",
    "TokenMetrics",
    "collect_documents", "cross_entropy", "document_logps", "global_denominator", "kto_kl", "linear_cross_entropy",
    "mismatched", "normalise", "pair_loss", "preference_loss", "preference_losses", "register_backend",
    "register_preference_loss", "unpaired_loss", "write_reference_logps",
]  # fmt: skip
