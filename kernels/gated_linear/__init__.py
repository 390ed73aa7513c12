"""Gated linear attention: a matrix state a head, each key channel with a decay of its own.

    S_t = diag(e^{g_t}) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t

S is (K, V) in each head (Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient
Training", arXiv 2312.06635, equation 3). HGRN-2, RetNet and linear attention are special cases.
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from decision_s4.kernels import choice, fla
from decision_s4.kernels.gated_linear import by_fla, chunked, naive
from decision_s4.kernels.gated_linear.misfit import misfit
from decision_s4.kernels.packing import Packing

__all__ = ["gated_linear", "gated_linear_step"]

Impl = Literal["naive", "torch", "cpu", "triton", "fla"]

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Packing], tuple[Tensor, Tensor]]

gated_linear_step = naive.step


def gated_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
    impl: Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed rows; differentiable in every float input.

    Args:
        q: (B, T, H, K) queries of H heads; scale them beforehand.
        k: (B, T, H, K) keys.
        v: (B, T, H, V) values.
        log_gate: (B, T, H, K), or (B, T, H, 1) for one gate a head; at most 0.
        state: (B, H, K, V) carried in.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is the loop in C++
            (compiled at its first use; differentiable once), "triton" is fused for CUDA (bfloat16
            and float32, K up to 128; differentiable once), "fla" is flash-linear-attention for
            CUDA (the extra `cuda`; float32 in TF32). None takes "cpu" on the CPU where it compiles
            (float32 and float64), "triton" on CUDA for what it takes, else "fla" where it is
            installed and the types allow it, else "torch".

    Returns:
        (o (B, T, H, V), final state (B, H, K, V)). o is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what it does not take.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *get_args(Impl)):
        raise ValueError(f"gated_linear: impl '{impl}' is unknown; use {', '.join(get_args(Impl))}")
    inputs = q, k, v, log_gate, state
    kind = functools.reduce(torch.promote_types, (x.dtype for x in inputs))
    chosen = impl or _fastest(q, k, v, kind)
    if chosen == "fla":
        return by_fla.scan(*inputs, packing)
    if chosen == "triton":
        from decision_s4.kernels.gated_linear import triton  # needs Triton

        return triton.scan(*inputs, packing)
    types = v.dtype, state.dtype
    q, k, v, log_gate, state = (x.to(kind) for x in inputs)
    o, final = _unfused(chosen)(q, k, v, log_gate, state, packing)
    return o.to(types[0]), final.to(types[1])


def _fastest(q: Tensor, k: Tensor, v: Tensor, kind: torch.dtype) -> str:
    if not v.is_cuda:
        return choice.fastest_on_cpu("gated_linear", v.device.type, kind)
    return choice.fastest("gated_linear", v.device, misfit(q, k, v), fla.unasked(q, k, v))


def _unfused(chosen: str) -> Scan:
    if chosen == "cpu":
        from decision_s4.kernels.gated_linear import cpu  # compiles

        return cpu.scan
    return naive.scan if chosen == "naive" else chunked.scan
