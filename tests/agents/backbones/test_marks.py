"""What layers mark for probes costs nothing while no probe reads.

Beside each policy stands itself with every mark replaced by the function that it names: both must
ask torch for the very same operations, in training and in acting. Shapes: B rows, T steps.
"""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from decision_s4.agents.backbones import BACKBONES, ops
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions

B, T = 2, 9
PLAIN = {
    "is_open": lambda: False,
    "has_stand_in": lambda: False,
    "scope": lambda name, index: nullcontext(),
    "tap": lambda name, x: x,
    "act": lambda x, kind, name=None: getattr(torch if kind == "tanh" else F, kind)(x),
    "norm": lambda x, module, name=None: plain_norm(x, module),
    "gate": lambda signal, by, name=None: signal * by,
    "coefficient": lambda name, x, factors=0: x,
    "value": lambda x, factors: x,
    "function": lambda asked, x: getattr(torch, asked.kind, None)(x),
}
"""By mark: what would stand there if nobody were ever to ask."""


def plain_norm(x: Tensor, module: torch.nn.Module) -> Tensor:
    if isinstance(module, torch.nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    return F.rms_norm(x, module.normalized_shape, module.weight, module.eps)


class Operations(TorchDispatchMode):
    """Within it, what torch is asked to do, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(x.shape) for x in args if isinstance(x, Tensor)]
        self.seen.append(f"{func} {shapes}")
        return func(*args, **(kwargs or {}))


def policy_of(backbone: str) -> Policy:
    torch.manual_seed(0)
    seen, hand = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,))
    options = PolicyOptions(backbone, d_model=8, n_layers=2, d_embed=4, mlp_ratio=1.0)
    return make_policy(seen, hand, options).requires_grad_(True)


def batch_of(steps: int) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(1)
    start = torch.zeros(B, steps, dtype=torch.bool)
    start[:, 0] = True
    return SimpleNamespace(
        observation=torch.randn(B, steps, 3, generator=draw),
        previous_action=torch.randn(B, steps, 2, generator=draw),
        return_to_go=torch.randn(B, steps, generator=draw),
        timestep=torch.arange(steps).repeat(B, 1),
        start=start,
        valid=torch.ones_like(start),
    )


def nodes(root: Tensor) -> Counter:
    """How many nodes of each kind the backward pass of `root` would walk."""
    seen, left = set(), [root.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [each for each, _ in node.next_functions]
    return Counter(type(node).__name__ for node in seen)


def update(policy: Policy) -> tuple[list[str], Counter, list[Tensor]]:
    """Operations and nodes of one, and its gradients."""
    policy.zero_grad()
    with Operations() as operations:
        loss = policy.head.act(policy(batch_of(T))[0]).square().mean()
        graph = nodes(loss)
        loss.backward()
    return operations.seen, graph, [p.grad.clone() for p in policy.parameters()]


@torch.inference_mode()
def act(policy: Policy) -> tuple[list[str], Tensor]:
    """Operations of a step from a state, and what it gives."""
    batch = batch_of(1)
    step = SimpleNamespace(**{name: value[:, 0] for name, value in vars(batch).items()})
    state, constants = policy.initial_state(B), policy.backbone.constants()
    with Operations() as operations:
        features, _ = policy.step(step, state, constants)
    return operations.seen, features


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_marks_add_no_operation_and_no_node(backbone, monkeypatch):
    policy = policy_of(backbone)
    update(policy)  # what is made once, is made
    operations, graph, gradients = update(policy)
    acting, features = act(policy)
    for name, plain in PLAIN.items():
        monkeypatch.setattr(ops, name, plain)
    plain_operations, plain_graph, plain_gradients = update(policy)
    plain_acting, plain_features = act(policy)
    assert operations == plain_operations
    assert graph == plain_graph
    assert acting == plain_acting
    assert torch.equal(features, plain_features)
    assert all(map(torch.equal, gradients, plain_gradients))


def test_the_count_would_see_a_mark_that_costs(monkeypatch):
    policy = policy_of("rwkv")
    operations, graph, _ = update(policy)
    monkeypatch.setattr(ops, "coefficient", lambda name, x, factors=0: x * 1)
    dearer, larger_graph, _ = update(policy)
    assert len(dearer) > len(operations)
    assert larger_graph["MulBackward0"] > graph["MulBackward0"]
    assert all(name in vars(ops) for name in PLAIN)
