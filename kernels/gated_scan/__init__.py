"""GRU and LSTM over packed rows, with resets.

    GRU:  r, z = σ(W x_t + U h + b),  n = tanh(W x_t + b + r ∘ (U h + b')),  h ← (1 − z) ∘ n + z ∘ h
    LSTM: i, f, o = σ(W x_t + U h + b),  g = tanh(W x_t + U h + b),
          c ← f ∘ c + i ∘ g,  h ← o ∘ tanh(c)

Cho et al., arXiv 1406.1078, the reset gate after the matrix product; Hochreiter and Schmidhuber
1997, with the forget gate of Gers, Schmidhuber and Cummins 2000. As in torch.nn.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from decision_s4.kernels import choice
from decision_s4.kernels.gated_scan import fused, naive, ranks
from decision_s4.kernels.gated_scan.misfit import misfit
from decision_s4.kernels.packing import Packing

__all__ = ["fits_triton", "gated_scan", "gated_step"]

gated_step = naive.step
IMPLS = ("naive", "torch", "cpu", "fused", "triton")


def gated_scan(
    x: Tensor,
    network: nn.GRU | nn.LSTM,
    state: Tensor,
    packing: Packing,
    impl: Literal["naive", "torch", "cpu", "fused", "triton"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a network of one layer; differentiable in `x`, its parameters and `state`.

    Args:
        x: (B, T, D) input.
        network: holds the parameters, and says which equation.
        state: (B, parts, H) carried in; parts are h, and c of an LSTM.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" a loop with its gradient by hand (once
            differentiable), "cpu" that loop in C++ (compiled at its first use), "triton" on CUDA a
            loop that keeps the recurrent matrix in registers (width up to 128, once
            differentiable), "fused" torch's own kernels. None takes the fastest that can and logs
            it once: on CUDA "triton", for what it does not take "fused"; on the CPU "cpu", or where
            that cannot be compiled what suits the lengths of the episodes.

    Returns:
        (h (B, T, H), final state (B, parts, H)). h is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or tensors that do not fit it.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *IMPLS):
        raise ValueError(f"gated_scan: impl '{impl}' is unknown; use {', '.join(IMPLS)}")
    chosen = impl or _fastest(x, network, state, packing)
    if chosen == "cpu":
        from decision_s4.kernels.gated_scan import cpu  # compiles

        return cpu.scan(x, network, state, packing)
    if chosen == "triton":
        from decision_s4.kernels.gated_scan import triton  # needs Triton

        return triton.scan(x, network, state, packing)
    run = {"naive": naive.scan, "torch": ranks.scan, "fused": fused.scan}[chosen]
    return run(x, network, state, packing)


def _fastest(x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing) -> str:
    if state.is_cuda:
        return choice.fastest("gated_scan", x.device, misfit(network, x.dtype), otherwise="fused")
    impl = choice.fastest_on_cpu("gated_scan", state.device.type, state.dtype)
    if impl == "cpu":
        return impl
    return "fused" if fused.pays(x, network, packing) else "torch"


def fits_triton(network: nn.GRU | nn.LSTM, device: torch.device) -> bool:
    """Whether the fused kernels run it where nothing is named."""
    reason = misfit(network, next(network.parameters()).dtype)
    return choice.fastest("gated_scan", device, reason, otherwise="fused") == "triton"
