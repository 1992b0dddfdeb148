"""No host sync and no data-dependent shape: fake tensors have no values, so code that needs one cannot run on them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from maskpipe.errors import UsageError
from maskpipe.losses import (
    LossPlan,
    cross_entropy,
    document_logps,
    global_denominator,
    linear_cross_entropy,
    pair_loss,
    unpaired_loss,
)
from maskpipe.losses.operators import cross_entropy_body, cross_entropy_gradient_body, linear_cross_entropy_body
from tests.losses.made import made
from tests.losses.test_cross_entropy import OPTIONS

PAIRS = torch.tensor([[0, 1], [2, 3]])


def fake_plan(mode: FakeTensorMode, plan: LossPlan) -> LossPlan:
    """The plan as it is on a device: tensors without values, host numbers as they are."""
    tensors: dict[str, Any] = {
        item.name: mode.from_tensor(value)
        for item in fields(plan)
        if isinstance(value := getattr(plan, item.name), Tensor)
    }
    return replace(plan, **tensors)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("distinct", "weighted"), [(True, False), (False, True)])
@pytest.mark.parametrize("head", [(5.0, 2.0, 0.1, 0.01), (0.0, 1.0, 0.0, 0.0)])
def test_the_operators_never_look_at_a_value(
    device: str, dtype: torch.dtype, distinct: bool, weighted: bool, head: tuple[float, float, float, float]
) -> None:
    """Their bodies run as they stand, for CUDA on fake CUDA tensors: every branch that a GPU takes, without a GPU."""
    with FakeTensorMode(), torch.no_grad():
        hidden = torch.empty(64, 8, dtype=dtype, device=device)
        weight = torch.empty(100, 8, dtype=dtype, device=device)
        bias = torch.empty(100, dtype=dtype, device=device)
        rows = torch.empty(24, dtype=torch.int64, device=device)
        weights = torch.empty(24, device=device) if weighted else None
        out = linear_cross_entropy_body(
            hidden, weight, bias, rows, rows, weights, 10, *head, True, True, True, True, distinct
        )
        assert [tuple(x.shape) for x in out] == [(), (24,), (24,), (24,), (64, 8), (100, 8), (100,)]
        assert [x.dtype for x in out] == [*[torch.float32] * 2, torch.bool, torch.float32, dtype, *[torch.float32] * 2]
        assert all(x.device.type == device for x in out)
        logits = torch.empty(64, 100, dtype=dtype, device=device)
        given = cross_entropy_body(logits, rows, rows, weights, 10, *head, True)
        assert [tuple(x.shape) for x in given] == [(), (24,), (24,), (24,)]
        each = torch.empty(24, device=device)
        gradient = cross_entropy_gradient_body(logits, rows, rows, each, 10, *head, distinct)
        assert gradient.shape == logits.shape and gradient.dtype == dtype


def test_the_whole_way_from_plan_to_gradient_never_looks_at_a_value() -> None:
    m = made(1, batch=2)
    real = m.plan(weighted=True, pairs=PAIRS)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        plan = fake_plan(mode, real)
        hidden, weight, bias = (mode.from_tensor(x).requires_grad_() for x in (m.hidden, m.weight, m.bias))
        denominator = global_denominator([plan, plan])
        plan = plan.normalised_by(denominator, replicas=2)
        out = linear_cross_entropy(hidden, weight, plan, bias=bias, softcap=3.0, entropy=True)
        out.loss.backward()
        assert hidden.grad is not None and weight.grad is not None and bias.grad is not None
        _ = out.metrics + out.metrics
        logits = torch.empty(2, 23, 29, requires_grad=True)
        cross_entropy(logits, plan).loss.backward()
        assert logits.grad is not None
        policy, reference = document_logps(hidden, weight, plan), document_logps(hidden.detach(), weight.detach(), plan)
        for name, parameters in (("sigmoid", {}), ("ipo", {}), ("kto", {"kl": reference.mean.mean().clamp(min=0)})):
            pair_loss(name, policy.pairs, reference.pairs, weights=torch.ones(2), **parameters).loss.backward(
                retain_graph=True
            )
        desirable = torch.zeros(policy.sum.shape, dtype=torch.bool)
        unpaired_loss("kto", policy.sum, reference.sum, desirable, kl=0.1).loss.backward()


def test_a_plan_of_fixed_capacity_needs_no_value_and_one_of_found_rows_does() -> None:
    m = made(2)
    with FakeTensorMode() as mode:
        labels, segment_ids, weights, roles = (
            mode.from_tensor(x) for x in (m.labels, m.segment_ids, m.token_weights, m.roles)
        )
        plan = LossPlan.from_labels(labels, segment_ids=segment_ids, weights=weights, roles=roles, capacity=32)
        assert plan.rows.shape == (32,) and isinstance(plan.weight_sum, Tensor)
        assert plan.padded(64).rows.shape == (64,)
        with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
            LossPlan.from_labels(labels)
        with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
            plan.to_labels()


def test_labels_on_a_device_are_refused_without_a_capacity() -> None:
    with pytest.raises(UsageError, match="Make the plan from CPU labels"):
        LossPlan.from_labels(torch.zeros(2, 4, dtype=torch.int64, device="meta"))


def test_opcheck() -> None:
    m = made(3)
    plan = m.plan(weighted=True)
    hidden = m.hidden.flatten(0, 1)
    for head, wanted in (
        ((0.0, 1.0, 0.0, 0.0, False), (True, True, False)),
        ((3.0, 2.0, 0.1, 0.1, True), (False,) * 3),
    ):
        torch.library.opcheck(
            torch.ops.maskpipe.linear_cross_entropy.default,
            (hidden, m.weight, m.bias, plan.rows, plan.targets, plan.weights, 4, *head, *wanted, plan.distinct_rows),
        )
        torch.library.opcheck(
            torch.ops.maskpipe.cross_entropy.default,
            (hidden @ m.weight.T, plan.rows, plan.targets, plan.weights, 4, *head),
        )
    torch.library.opcheck(
        torch.ops.maskpipe.cross_entropy_gradient.default,
        (hidden @ m.weight.T, plan.rows, plan.targets, torch.ones(plan.rows.shape), 4, 3.0, 2.0, 0.1, 0.1, False),
    )


def test_compiled_as_one_graph_it_gives_the_same() -> None:
    options = OPTIONS[-1]
    m = made(4, batch=2)
    plan = m.plan(weighted=True, pairs=PAIRS)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        token = linear_cross_entropy(hidden, weight, plan, bias=bias, chunk=4, **options).loss
        given = cross_entropy(torch.nn.functional.linear(hidden, weight, bias), plan, **options).loss
        policy = document_logps(hidden, weight, plan, bias=bias).pairs
        pairs = pair_loss("sigmoid", policy, document_logps(hidden.detach(), weight.detach(), plan).pairs).loss
        return token + 2 * given + 3 * pairs

    results = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = m.leaves()
        value = run(*leaves)
        value.backward()
        results.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for plain, compiled in zip(*results, strict=True):
        assert torch.allclose(plain, compiled, rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]
