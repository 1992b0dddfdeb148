"""TRL's own lines on the same numbers: where the formulas agree, to rounding; where they do not, it is said why.

TRL computes its losses inside trainers. The branch of DPOTrainer's method that chooses the loss is taken from its
source and run as it stands on a stand-in for the trainer; CPO's and ORPO's are methods that need a few attributes.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskpipe.losses import LossPlan, document_logps, preference_loss, unpaired_loss
from tests.losses.made import made

pytestmark = pytest.mark.filterwarnings("ignore")
dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")

LENGTHS = torch.tensor([[3, 5, 2, 7], [4, 1, 6, 2]])


def toy(seed: int = 0) -> list[Tensor]:
    """policy chosen, rejected, reference chosen, rejected: float32 [4]."""
    g = torch.Generator().manual_seed(seed)
    return [-(0.5 + torch.rand(4, generator=g)) * 4 for _ in range(4)]


def trl_dpo(loss_type: str, *, beta: float, label_smoothing: float = 0.0, f_divergence: str = "reverse_kl") -> Tensor:
    """Per-sequence losses of DPOTrainer: its statements from the log-ratios to the loss, run as they are."""
    source = textwrap.dedent(inspect.getsource(dpo_trainer.DPOTrainer._compute_loss))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    wanted: list[ast.stmt] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "chosen_logratios", "rejected_logratios", "delta_score",
        ):  # fmt: skip
            wanted.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "self.f_divergence_type == 'reverse_kl'", "loss_type == 'sigmoid'",
        ):  # fmt: skip
            wanted.append(node)
    assert len(wanted) == 5, "DPOTrainer was rewritten; look at it again"
    wanted.sort(key=lambda node: node.lineno)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = toy()
    mask = torch.arange(8) < LENGTHS.reshape(-1, 1)
    names: dict[str, Any] = {
        "F": F, "math": math, "torch": torch, "loss_type": loss_type, "device": "cpu",
        "self": SimpleNamespace(
            beta=beta, label_smoothing=label_smoothing, f_divergence_type=f_divergence,
            args=SimpleNamespace(discopop_tau=0.05),
        ),
        "chosen_logps": policy_chosen, "rejected_logps": policy_rejected,
        "ref_chosen_logps": reference_chosen, "ref_rejected_logps": reference_rejected, "completion_mask": mask,
    }  # fmt: skip
    exec(compile(ast.Module(wanted, []), "dpo_trainer", "exec"), names)
    losses: Tensor = names["per_sequence_loss"]
    return losses


def ours(name: str, **parameters: Any) -> Tensor:
    return preference_loss(name, *toy(), **parameters).losses


BOTH = {"chosen_length": LENGTHS[0], "rejected_length": LENGTHS[1]}


@pytest.mark.parametrize(
    ("trl_name", "name", "parameters", "extra"),
    [
        ("sigmoid", "sigmoid", {"beta": 0.3}, {}),
        ("hinge", "hinge", {"beta": 0.3}, {}),
        ("ipo", "ipo", {"beta": 0.3}, BOTH),
        ("sigmoid_norm", "sigmoid_norm", {"beta": 5.0}, BOTH),
        ("robust", "robust", {"beta": 0.3, "label_smoothing": 0.2}, {}),
        ("exo_pair", "exo", {"beta": 0.3, "label_smoothing": 0.01}, {}),
        ("nca_pair", "nca", {"beta": 0.3}, {}),
        ("sppo_hard", "sppo", {"beta": 0.3}, {}),
        ("apo_zero", "apo_zero", {"beta": 0.3}, {}),
        ("apo_down", "apo_down", {"beta": 0.3}, {}),
        ("discopop", "discopop", {"beta": 0.3}, {}),
        ("bco_pair", "bco", {"beta": 0.3}, {"delta": 0.0}),
    ],
)
def test_dpo_trainer_agrees(trl_name: str, name: str, parameters: dict[str, float], extra: dict[str, Any]) -> None:
    assert torch.allclose(ours(name, **parameters, **extra), trl_dpo(trl_name, **parameters), rtol=1e-5, atol=1e-6)


def test_dpo_trainer_ignores_label_smoothing_where_we_use_it() -> None:
    """TRL 1.16: `sigmoid` takes label_smoothing from the config and computes plain DPO. Ours is cDPO."""
    plain = trl_dpo("sigmoid", beta=0.3)
    assert torch.equal(trl_dpo("sigmoid", beta=0.3, label_smoothing=0.2), plain)
    smoothed = ours("sigmoid", beta=0.3, label_smoothing=0.2)
    assert torch.allclose(smoothed, 0.8 * plain + 0.2 * trl_of_swapped(), rtol=1e-5)


def trl_of_swapped() -> Tensor:
    """l(-x): DPO with chosen and rejected exchanged."""
    chosen, rejected, reference_chosen, reference_rejected = toy()
    return preference_loss("sigmoid", rejected, chosen, reference_rejected, reference_chosen, beta=0.3).losses


def test_kto_is_trl_for_the_same_reference_point_but_is_divided_by_documents_of_the_step() -> None:
    """TRL takes z as a mean of means over ranks, and the mean of each micro-batch; each document's loss is the same."""
    kto_trainer = pytest.importorskip("trl.trainer.kto_trainer")
    source = inspect.getsource(kto_trainer.KTOTrainer)
    assert "chosen_losses = 1 - F.sigmoid(self.beta * (chosen_logratios - kl))" in source
    assert "rejected_losses = 1 - F.sigmoid(self.beta * (kl - rejected_logratios))" in source
    chosen, rejected, reference_chosen, reference_rejected = toy()
    kl, beta = 0.3, 0.2
    chosen_losses = 1 - F.sigmoid(beta * ((chosen - reference_chosen) - kl))
    rejected_losses = 1 - F.sigmoid(beta * (kl - (rejected - reference_rejected)))
    out = unpaired_loss(
        "kto", torch.cat([chosen, rejected]), torch.cat([reference_chosen, reference_rejected]),
        torch.arange(8) < 4, kl=kl, beta=beta, desirable_weight=1.3, undesirable_weight=0.6,
    )  # fmt: skip
    assert torch.allclose(out.losses, torch.cat([1.3 * chosen_losses, 0.6 * rejected_losses]), rtol=1e-6)
    apo = unpaired_loss("apo_zero", chosen, reference_chosen, torch.ones(4, dtype=torch.bool), beta=beta)
    assert torch.allclose(apo.losses, 1 - F.sigmoid(beta * (chosen - reference_chosen)), rtol=1e-6)


