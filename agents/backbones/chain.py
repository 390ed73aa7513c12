"""A gated network as probes read it: every step's own graph at once, and one loop that joins them.

    s_t = f(W x_t + b, a_t, s_{t−1}),   a_t = U h_{t−1} + b',   h = part 0 of s

f goes number by number, so that its derivatives in a and in s are diagonals, whatever rules hold
its gates (ops.py): two backward passes give them for all steps. What is left of backpropagation
through time is g_{t−1} += own_t g_t + Uᵀ gates_t g_t, a few operations a step.
Shapes: B rows, T steps, P parts of a state, G gates, H width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from decision_s4.kernels.packing import Packing

Update = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f: of the input and of the state (B, T, G · H), s (B, T, P, H) -> (B, T, P, H)."""


class Links(NamedTuple):
    """How each state depends on the one before it."""

    own: Tensor
    """(B, T, P, P, H) ∂s_t[p] / ∂s_{t−1}[q] with a_t held."""
    gates: Tensor
    """(B, T, P, G, H) ∂s_t[p] / ∂a_t[g]."""
    U: Tensor
    """(G · H, H)"""

    def back(self) -> list[tuple[Tensor, Tensor]]:
        """own and gates of each step, last step first."""
        return list(zip(self.own.unbind(1), self.gates.unbind(1), strict=True))[::-1]


def own_steps(
    from_input: Tensor, before: Tensor, weights: tuple[Tensor, Tensor], packing: Packing, f: Update
) -> tuple[Tensor, Links]:
    """Each step of states `before` it (B, T, P, H) by itself: (B, T, P, H), and its links."""
    with torch.enable_grad():
        s = before.detach().requires_grad_()
        a = F.linear(s[:, :, 0].detach(), *weights)
        a = a + torch.zeros_like(a, requires_grad=True)
        after = f(from_input, a, s)
        if packing.valid is not None:
            after = after.where(packing.valid[..., None, None], s)
        found = [_diagonals(part, s, a) for part in after.unbind(2)]
    own, gates = (torch.stack(each, 2) for each in zip(*found, strict=True))
    goes_on = ~packing.begins[..., None, None, None]
    gates = gates.unflatten(-1, (-1, s.shape[-1]))
    return after, Links(own.where(goes_on, 0), gates.where(goes_on, 0), weights[0].detach())


def _diagonals(part: Tensor, s: Tensor, a: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(part.sum(), [s, a], retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for d, x in zip(found, (s, a), strict=True)]


def linear_states(free: Tensor, links: Links, state: Tensor) -> Tensor:
    """(B, T, P, H) of held steps, which are affine: `free` is what each makes of no state."""
    found = []
    for own, gates, new in zip(*(x.unbind(1) for x in (*links[:2], free)), strict=True):
        a = (state[:, 0] @ links.U.T).view(len(new), 1, *gates.shape[2:])
        state = new + (own * state[:, None]).sum(2) + (gates * a).sum(2)
        found.append(state)
    return torch.stack(found, 1)


class Joined(torch.autograd.Function):
    """The states (B, T, P, H), whose gradient goes back through links and into each own step."""

    @staticmethod
    def forward(ctx: Any, after: Tensor, state: Tensor, states: Tensor, links: Links) -> Tensor:
        """`after` are own steps, `state` (B, P, H) is carried in, `states` the values."""
        ctx.links = links
        return states.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Of each own step, and of the state carried in."""
        U, found, later = ctx.links.U, [], torch.zeros_like(upstream[:, 0])
        for (own, gates), here in zip(ctx.links.back(), upstream.unbind(1)[::-1], strict=True):
            g = here + later
            found.append(g)
            mixed = (gates * g[:, :, None]).sum(1).flatten(1) @ U  # (B, H), to h
            later = (own * g[:, :, None]).sum(1)
            later = torch.cat([later[:, :1] + mixed[:, None], later[:, 1:]], 1)
        return torch.stack(found[::-1], 1), later, None, None
