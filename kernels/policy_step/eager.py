"""policy_step by torch, in as few operations as it takes: at one row each costs its dispatch."""

import torch
from torch import Tensor
from torch.linalg import vecdot

from decision_s4.kernels.policy_step.fold import Folded, FoldedLayer, fold
from decision_s4.kernels.policy_step.plan import Affine, Head, Inputs, Norm, Plan


class EagerStep:
    """See `PolicyStep`."""

    def __init__(self, plan: Plan):
        self.folded: Folded = fold(plan)

    def __call__(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if inputs.start.any():  # one question in place of a choice a layer, between the starts
            inputs, state = forget(inputs, state)
        return self.advance(inputs, state)

    def advance(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The step where no row begins an episode, or `forget` has been called."""
        folded = self.folded
        return_to_go, observation, action, _ = inputs
        x = torch.cat([return_to_go.unsqueeze(1), observation, action], dim=1) - folded.shift
        x = _affine(_g(_affine(x, folded.embed)), folded.project)
        after = []
        for layer, before in zip(folded.layers, state, strict=True):
            x, new = _layer(x, layer, before)
            after.append(new)
        x = _norm(x, folded.norm)
        return x if folded.head is None else _head(x, folded.head), tuple(after)


def forget(inputs: Inputs, state: tuple[Tensor, ...]) -> tuple[Inputs, tuple[Tensor, ...]]:
    """Zero what rows at a start have of an episode before."""
    action = inputs.previous_action.masked_fill(inputs.start[:, None], 0.0)
    state = tuple(s.masked_fill(inputs.start[:, None, None, None], 0.0) for s in state)
    return inputs._replace(previous_action=action), state


def _layer(x: Tensor, layer: FoldedLayer, state: Tensor) -> tuple[Tensor, Tensor]:
    u = _norm(x, layer.norm)
    after, flat = _advance(state, u, layer)
    y = vecdot(flat, layer.c_row).addcmul_(layer.d, u)
    y = _affine(_g(y), layer.mix)
    x = (x + y).addcmul_(y, y.erf())
    if layer.mlp is not None:
        norm, first, second = layer.mlp
        x = x + _affine(_g(_affine(_norm(x, norm), first)), second)
    return x, after


def _advance(state: Tensor, u: Tensor, layer: FoldedLayer) -> tuple[Tensor, Tensor]:
    """The new state, (B, D, n, 2) and the same as (B, D, 2n).

    Inputs are real, so all but a's product is, and vectorises.
    """
    after = torch.view_as_real(torch.view_as_complex(state) * layer.a)
    flat = after.flatten(2)
    flat.addcmul_(layer.b_row, u.unsqueeze(-1))
    if layer.w_row is not None:
        flat.addcmul_(layer.w_row, vecdot(state.flatten(2), layer.v_row).unsqueeze(-1))
    return after, flat


def _head(x: Tensor, head: Head) -> Tensor:
    out = _affine(x, head.linear)
    return torch.addcmul(head.centre, head.reach, out.tanh() if head.squash else out)


def _g(z: Tensor) -> Tensor:
    return torch.addcmul(z, z, z.erf())


def _affine(x: Tensor, affine: Affine) -> Tensor:
    return torch.addmm(affine.bias, x, affine.weight)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return torch.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
