"""The chunked scan equals the equation's loop: outputs, final state, every gradient."""

import pytest
import torch

from decision_s4.kernels.lti_scan import System, lti_scan
from decision_s4.kernels.packing import Packing

CHANNELS, HALF, ROWS = 3, 4, 4


def make_system(low_rank: bool) -> System:
    shape, double = (CHANNELS, HALF), torch.float64
    poles = torch.polar(
        0.5 + 0.5 * torch.rand(shape, dtype=double), torch.randn(shape, dtype=double)
    )
    fields = [poles, *(torch.randn(shape, dtype=torch.complex128) for _ in range(2))]
    if low_rank:
        fields += [0.05 * torch.randn(shape, dtype=torch.complex128) for _ in range(2)]
    return System(*[z.requires_grad_() for z in fields])


def outcome(impl: str, u, system, state, packing) -> list[torch.Tensor]:
    y, final = lti_scan(u, system, state, packing, impl=impl)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    inputs = [u, state, *(z for z in system if z is not None)]
    return [y, final, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 63, 64, 65, 257])
def test_chunked_equals_the_loop(low_rank, steps):
    torch.manual_seed(steps)
    system = make_system(low_rank)
    u = torch.randn(ROWS, steps, CHANNELS, dtype=torch.float64, requires_grad=True)
    state = torch.randn(ROWS, CHANNELS, HALF, 2, dtype=torch.float64, requires_grad=True)
    start, valid = torch.rand(ROWS, steps) < 0.05, torch.rand(ROWS, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    packing = Packing(start, valid)
    expected = outcome("naive", u, system, state, packing)
    for fast, naive in zip(outcome("torch", u, system, state, packing), expected, strict=True):
        torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-10)


def test_a_system_a_hand_can_check():
    """a = 1/2, b = 1, c = 1/2, so y_t = sum of u_s / 2^(t − s): 1, 1/2, 1/4; the reset forgets."""
    one = torch.ones(1, 1, dtype=torch.complex128)
    u = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)[..., None]
    start = torch.tensor([[True, False, False, True]])
    state = torch.full((1, 1, 1, 2), 9.0, dtype=torch.float64)
    y, _ = lti_scan(u, System(one / 2, one, one / 2), state, Packing(start))
    assert y.flatten().tolist() == [1, 0.5, 0.25, 0]


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        lti_scan(None, None, None, None, impl="cuda")