def cpo_of(loss_type: str, chosen: Tensor, rejected: Tensor, **attributes: float) -> Tensor:
    cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    stand_in = SimpleNamespace(
        loss_type=loss_type, accelerator=SimpleNamespace(device="cpu"),
        **{"alpha": 0.0, "label_smoothing": 0.0, "beta": 0.1, "simpo_gamma": 0.5, **attributes},
    )  # fmt: skip
    losses: Tensor = cpo_trainer.CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0]
    return losses


def test_cpo_simpo_and_alphapo_agree() -> None:
    chosen, rejected = toy()[:2]
    mine = preference_loss("cpo", chosen, rejected, beta=0.2, label_smoothing=0.1, nll_weight=0.0, nll_scale=1.0)
    assert torch.allclose(mine.losses, cpo_of("sigmoid", chosen, rejected, beta=0.2, label_smoothing=0.1), rtol=1e-5)
    means = chosen / LENGTHS[0], rejected / LENGTHS[1]
    mine = preference_loss("simpo", chosen, rejected, beta=2.0, gamma=0.5, **BOTH)
    assert torch.allclose(mine.losses, cpo_of("simpo", *means, beta=2.0, simpo_gamma=0.5), rtol=1e-5)
    mine = preference_loss("alphapo", chosen, rejected, beta=2.0, gamma=0.5, alpha=0.25, **BOTH)
    assert torch.allclose(mine.losses, cpo_of("simpo", *means, beta=2.0, simpo_gamma=0.5, alpha=0.25), rtol=1e-5)


