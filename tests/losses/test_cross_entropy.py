"""Both cross entropies equal their float64 twin, in value and gradient, whatever is asked and whatever is masked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses import LossOut, LossPlan, cross_entropy, linear_cross_entropy, register_backend, softmax
from maskpipe.losses.linear_cross_entropy import BackendResult
from maskpipe.losses.operators import chunk_rows
from tests.losses.made import Made, made
from tests.reference import losses as slow

OPTIONS: list[dict[str, Any]] = [
    {},
    {"softcap": 3.0},
    {"scale": 0.25, "softcap": 30.0},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"softcap": 5.0, "scale": 2.0, "label_smoothing": 0.2, "z_loss": 1e-3},
]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest error relative to the largest value; asserts that it is within tolerance."""
    expected = expected.detach().double()
    error = float((actual.detach().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    assert error <= tolerance, f"{error:.1e} > {tolerance:.1e}"
    return error


def twin(m: Made, plan: LossPlan, options: dict[str, Any], bias: bool) -> tuple[Tensor, list[Tensor]]:
    """(loss, gradients of hidden, weight and bias) in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (m.hidden, m.weight, m.bias)]
    flat = leaves[0].reshape(-1, leaves[0].shape[-1])
    head = {key: options[key] for key in ("softcap", "scale") if key in options}
    terms = {key: options[key] for key in ("label_smoothing", "z_loss") if key in options}
    logits = slow.logits_of(flat, leaves[1], leaves[2] if bias else None, **head)
    losses = slow.token_losses(logits, plan.rows.tolist(), plan.targets.tolist(), **terms)
    weights = [1.0] * len(losses) if plan.weights is None else plan.weights.tolist()
    loss = slow.loss_sum(losses, weights, flat) / (sum(weights) or 1)
    loss.backward()
    return loss.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


@pytest.mark.parametrize("options", OPTIONS)
@given(
    seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.3, 1.0]), weighted=st.booleans(), bias=st.booleans(),
    chunk=st.sampled_from([1, 5, None]), padded=st.booleans(),
)  # fmt: skip
@settings(max_examples=4)
def test_loss_and_gradients_equal_the_float64_twin(
    options: dict[str, Any], seed: int, share: float, weighted: bool, bias: bool, chunk: int | None, padded: bool
) -> None:
    m = made(seed, share=share)
    plan = m.plan(weighted=weighted)
    plan = plan.padded(32) if padded else plan
    hidden, weight, b = m.leaves()
    out = linear_cross_entropy(hidden, weight, plan, bias=b if bias else None, chunk=chunk, **options)
    out.loss.backward()
    expected, gradients = twin(m, plan, options, bias)
    close(out.loss, expected, 1e-6)
    for leaf, gradient in zip((hidden, weight, b) if bias else (hidden, weight), gradients, strict=False):
        assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype
        close(leaf.grad, gradient, 2e-6)
    logits = slow.logits_of(m.hidden, m.weight, m.bias if bias else None).float().requires_grad_()
    given = cross_entropy(logits, plan, chunk=chunk, **options)
    given.loss.backward()
    close(given.loss, expected, 1e-6)
    kept = plan.rows if plan.weights is None else plan.rows[plan.weights != 0]
    unsupervised = torch.ones(plan.positions, dtype=torch.bool)
    unsupervised[kept] = False
    assert logits.grad is not None and not logits.grad.reshape(plan.positions, -1)[unsupervised].any()
    if not options.get("scale") and not options.get("softcap"):
        close(logits.grad.reshape(plan.positions, -1).double() @ m.weight.double(), gradients[0].flatten(0, 1), 2e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck_in_float64(options: dict[str, Any], weighted: bool) -> None:
    m = made(5, batch=1, length=9, hidden=3, vocabulary=5, share=0.7, dtype=torch.float64)
    plan = m.plan(weighted=weighted)
    hidden, weight, bias = m.leaves()

    def linear(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(h, w, plan, bias=b, chunk=2, allow_retain_graph=True, **options).loss

    def given(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return cross_entropy(F.linear(h, w, b), plan, chunk=2, **options).loss

    for loss in (linear, given):
        assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_float32_errors_at_the_size_of_a_small_head() -> None:
    m = made(6, batch=2, length=64, hidden=64, vocabulary=4099)
    plan = m.plan()
    hidden, weight, _ = m.leaves()
    out = linear_cross_entropy(hidden, weight, plan)
    out.loss.backward()
    expected, gradients = twin(m, plan, {}, False)
    assert hidden.grad is not None and weight.grad is not None
    figures = (
        close(out.loss, expected, 1e-6),
        close(hidden.grad, gradients[0], 1e-6),
        close(weight.grad, gradients[1], 1e-6),
    )
    print("float32 errors of loss, dhidden, dweight: " + ", ".join(f"{x:.1e}" for x in figures))


@pytest.mark.parametrize("options", OPTIONS)
def test_how_many_rows_go_through_the_cache_together_changes_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    m = made(19)
    found = []
    for cached in (1, 3 * 29, 1 << 20):
        monkeypatch.setattr(softmax, "CACHED", cached)
        hidden, weight, bias = m.leaves()
        out = linear_cross_entropy(hidden, weight, m.plan(weighted=True), bias=bias, entropy=True, **options)
        out.loss.backward()
        found.append([out.loss, out.logps, out.entropy, hidden.grad, weight.grad, bias.grad])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours is not None and theirs is not None
            close(theirs, ours, 1e-6)


@pytest.mark.parametrize(("rows", "size"), [(410, 256), (1, 256), (786, 512), (1656, 1024), (5000, 8192), (100, 8)])
@pytest.mark.parametrize("buffers", [1, 2])
def test_chunks_of_logits_stay_small_and_are_multiples_of_eight(rows: int, size: int, buffers: int) -> None:
    chunk = chunk_rows(rows, size, torch.device("cpu"), buffers)
    assert chunk % 8 == 0 and chunk * buffers <= max(120, 3 * size / 8, size / 8)
    assert 2 * chunk * buffers >= min(rows, 120) - 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_losses_are_summed_in_float32(dtype: torch.dtype) -> None:
    m = made(7, batch=2, length=96, hidden=64, vocabulary=1009, dtype=dtype)
    plan = m.plan()
    hidden, weight, _ = m.leaves()
    out = linear_cross_entropy(hidden, weight, plan, chunk=16)
    out.loss.backward()
    expected, gradients = twin(m, plan, {}, False)
    assert out.loss.dtype == torch.float32 and weight.grad is not None and hidden.grad is not None
    error = close(out.loss, expected, 1e-4)
    print(f"{dtype} loss error {error:.1e}")
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    # One rounding of the result; adding rounded chunks would err by more (N11).
    rounding = torch.finfo(dtype).eps / 2
    close(hidden.grad, gradients[0], 2 * rounding)
    close(weight.grad, gradients[1], 2 * rounding)


def test_float32_weights_with_half_precision_hidden_as_under_autocast() -> None:
    m = made(8, hidden=16)
    plan = m.plan()
    hidden, weight, _ = m.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = hidden.bfloat16()
        out = linear_cross_entropy(narrow, weight, plan)
    out.loss.backward()
    m.hidden = m.hidden.bfloat16()
    expected, gradients = twin(m, plan, {}, False)
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    close(out.loss, expected, 1e-6)
    close(weight.grad, gradients[1], 2e-6)


def losses_of(m: Made, plan: LossPlan) -> list[tuple[LossOut, list[Tensor]]]:
    """Both losses with the leaves their gradients go to, after backward()."""
    hidden, weight, _ = m.leaves()
    first = linear_cross_entropy(hidden, weight, plan)
    logits = (m.hidden @ m.weight.T).detach().requires_grad_()
    second = cross_entropy(logits, plan)
    for out in (first, second):
        out.loss.backward()
    return [(first, [hidden, weight]), (second, [logits])]


def test_nothing_supervised_is_exactly_zero_with_zero_gradients() -> None:
    m = made(9, share=0.0)
    empty = m.plan()
    by_zero = [empty.normalised_by(0.0), empty.normalised_by(torch.tensor(0.0))]
    for plan in (empty, empty.padded(8), m.plan(capacity=16), *by_zero):
        for out, leaves in losses_of(m, plan):
            assert out.loss.item() == 0.0 and out.sum.item() == 0.0 and out.loss.requires_grad
            for leaf in leaves:
                assert leaf.grad is not None and not leaf.grad.any()
            assert out.metrics.total().count == 0 and out.metrics.by_role() == {}
    hidden, weight, _ = m.leaves()
    out = linear_cross_entropy(hidden, weight, m.plan(), backend="torch")
    out.loss.backward()
    assert out.loss.item() == 0.0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("padded", [False, True])
def test_nan_and_inf_under_the_mask_touch_nothing(bad: float, padded: bool) -> None:
    m = made(10)
    plan = m.plan(capacity=m.labels.numel()) if padded else m.plan()
    clean = losses_of(m, plan)
    masked = torch.ones(plan.positions, dtype=torch.bool)
    masked[plan.rows if plan.weights is None else plan.rows[plan.weights != 0]] = False
    m.hidden.reshape(plan.positions, -1)[masked] = bad
    for (out, leaves), (expected, expected_leaves) in zip(losses_of(m, plan), clean, strict=True):
        assert torch.equal(out.loss, expected.loss)
        for leaf, other in zip(leaves, expected_leaves, strict=True):
            assert torch.equal(leaf.grad, other.grad)  # type: ignore[arg-type]


def test_a_common_offset_of_a_million_changes_nothing_but_its_rounding() -> None:
    m = made(11)
    plan = m.plan()
    logits = (m.hidden @ m.weight.T + 1e6).requires_grad_()
    out = cross_entropy(logits, plan, z_loss=1e-12)
    out.loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    expected = slow.token_losses(
        logits.detach().double().flatten(0, 1), plan.rows.tolist(), plan.targets.tolist(), z_loss=1e-12
    )
    close(out.loss, torch.stack(expected).mean(), 1e-6)
    hidden, weight, _ = m.leaves()
    linear = linear_cross_entropy(hidden, weight, plan, bias=torch.full((29,), 1e6))
    linear.loss.backward()
    assert torch.equal(torch.isfinite(weight.grad), torch.ones_like(weight.grad, dtype=torch.bool))  # type: ignore[arg-type]


def test_logits_of_minus_infinity_are_forbidden_tokens() -> None:
    m = made(12)
    plan = m.plan()
    bias = torch.zeros(29)
    forbidden = next(v for v in range(29) if v not in plan.targets.tolist())
    bias[forbidden] = -math.inf
    hidden, weight, _ = m.leaves()
    out = linear_cross_entropy(hidden, weight, plan, bias=bias, entropy=True)
    out.loss.backward()
    assert torch.isfinite(out.loss) and out.entropy is not None and torch.isfinite(out.entropy).all()
    assert weight.grad is not None and not weight.grad[forbidden].any() and torch.isfinite(weight.grad).all()


def test_a_confident_target_keeps_its_loss_and_its_gradient() -> None:
    logits = torch.zeros(1, 2, 4)
    logits[0, 0, 2] = 25.0
    logits.requires_grad_()
    out = cross_entropy(logits, LossPlan.from_labels(torch.tensor([[-100, 2]])))
    out.loss.backward()
    expected = math.log1p(3 * math.exp(-25))
    assert math.isclose(out.loss.item(), expected, rel_tol=1e-6)
    assert math.isclose(logits.grad[0, 0, 2].item(), math.expm1(-expected), rel_tol=1e-6)  # type: ignore[index]


def test_an_oracle_of_the_next_token_has_no_loss_and_one_of_the_same_token_has_much() -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 2, 6]])
    plan = LossPlan.from_labels(ids)
    following, same = torch.zeros(1, 7, 8), torch.zeros(1, 7, 8)
    following[0, torch.arange(6), ids[0, 1:]] = 50.0
    same[0, torch.arange(7), ids[0]] = 50.0
    assert cross_entropy(following, plan).loss < 1e-6
    assert cross_entropy(same, plan).loss > 40


def test_metrics_per_role_and_part_are_means_over_their_own_tokens() -> None:
    m = made(13, batch=4)
    plan = m.plan()
    out = linear_cross_entropy(m.hidden, m.weight, plan, entropy=True, z_loss=0.1, label_smoothing=0.1)
    logps = slow.logits_of(m.hidden, m.weight).flatten(0, 1).log_softmax(-1)[plan.rows]
    nll = -logps.gather(1, plan.targets[:, None]).squeeze(1)
    entropy, hit = -(logps.exp() * logps).sum(1), logps.argmax(1) == plan.targets
    assert plan.roles is not None and plan.parts is not None
    by_role = out.metrics.by_role()
    assert set(by_role) == {"system", "user", "assistant", "tool"}
    for name, value in (("system", 1), ("user", 2), ("assistant", 3), ("tool", 4)):
        mine = plan.roles == value
        metric = by_role[name]
        assert metric.count == int(mine.sum()) and metric.entropy is not None
        assert math.isclose(metric.loss, float(nll[mine].mean()), rel_tol=1e-6)
        assert math.isclose(metric.entropy, float(entropy[mine].mean()), rel_tol=1e-5)
        assert math.isclose(metric.top1, float(hit[mine].double().mean()))
    total, both = out.metrics.total(), (out.metrics + out.metrics).total()
    assert total.count == plan.count == sum(metric.count for metric in out.metrics.by_part().values())
    assert both.count == 2 * total.count and math.isclose(both.loss, total.loss)
    assert sum(metric.count for metric in out.metrics.by_role_and_part().values()) == total.count
    assert linear_cross_entropy(m.hidden, m.weight, plan).metrics.total().entropy is None
    foreign = linear_cross_entropy(m.hidden, m.weight, LossPlan.from_labels(m.labels, segment_ids=m.segment_ids))
    assert set(foreign.metrics.by_role()) == {"unknown"}


def test_a_frozen_head_or_body_gets_no_gradient_and_costs_none() -> None:
    m = made(14)
    hidden, weight, _ = m.leaves()
    expected = linear_cross_entropy(hidden, weight, m.plan())
    expected.loss.backward()
    only_hidden = m.hidden.clone().requires_grad_()
    linear_cross_entropy(only_hidden, m.weight, m.plan()).loss.backward()
    assert torch.equal(only_hidden.grad, hidden.grad)  # type: ignore[arg-type]
    only_weight = m.weight.clone().requires_grad_()
    linear_cross_entropy(m.hidden, only_weight, m.plan()).loss.backward()
    assert torch.equal(only_weight.grad, weight.grad)  # type: ignore[arg-type]
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, m.plan()).loss.requires_grad


def test_the_upstream_gradient_reaches_all_gradients_and_only_once() -> None:
    m = made(15)
    hidden, weight, _ = m.leaves()
    (1024 * linear_cross_entropy(hidden, weight, m.plan()).loss).backward()
    other_hidden, other_weight, _ = m.leaves()
    loss = linear_cross_entropy(other_hidden, other_weight, m.plan()).loss
    loss.backward(retain_graph=True)
    assert torch.equal(hidden.grad, 1024 * other_hidden.grad)  # type: ignore[operator,arg-type]
    assert torch.equal(weight.grad, 1024 * other_weight.grad)  # type: ignore[operator,arg-type]
    with pytest.raises(UsageError, match="compute it again"):
        loss.backward()
    fresh = linear_cross_entropy(other_hidden, other_weight, m.plan()).loss
    with pytest.raises(UsageError, match="second derivative"):
        torch.autograd.grad(fresh, other_hidden, create_graph=True)


def test_the_torch_backend_agrees_and_refuses_what_it_cannot_do() -> None:
    m = made(16)
    grads = []
    for backend in ("maskpipe", "torch"):
        hidden, weight, bias = m.leaves()
        out = linear_cross_entropy(hidden, weight, m.plan(), bias=bias, backend=backend)
        out.loss.backward()
        grads.append((out.loss, hidden.grad, weight.grad, bias.grad))
    for ours, theirs in zip(*grads, strict=True):
        close(theirs, ours, 2e-6)  # type: ignore[arg-type]
    for refused in ({"z_loss": 0.1}, {"softcap": 1.0}, {"scale": 2.0}, {"label_smoothing": 0.1}, {"entropy": True}):
        with pytest.raises(UsageError, match="backend 'torch' has no"):
            linear_cross_entropy(m.hidden, m.weight, m.plan(), backend="torch", **refused)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="per-token weights"):
        linear_cross_entropy(m.hidden, m.weight, m.plan(weighted=True), backend="torch")
    with pytest.raises(UsageError, match="no log-probabilities"):
        linear_cross_entropy(m.hidden, m.weight, m.plan(), backend="torch").metrics.total()


def test_backends_are_open() -> None:
    def constant(hidden: Tensor, *_: object) -> BackendResult:
        return BackendResult(hidden.sum() * 0 + 7, hidden.new_empty(0), hidden.new_empty(0).bool(), None)

    register_backend("constant of a test", constant)
    m = made(17)
    out = linear_cross_entropy(m.hidden, m.weight, m.plan(), backend="constant of a test")
    assert math.isclose(out.loss.item(), 7 / len(m.plan().rows), rel_tol=1e-6)
    with pytest.raises(UsageError, match="registered already"):
        register_backend("torch", constant)
    with pytest.raises(UsageError, match="no backend named 'nothing'; there are"):
        linear_cross_entropy(m.hidden, m.weight, m.plan(), backend="nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 0.0}, "softcap"),
        ({"scale": 0.0}, "scale"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"chunk": 0}, "chunk"),
        ({"hidden": torch.zeros(3, 22, 8)}, "3 x 23"),
        ({"weight": torch.zeros(29, 7)}, "weight must be"),
        ({"weight": torch.zeros(3, 8)}, "holds target"),
        ({"bias": torch.zeros(3)}, "bias must be"),
        ({"hidden": torch.zeros(3, 23, 8, dtype=torch.int64)}, "must hold floats"),
        ({"hidden": torch.zeros(3, 23, 8, device="meta")}, "lies on meta"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    m = made(18)
    arguments = {"hidden": m.hidden, "weight": m.weight, **change}
    with pytest.raises(UsageError, match=message):
        linear_cross_entropy(arguments.pop("hidden"), arguments.pop("weight"), m.plan(), **arguments)


def test_seventy_thousand_tokens() -> None:
    length = 70_000
    hidden, weight = torch.randn(1, length, 4), torch.randn(11, 4)
    labels = torch.randint(0, 11, (1, length))
    plan = LossPlan.from_labels(labels)
    expected = F.cross_entropy((hidden[0, :-1].double() @ weight.double().T), labels[0, 1:])
    close(linear_cross_entropy(hidden, weight, plan, chunk=4096).loss, expected, 1e-6)
