"""The gated delta rule: a value is written at a key in place of what the state holds there.

    S ← diag(e^{g_t}) S_{t−1},   S_t = S + w_t (v_t − Sᵀ k_t)ᵀ,   o_t = S_tᵀ q_t

S is (K, V) in each head. With w = β k it is S_t = (I − β k kᵀ) diag(e^g) S_{t−1} + β k vᵀ, decay
first: DeltaNet (Yang et al., arXiv 2406.06484) without gates, Gated DeltaNet (arXiv 2412.06464)
with one a head, Kimi Delta Attention (arXiv 2510.26692) with one a key channel.
"""

from typing import Literal, get_args

from torch import Tensor

from decision_s4.kernels import fla
from decision_s4.kernels.choice import fastest
from decision_s4.kernels.delta_rule import by_fla, chunked, naive
from decision_s4.kernels.packing import Packing

__all__ = ["delta_rule", "delta_rule_step"]

Impl = Literal["naive", "torch", "fla"]

NO_TRITON = "there are no fused kernels of its own"

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
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "fla" is
            flash-linear-attention for CUDA (the extra `cuda`; bfloat16, and float32 in TF32). None
            takes "fla" on CUDA where it is installed and the types allow it, else "torch".

    Returns:
        (o (B, T, H, V), final state (B, H, K, V)). o is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what "fla" does not take.
    """
    if impl not in (None, *get_args(Impl)):
        raise ValueError(f"delta_rule: impl '{impl}' is unknown; use 'naive', 'torch' or 'fla'")
    impl = impl or fastest("delta_rule", v.device, NO_TRITON, fla.unasked(q, k, w, v))
    if impl == "fla":
        return by_fla.scan(q, k, w, v, log_gate, state, packing)
    run = naive.scan if impl == "naive" else chunked.scan
    return run(q, k, w, v, log_gate, state, packing)
