"""The formulas, as pure functions of vectors [pairs]. Nothing is averaged, clamped away or divided here.

S = Σ log p of a side (policy_*), R = S - S_reference, R̄ = R / length, l(x) = -log sigmoid(x) = softplus(-x).
Each says which parameters the papers and peers call otherwise. Ids as in arXiv. All losses keep the dtype they get.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskpipe.errors import UsageError


def _nll(x: Tensor) -> Tensor:
    """l(x) = -log sigmoid(x), exact for any finite x."""
    return F.softplus(-x)


def _smoothed(x: Tensor, label_smoothing: float) -> Tensor:
    """(1 - e) l(x) + e l(-x)."""
    _check_smoothing(label_smoothing)
    return _nll(x) + label_smoothing * x


def _check_smoothing(label_smoothing: float, *, lowest: float = 0.0) -> None:
    if not lowest <= label_smoothing < 0.5:
        raise UsageError(f"label_smoothing must be in [{lowest}, 0.5), but is {label_smoothing}.")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name} must be above 0, but is {value}.")


def _mean(total: Tensor, length: Tensor) -> Tensor:
    """total / length, and 0 for a side without tokens: never NaN (such pairs are refused by prepare, and counted)."""
    return total / torch.where(length > 0, length, 1)


def sigmoid(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO, l(β(R_w - R_l)): 2305.18290 eq. 7. With label_smoothing e the conservative cDPO of Mitchell's note,
    (1 - e) l(x) + e l(-x). TRL 1.16 and Liger take label_smoothing here and ignore it."""
    _check_positive(beta=beta)
    delta = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return _smoothed(beta * delta, label_smoothing)


def sigmoid_norm(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Length-normalised DPO, l(β(R̄_w - R̄_l)): Tülu 3, 2411.15124 eq. 6. β is per token (5.0 there), so no default."""
    _check_positive(beta=beta)
    chosen = _mean(policy_chosen - reference_chosen, chosen_length)
    rejected = _mean(policy_rejected - reference_rejected, rejected_length)
    return _smoothed(beta * (chosen - rejected), label_smoothing)


def robust(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float,
) -> Tensor:
    """[(1 - e) l(x) - e l(-x)] / (1 - 2e), x = β(R_w - R_l): rDPO, 2403.00409. e = label_smoothing, the share of
    flipped labels, in [0, 0.5). Unbounded below."""
    _check_positive(beta=beta)
    _check_smoothing(label_smoothing)
    x = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return ((1 - label_smoothing) * _nll(x) - label_smoothing * _nll(-x)) / (1 - 2 * label_smoothing)


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """(R̄_w - R̄_l - 1/(2β))²: 2310.12036 eq. 17, β is its τ; per-token means, as its authors confirmed to TRL.
    OpenRLHF takes the difference of sums. 1/(4β²) when policy and reference agree."""
    _check_positive(beta=beta)
    chosen = _mean(policy_chosen - reference_chosen, chosen_length)
    rejected = _mean(policy_rejected - reference_rejected, rejected_length)
    return (chosen - rejected - 1 / (2 * beta)).square()


def hinge(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """max(0, 1 - β(R_w - R_l)): RSO, 2309.06657."""
    _check_positive(beta=beta)
    return F.relu(1 - beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)))


def slic(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    delta: float = 1.0,
    nll_weight: float = 0.0,
    nll_scale: Tensor | float = 1.0,
) -> Tensor:
    """max(0, δ - S_w + S_l) + λ · NLL: SLiC-HF, 2305.10425; λ = nll_weight. NLL as in `cpo`."""
    return F.relu(delta - policy_chosen + policy_rejected) - nll_weight * nll_scale * policy_chosen


def simpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float = 2.0,
    gamma: float | None = None,
    gamma_over_beta: float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """l(β(S̄_w - S̄_l) - γ): 2405.14734. Give γ (`gamma`, TRL's simpo_gamma) or γ/β (`gamma_over_beta`, the authors'
    gamma_beta_ratio), one of them: mixed up they differ by a factor of β."""
    _check_positive(beta=beta)
    if (gamma is None) == (gamma_over_beta is None):
        raise UsageError("'simpo' needs gamma or gamma_over_beta, and not both.")
    target = gamma if gamma is not None else beta * (gamma_over_beta or 0.0)
    chosen, rejected = _mean(policy_chosen, chosen_length), _mean(policy_rejected, rejected_length)
    return _smoothed(beta * (chosen - rejected) - target, label_smoothing)


def alphapo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """l(β(r_w - r_l) - γ), r = (1 - p^(-α))/α with p = exp(S̄): 2501.03884. Written -expm1(-α S̄)/α; α = 0 is SimPO."""
    _check_positive(beta=beta)

    def reward(mean: Tensor) -> Tensor:
        return -torch.expm1(-alpha * mean) / alpha if alpha else mean

    chosen, rejected = _mean(policy_chosen, chosen_length), _mean(policy_rejected, rejected_length)
    return _nll(beta * (reward(chosen) - reward(rejected)) - gamma)


def orpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    nll_scale: Tensor | float | None = None,
) -> Tensor:
    """NLL_w + β · l(o_w - o_l), o = log odds = S̄ - log(1 - e^S̄): 2403.07691 (β is its λ). The NLL is of the completion;
    its scale as in `cpo`, default 1/length per pair. TRL takes the NLL over prompt and completion."""
    chosen, rejected = _mean(policy_chosen, chosen_length), _mean(policy_rejected, rejected_length)
    ratio = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    nll = chosen if nll_scale is None else nll_scale * policy_chosen
    return beta * _nll(ratio) - nll_weight * nll


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0. x is held to at most -1e-7, where float32 still tells 1 - e^x from 0."""
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    # Both branches get an argument that is safe for them, or the unused one makes the gradient NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def cpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_weight: float = 1.0,
    nll_scale: Tensor | float,
) -> Tensor:
    """l(β(S_w - S_l)) + α · NLL_w: 2401.08417; α = nll_weight. NLL_w = -nll_scale · S_w per pair:
    1/chosen_length is the mean over each completion, pairs/tokens of the whole step the mean over tokens (TRL takes
    those of the micro-batch, so its gradient depends on how a batch is split), 1 the sum. No default: peers differ."""
    _check_positive(beta=beta)
    return _smoothed(beta * (policy_chosen - policy_rejected), label_smoothing) - nll_weight * nll_scale * policy_chosen


