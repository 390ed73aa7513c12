"""Selective scan (S6): a linear recurrence whose step, input and read-out depend on the input.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t,   y_t = (C_t · h_t + D u_t) silu(z_t)

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752,
section 3.2 and algorithm 2; the input's discretisation Δ B is the one its code uses.
Shapes: B rows, T steps, D channels, N states a channel.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.selective_scan import by_mamba_ssm, chunked, cuda, naive
from decision_s4.kernels.selective_scan.arguments import Arguments, check
from decision_s4.kernels.selective_scan.misfit import misfit, misfit_of_cuda

__all__ = ["Impl", "selective_scan", "selective_scan_step"]

Impl = Literal["naive", "torch", "cpu", "cuda", "triton", "mamba-ssm"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
    start: Tensor | None = None,
    impl: Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed rows; differentiable once in every floating-point input.

    Args:
        u: (B, T, D) input; bfloat16, float32 or float64, as all others.
        delta: (B, T, D) time step Δ.
        A: (D, N), negative for a state that decays.
        B: (B, T, N) input vector.
        C: (B, T, N) read-out.
        D: (D,) skip; None for none.
        z: (B, T, D) gate; None for none.
        delta_bias: (D,) added to `delta`.
        delta_softplus: Δ = softplus(delta + delta_bias).
        state: (B, D, N) carried in; None for zeros.
        start: (B, T) bool, the first steps of episodes: the state is zero before them.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is C++ (compiled at
            its first use), "cuda" CUDA C++ (bfloat16 and float32, N up to 64; compiled at first
            use), "triton" is fused for CUDA too (N up to 256),
            "mamba-ssm" is that library's CUDA kernel (an extra; without start, state and a
            gradient through the final state). None takes the fastest of ours and logs it once.

    Returns:
        (y (B, T, D) in the type of u, final state (B, D, N)). State and sums are float64 if any
        input is, else float32.

    Raises:
        ValueError: for an unknown `impl`, or what does not fit it or the others.
        RuntimeError: for "cpu" or "triton" where the machine has no compiler or no Triton.
    """
    if impl not in (None, *get_args(Impl)):
        known = ", ".join(f"'{name}'" for name in get_args(Impl))
        raise ValueError(f"selective_scan: impl '{impl}' is unknown; use one of {known}")
    arguments = check(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, start)
    chosen = impl or _fastest(arguments)
    with torch.autocast(u.device.type, enabled=False):
        return _run(chosen, arguments, fresh=state is None)


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`: u, delta, z (B, D), B and C (B, N) -> (y (B, D), new state)."""
    u, delta, B, C = (x.unsqueeze(1) for x in (u, delta, B, C))
    z = z if z is None else z.unsqueeze(1)
    arguments = check(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, None)
    with torch.autocast(u.device.type, enabled=False):
        y, state = naive.scan(arguments)
    return y.squeeze(1), state


def _run(impl: str, arguments: Arguments, fresh: bool) -> tuple[Tensor, Tensor]:
    if impl == "naive":
        return naive.scan(arguments)
    if impl == "torch":
        return chunked.scan(arguments)
    if impl == "cpu":
        from decision_s4.kernels.selective_scan import cpu  # compiles

        return cpu.scan(arguments)
    if impl == "mamba-ssm":
        return by_mamba_ssm.scan(arguments, fresh)
    if impl == "cuda":
        return cuda.scan(arguments)
    from decision_s4.kernels.selective_scan import triton  # needs Triton

    return triton.scan(arguments)


def _fastest(arguments: Arguments) -> str:
    """The implementation where none is named."""
    size, device = arguments.A.shape[1], arguments.u.device
    if device.type == "cuda":
        other = misfit_of_cuda(arguments) if cuda.PROVEN else "'cuda' runs only by name yet"
        if other is None:
            return choice.say("selective_scan", "cuda")
        return choice.fastest("selective_scan", device, misfit(arguments.dtype, size))
    more = f" with N = {size}"
    return choice.fastest_on_cpu("selective_scan", device.type, arguments.dtype, more)