def test_alphapo_stays_a_number_where_trl_gives_nan() -> None:
    """TRL's exp(S).pow(-alpha) is inf - inf for log-probabilities below -104 in float32."""
    chosen, rejected = torch.tensor([-210.0]), torch.tensor([-220.0])
    assert torch.isnan(cpo_of("simpo", chosen, rejected, alpha=0.1)).all()
    one = torch.ones(1)
    mine = preference_loss(
        "alphapo", chosen, rejected, beta=0.1, gamma=0.5, alpha=0.1, chosen_length=one, rejected_length=one
    )
    assert torch.isfinite(mine.loss)


def test_orpo_agrees_on_the_odds_ratio_and_takes_the_nll_over_the_completion() -> None:
    """TRL's ORPO adds an NLL over prompt and completion; ours, as the paper's equation 6, over the completion."""
    orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    chosen, rejected = toy()[:2]
    stand_in = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    means = chosen / LENGTHS[0], rejected / LENGTHS[1]
    theirs = -orpo_trainer.ORPOTrainer.odds_ratio_loss(stand_in, *means)[0]
    mine = preference_loss("orpo", chosen, rejected, beta=0.3, nll_weight=0.0, **BOTH)
    assert torch.allclose(mine.losses, theirs, rtol=1e-5)
    with_nll = preference_loss("orpo", chosen, rejected, beta=0.3, **BOTH)
    assert torch.allclose(with_nll.losses - mine.losses, -means[0], rtol=1e-5)


def test_orpo_has_a_gradient_at_certainty_where_trl_gives_nan() -> None:
    orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    stand_in = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    one = torch.ones(1)
    theirs = torch.tensor([-1e-9], requires_grad=True)
    (-orpo_trainer.ORPOTrainer.odds_ratio_loss(stand_in, theirs, torch.tensor([-1.0]))[0]).sum().backward()
    mine = torch.tensor([-1e-9], requires_grad=True)
    out = preference_loss("orpo", mine, torch.tensor([-1.0]), chosen_length=one, rejected_length=one)
    out.loss.backward()
    assert theirs.grad is not None and not torch.isfinite(theirs.grad).all()
    assert mine.grad is not None and torch.isfinite(mine.grad).all()


def test_reward_loss_with_margin_and_centering_is_trl() -> None:
    reward_trainer = pytest.importorskip("trl.trainer.reward_trainer")
    source = inspect.getsource(reward_trainer.RewardTrainer)
    assert 'nn.functional.logsigmoid(rewards_chosen - rewards_rejected - inputs["margin"]).mean()' in source
    assert "center_rewards_coefficient * torch.mean((rewards_chosen + rewards_rejected) ** 2)" in source
    chosen, rejected, margin, _ = toy()
    theirs = -F.logsigmoid(chosen - rejected - margin).mean() + 0.01 * torch.mean((chosen + rejected) ** 2)
    mine = preference_loss("bradley_terry", chosen, rejected, margin=margin, centering=0.01)
    assert torch.allclose(mine.loss, theirs, rtol=1e-6)


def test_document_sums_are_trls_batch_logps() -> None:
    cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    m = made(40, batch=4)
    m.segment_ids[:] = 1
    m.labels[:, 0] = -100
    logits = m.hidden @ m.weight.T
    plan = LossPlan.from_labels(m.labels)
    mine = document_logps(m.hidden, m.weight, plan)
    for average, expected in ((False, mine.sum), (True, mine.mean)):
        theirs = cpo_trainer.CPOTrainer.get_batch_logps(logits, m.labels.clone(), average_log_prob=average)
        assert torch.allclose(theirs, expected, rtol=1e-5)
