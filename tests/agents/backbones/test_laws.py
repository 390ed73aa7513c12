"""The laws that every backbone obeys (shapes: B rows, T steps, D width)."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.backbones import BACKBONES, make_backbone

D = 8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
names = pytest.mark.parametrize("name", sorted(BACKBONES))


def make(name: str, dtype=torch.float64):
    """A backbone with every parameter stirred, so that no part of it starts at zero."""
    torch.manual_seed(0)
    backbone = make_backbone(name, D, n_layers=2).to(dtype)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def data(steps: int, rows: int = 3, dtype=torch.float64):
    torch.manual_seed(steps)
    start = torch.rand(rows, steps) < 0.1
    start[0] = False
    return torch.randn(rows, steps, D, dtype=dtype), start


def stepped(backbone, x, start, state=None):
    state = backbone.initial_state(len(x)) if state is None else state
    constants, outputs = backbone.constants(), []
    for x_t, start_t in zip(x.unbind(1), start.unbind(1), strict=True):
        y, state = backbone.step(x_t, state, start_t, constants)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def assert_near(found, expected, tolerance=1e-10):
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    for a, b in pairs:
        assert (a - b).norm() <= tolerance * (b.norm() + 1e-30)


def trained(backbone):
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-3)
    x, start = data(40)
    for _ in range(20):
        optimiser.zero_grad()
        backbone(x, start=start)[0].square().mean().backward()
        optimiser.step()
    return backbone


@names
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [1, 2, 3, 63, 64, 65, 257, 1000])
def test_forward_equals_steps(name, dtype, steps):
    backbone = make(name, dtype)
    x, start = data(steps, dtype=dtype)
    with torch.no_grad():
        assert_near(backbone(x, start=start), stepped(backbone, x, start), TOLERANCE[dtype])


@names
@pytest.mark.parametrize("change", [trained, copy.deepcopy])
def test_forward_equals_steps_after(name, change):
    backbone = change(make(name))
    x, start = data(100)
    with torch.no_grad():
        assert_near(backbone(x, start=start), stepped(backbone, x, start))


@names
def test_loading_weights_gives_the_same_function(name):
    source, target = trained(make(name)), make(name)
    target.load_state_dict(source.state_dict())
    x, start = data(70)
    assert_near(stepped(target, x, start), source(x, start=start))


@names
@pytest.mark.parametrize("cut", [1, 31, 64, 99])
def test_splitting_a_sequence_changes_nothing(name, cut):
    backbone = make(name)
    x, start = data(100)
    y, final = backbone(x, start=start)
    first, state = backbone(x[:, :cut], start=start[:, :cut])
    second, state = backbone(x[:, cut:], state, start[:, cut:])
    assert_near((torch.cat([first, second], 1), state), (y, final))


@names
def test_packed_episodes_equal_separate_ones_and_share_no_gradient(name):
    backbone = make(name)
    x = torch.randn(1, 50, D, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(1, 50, dtype=torch.bool)
    start[0, 20] = True
    packed, _ = backbone(x, start=start)
    separate = torch.cat([backbone(x[:, :20])[0], backbone(x[:, 20:])[0]], 1)
    assert_near(packed, separate)
    (gradient,) = torch.autograd.grad(packed[:, 20:].sum(), x)
    assert gradient[:, :20].abs().max() == 0
    assert gradient[:, 20:].abs().max() > 0


@names
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start(name, poison):
    backbone = make(name)
    x, start = data(50)
    start[:, 25] = True
    clean, _ = backbone(x, start=start)
    dirty = x.clone()
    dirty[:, :25] = poison
    assert torch.equal(backbone(dirty, start=start)[0][:, 25:], clean[:, 25:])


@names
def test_causality(name):
    backbone = make(name)
    x = torch.randn(1, 40, D, dtype=torch.float64, requires_grad=True)
    y, _ = backbone(x)
    (gradient,) = torch.autograd.grad(y[:, 17].sum(), x)
    assert gradient[:, 18:].abs().max() == 0


@names
def test_nothing_is_written_in_place(name):
    backbone = make(name)
    x, start = data(30)
    state = backbone(x)[1]
    before = tree_map(torch.clone, (state, dict(backbone.state_dict())))
    backbone(x, state, start)
    backbone.step(x[:, 0], state, start[:, 0])
    for a, b in zip(
        tree_leaves(before), tree_leaves((state, dict(backbone.state_dict()))), strict=True
    ):
        assert torch.equal(a, b)


@names
def test_gradients_equal_those_of_the_loop(name):
    backbone = make(name)
    x, start = data(70)
    state = tree_map(lambda s: torch.randn_like(s).requires_grad_(), backbone.initial_state(3))
    inputs = [x.requires_grad_(), *tree_leaves(state), *backbone.parameters()]

    def gradients(run):
        y, final = run()
        loss = y.sin().sum() + sum(leaf.cos().sum() for leaf in tree_leaves(final))
        return torch.autograd.grad(loss, inputs)

    parallel = gradients(lambda: backbone(x, state, start))
    assert_near(parallel, gradients(lambda: stepped(backbone, x, start, state)), 1e-9)


@names
def test_row_order_batch_size_and_padding_change_nothing(name):
    backbone = make(name)
    x, start = data(50)
    y, final = backbone(x, start=start)
    order = torch.tensor([2, 0, 1])
    assert_near(backbone(x[order], start=start[order])[0], y[order])
    assert_near(backbone(x[1:2], start=start[1:2])[0], y[1:2])
    padded = torch.cat([x, torch.full((3, 7, D), float("nan"), dtype=x.dtype)], 1)
    valid = (torch.arange(57) < 50).expand(3, 57)
    longer = torch.cat([start, torch.ones(3, 7, dtype=torch.bool)], 1)
    found, state = backbone(padded, start=longer, valid=valid)
    assert_near((found[:, :50], state), (y, final))


@names
def test_bfloat16_autocast_stays_near(name):
    backbone = make(name, torch.float32)
    x, start = data(200, dtype=torch.float32)
    expected, _ = backbone(x, start=start)
    with torch.autocast("cpu", torch.bfloat16):
        found, state = backbone(x, start=start)
    assert_near(found.float(), expected, 2e-2)
    assert all(leaf.dtype == torch.float32 for leaf in tree_leaves(state))


@names
def test_what_does_not_fit_is_named(name):
    backbone = make(name)
    x, start = data(5)
    for call, words in {
        lambda: backbone(x[..., :3]): "shape",
        lambda: backbone(x.long()): "type",
        lambda: backbone(x, start=start.float()): "start",
        lambda: backbone(x, backbone.initial_state(7)): "state",
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean 's4d'"):
        make_backbone("s4dd")
    with pytest.raises(ValueError, match="did you mean 'd_state'"):
        make_backbone("s4", d_stat=3)
    with pytest.raises(ValueError, match="d_state 3"):
        make_backbone("s4", d_state=3)
