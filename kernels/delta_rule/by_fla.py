"""delta_rule by flash-linear-attention: on CUDA in place of torch, where it is installed."""

import warnings

import torch
from torch import Tensor

from decision_s4.kernels import fla
from decision_s4.kernels.packing import Packing


def scan(
    q: Tensor, k: Tensor, w: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`."""
    fla.check("delta_rule", q, k, w, v)
    from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule  # the extra `cuda`

    inputs = transition(q, k, w, v, log_gate)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not support float32 on some platforms")
        return fla.scan(chunk_dplr_delta_rule, inputs, state, packing)


def transition(q: Tensor, k: Tensor, w: Tensor, v: Tensor, log_gate: Tensor) -> tuple[Tensor, ...]:
    """S_t = (diag(e^g) + b aᵀ)ᵀ S_{t−1} + w vᵀ: q, w, v, a, b, g, as fla orders them.

    It looks up with a before the decay, we with k after it: a = −e^g ⊙ k, b = w.
    """
    log_gate = log_gate.expand(k.shape)
    a = -(torch.exp(log_gate) * k).to(k.dtype)
    return q, w, v, a, w, log_gate
