"""The gated delta rule: a value is written at a key in place of what the state holds there.

    S ← diag(e^{g_t}) S_{t−1},   S_t = S + w_t (v_t − Sᵀ k_t)ᵀ,   o_t = S_tᵀ q_t

S is (K, V) in each head. With w = β k it is S_t = (I − β k kᵀ) diag(e^g) S_{t−1} + β k vᵀ, decay
first: DeltaNet (Yang et al., arXiv 2406.06484) without gates, Gated DeltaNet (arXiv 2412.06464)
with one a head, Kimi Delta Attention (arXiv 2510.26692) with one a key channel.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from decision_s4.kernels import choice, fla
from decision_s4.kernels.delta_rule import by_fla, chunked, naive
from decision_s4.kernels.delta_rule.misfit import misfit
from decision_s4.kernels.packing import Packing

__all__ = ["delta_rule", "delta_rule_step", "fused"]

Impl = Literal["naive", "torch", "cpu", "triton", "fla"]

delta_rule_step = naive.step


def delta_rule(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
    impl: Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed rows; differentiable in every float input.

    Args:
        q: (B, T, H, K) queries of H heads; scale them beforehand.
        k: (B, T, H, K) keys that are looked up.
        w: (B, T, H, K) directions that are written to: β k. The map that a step applies to the
            state must not grow, or the result explodes: |w · k| <= 2 along a k of any length.
        v: (B, T, H, V) values.
        log_gate: (B, T, H, K), or (B, T, H, 1) for one gate a head; at most 0.
        state: (B, H, K, V) carried in.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is the loop in C++
            (compiled at its first use; once differentiable), "triton" is fused for CUDA (bfloat16
            and float32, K up to 128; once differentiable), "fla" flash-linear-attention for CUDA
            (the extra `cuda`; bfloat16, and float32 in TF32). None takes "triton" on CUDA for what
            it takes, else "fla" where it is installed and the types allow it, else "torch"; "cpu"
            on the CPU, where it compiles.

    Returns:
        (o (B, T, H, V), final state (B, H, K, V)). o is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what it does not take.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *get_args(Impl)):
        raise ValueError(f"delta_rule: impl '{impl}' is unknown; use {', '.join(get_args(Impl))}")
    chosen = impl or _fastest(q, k, w, v, state)
    inputs = q, k, w, v, log_gate, state, packing
    if chosen == "cpu":
        from decision_s4.kernels.delta_rule import cpu  # compiles

        return cpu.scan(*inputs)
    if chosen == "triton":
        from decision_s4.kernels.delta_rule import triton  # needs Triton

        return triton.scan(*inputs)
    run = {"naive": naive.scan, "torch": chunked.scan, "fla": by_fla.scan}[chosen]
    return run(*inputs)


def fused(keys: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it runs in fused kernels, of fixed shapes, where none is named."""
    x = torch.empty(0, keys, dtype=dtype, device="meta")
    return choice.fastest("delta_rule", device, misfit(x, x, x, x)) == "triton"


def _fastest(q: Tensor, k: Tensor, w: Tensor, v: Tensor, state: Tensor) -> str:
    if not state.is_cuda:
        return choice.fastest_on_cpu("delta_rule", state.device.type, state.dtype)
    return choice.fastest("delta_rule", v.device, misfit(q, k, w, v), fla.unasked(q, k, w, v))