def sigmoid_nll(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_weight: float = 1.0,
    nll_scale: Tensor | float,
) -> Tensor:
    """DPO + α · NLL_w: 2404.19733 (iterative RPO; TRL's ["sigmoid", "sft"]). Scale of the NLL as in `cpo`."""
    preference = sigmoid(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=beta, label_smoothing=label_smoothing
    )
    return preference - nll_weight * nll_scale * policy_chosen


def apo_zero(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """1 - σ(βR_w) + σ(βR_l): 2408.06266 eq. 7. For chosen texts better than the model's own."""
    _check_positive(beta=beta)
    return torch.sigmoid(-beta * (policy_chosen - reference_chosen)) + torch.sigmoid(
        beta * (policy_rejected - reference_rejected)
    )


def apo_down(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """σ(βR_w) + 1 - σ(β(R_w - R_l)): 2408.06266 eq. 8. For chosen texts worse than the model's own."""
    _check_positive(beta=beta)
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def kto(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """λ_D(1 - σ(β(R_w - z))) + λ_U(1 - σ(β(z - R_l))), z = kl: 2402.01306, the sides of a pair as one desirable and
    one undesirable document. Twice the mean over documents, since it counts pairs. z: `kto_kl`."""
    desirable = torch.ones_like(policy_chosen, dtype=torch.bool)
    return desirable_weight * kto_unpaired(policy_chosen, reference_chosen, desirable, kl=kl, beta=beta) + (
        undesirable_weight * kto_unpaired(policy_rejected, reference_rejected, ~desirable, kl=kl, beta=beta)
    )


def bco(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    delta: Tensor | float,
    beta: float = 0.1,
) -> Tensor:
    """l(βR_w - δ) + l(-(βR_l - δ)): 2404.04656, δ the running mean reward. TRL's bco_pair and Liger fix δ = 0."""
    _check_positive(beta=beta)
    return _nll(beta * (policy_chosen - reference_chosen) - delta) + _nll(
        delta - beta * (policy_rejected - reference_rejected)
    )


def nca(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """l(βR_w) + ½ l(-βR_w) + ½ l(-βR_l): NCA on pairs, 2402.05369."""
    _check_positive(beta=beta)
    chosen, rejected = beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected)
    return _nll(chosen) + 0.5 * _nll(-chosen) + 0.5 * _nll(-rejected)


def exo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> Tensor:
    """KL between (q, 1 - q), q = σ(β(R_w - R_l)), and (1 - e, e): EXO on pairs, 2402.00856 eq. 16; e in (0, 0.5)."""
    _check_positive(beta=beta, label_smoothing=label_smoothing)
    _check_smoothing(label_smoothing)
    x = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return torch.sigmoid(x) * (-_nll(x) - math.log1p(-label_smoothing)) + torch.sigmoid(-x) * (
        -_nll(-x) - math.log(label_smoothing)
    )


def sppo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """(R_w - 1/(2β))² + (R_l + 1/(2β))²: SPPO with hard labels, 2405.00675; β is its 1/η (0.001 there)."""
    _check_positive(beta=beta)
    half = 1 / (2 * beta)
    return (policy_chosen - reference_chosen - half).square() + (policy_rejected - reference_rejected + half).square()


def discopop(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> Tensor:
    """(1 - m) l(x) + m e^(-x), x = β(R_w - R_l), m = σ(x/τ): 2406.08414 eq. 5. m e^(-x) is computed as
    exp(-x + log m); written as it stands (TRL, Liger) it is 0 · inf = NaN below x = -89."""
    _check_positive(beta=beta, tau=tau)
    x = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return torch.sigmoid(-x / tau) * _nll(x) + torch.exp(-x - _nll(x / tau))


def bradley_terry(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    margin: Tensor | float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """l(r_w - r_l - m) + η (r_w + r_l)²: reward models. The vectors are scores, not log-probabilities. m: margin per
    pair (Llama 2, 2307.09288), η: centering (2312.09244; TRL's center_rewards_coefficient, 0.01 there)."""
    return _nll(policy_chosen - policy_rejected - margin) + centering * (policy_chosen + policy_rejected).square()


def kto_unpaired(
    policy: Tensor, reference: Tensor, desirable: Tensor, *, kl: Tensor | float, beta: float = 0.1
) -> Tensor:
    """1 - σ(β(R - z)) where desirable [documents] bool, 1 - σ(β(z - R)) elsewhere: 2402.01306 eq. 8."""
    _check_positive(beta=beta)
    x = beta * (policy - reference - kl)
    return torch.sigmoid(torch.where(desirable, -x, x))


def apo_zero_unpaired(policy: Tensor, reference: Tensor, desirable: Tensor, *, beta: float = 0.1) -> Tensor:
    """1 - σ(βR) where desirable, σ(βR) elsewhere: 2408.06266; TRL's apo_zero_unpaired."""
    return kto_unpaired(policy, reference, desirable, kl=0.0, beta=beta)


def bco_unpaired(
    policy: Tensor, reference: Tensor, desirable: Tensor, *, delta: Tensor | float, beta: float = 0.1
) -> Tensor:
    """l(βR - δ) where desirable, l(δ - βR) elsewhere: 2404.04656."""
    _check_positive(beta=beta)
    x = beta * (policy - reference) - delta
    return _nll(torch.where(desirable, x, -x))


PAIRED: dict[str, Callable[..., Tensor]] = {
    "alphapo": alphapo,
    "apo_down": apo_down,
    "apo_zero": apo_zero,
    "bco": bco,
    "bradley_terry": bradley_terry,
    "cpo": cpo,
    "discopop": discopop,
    "exo": exo,
    "hinge": hinge,
    "ipo": ipo,
    "kto": kto,
    "nca": nca,
    "orpo": orpo,
    "robust": robust,
    "sigmoid": sigmoid,
    "sigmoid_nll": sigmoid_nll,
    "sigmoid_norm": sigmoid_norm,
    "simpo": simpo,
    "slic": slic,
    "sppo": sppo,
}
UNPAIRED: dict[str, Callable[..., Tensor]] = {"apo_zero": apo_zero_unpaired, "bco": bco_unpaired, "kto": kto_unpaired}
