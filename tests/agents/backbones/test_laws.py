"""The laws that every backbone obeys (shapes: B rows, T steps, D width).

A backbone joins by being registered.
"""

import copy
import re

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.backbones import BACKBONES, make_backbone
from decision_s4.agents.backbones.base import parse_options
from decision_s4.envs.errors import UserError

D = 8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
VARIANTS = (
    "deltanet,beta_max=2",
    "hedgehog,bias=true",
    "hybrid,linear=mamba",
    "hyena,filters=implicit",
    "transformer,positions=none",
)
"""Backbones with options that make another layer of them."""
names = pytest.mark.parametrize("name", sorted([*BACKBONES, *VARIANTS]))
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def built(name: str, **sizes):
    """Of `NAME` or `NAME,option=value`."""
    name, *pairs = name.split(",")
    return make_backbone(name, D, **sizes, **parse_options(pairs))


def fresh(name: str, dtype=torch.float64):
    torch.manual_seed(0)
    return built(name, n_layers=2).to(dtype)


def make(name: str, dtype=torch.float64):
    """A backbone with every parameter stirred and trained: no part starts at zero or is frozen."""
    backbone = fresh(name, dtype).requires_grad_(True)
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


def errors(found, expected) -> torch.Tensor:
    """Relative norm error of each leaf."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return torch.stack([(a - b).norm().detach() / (b.norm() + 1e-30) for a, b in pairs])


def assert_near(found, expected, tolerance=1e-10):
    assert (errors(found, expected) <= tolerance).all()


def trained(name: str, dtype=torch.float64):
    backbone = make(name, dtype)
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-2)
    x, start = data(40, dtype=dtype)
    for _ in range(20):
        optimiser.zero_grad()
        backbone(x, start=start)[0].cumsum(1).square().mean().backward()
        optimiser.step()
    return backbone


def copied(name: str, dtype=torch.float64):
    return copy.deepcopy(trained(name, dtype))


def loaded(name: str, dtype=torch.float64):
    backbone = fresh(name, dtype)
    backbone.load_state_dict(trained(name, dtype).state_dict())
    return backbone


def with_mlp(name: str, dtype=torch.float64):
    return built(name, n_layers=1, mlp_ratio=2.0).to(dtype)


@names
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("steps", [1, 2, 3, 63, 64, 65, 257, 1000])
def test_forward_equals_steps(name, dtype, steps):
    backbone = make(name, dtype)
    x, start = data(steps, dtype=dtype)
    with torch.no_grad():
        assert_near(backbone(x, start=start), stepped(backbone, x, start), TOLERANCE[dtype])


@names
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("condition", [fresh, trained, copied, loaded, with_mlp])
def test_forward_equals_steps_whatever_became_of_it(name, dtype, condition):
    backbone = condition(name, dtype)
    x, start = data(100, dtype=dtype)
    with torch.no_grad():
        assert_near(backbone(x, start=start), stepped(backbone, x, start), TOLERANCE[dtype])


@names
@torch.no_grad()
def test_ten_thousand_steps_do_not_drift(name):
    """Steps from a late state equal the scan; both are what float64 has, but for rounded poles."""
    backbone, late = make(name, torch.float32), 9_800
    x, start = torch.randn(1, 10_000, D), torch.zeros(1, 10_000, dtype=torch.bool)
    y, final = backbone(x, start=start)
    _, state = backbone(x[:, :late], start=start[:, :late])
    stepwise = stepped(backbone, x[:, late:], start[:, late:], state)
    assert_near(stepwise, (y[:, late:], final), 1e-5)
    exact, last = backbone.double()(x.double(), start=start)
    assert_near((y[:, late:], final), (exact[:, late:], last), 1e-4)


@names
@pytest.mark.parametrize("change", [copied, loaded])
def test_copies_are_the_same_function(name, change):
    x, start = data(70)
    assert_near(change(name)(x, start=start), trained(name)(x, start=start))


@names
@dtypes
@pytest.mark.parametrize("cut", [1, 31, 64, 99])
def test_splitting_a_sequence_changes_nothing(name, dtype, cut):
    backbone = make(name, dtype)
    x, start = data(100, dtype=dtype)
    y, final = backbone(x, start=start)
    first, state = backbone(x[:, :cut], start=start[:, :cut])
    second, state = backbone(x[:, cut:], state, start[:, cut:])
    assert_near((torch.cat([first, second], 1), state), (y, final), TOLERANCE[dtype])


@names
@dtypes
def test_packed_episodes_equal_separate_ones_and_share_no_gradient(name, dtype):
    backbone = make(name, dtype)
    x = torch.randn(1, 50, D, dtype=dtype, requires_grad=True)
    start = torch.zeros(1, 50, dtype=torch.bool)
    start[0, 20] = True
    packed, _ = backbone(x, start=start)
    separate = torch.cat([backbone(x[:, :20])[0], backbone(x[:, 20:])[0]], 1)
    assert_near(packed, separate, TOLERANCE[dtype])
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
    dirty.requires_grad_()
    state = tree_map(lambda leaf: torch.full_like(leaf, poison), backbone.initial_state(len(x)))
    found, _ = backbone(dirty, state, start)
    # Not a bit; but how many steps are active, NaN is not, cuts all of SeqBoat's attention.
    rounding = 1e-12 if name == "seqboat" else 0
    torch.testing.assert_close(found[:, 25:], clean[:, 25:], rtol=0, atol=rounding)
    (gradient,) = torch.autograd.grad(found[:, 25:].sin().sum(), dirty)
    assert gradient[:, 25:].isfinite().all()
    y, _ = backbone.step(x[:, 25], state, start[:, 25])
    assert_near(y, clean[:, 25])


@names
def test_causality(name):
    backbone = make(name)
    x = torch.randn(1, 40, D, dtype=torch.float64, requires_grad=True)
    y, _ = backbone(x)
    (gradient,) = torch.autograd.grad(y[:, 17].sin().sum(), x)
    assert gradient[:, 18:].abs().max() == 0
    assert (gradient[:, :18].abs().amax(-1) > 0).all()  # and the whole past is seen


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


def in_parallel(backbone, x, start, state):
    return backbone(x, state, start)


def gradients(run, backbone, dtype):
    """Of a loss on outputs and final state, in the input, the state before, every parameter."""
    x, start = data(75)
    _, state = stepped(backbone, x[:, :5], start[:, :5])
    x, start = x[:, 5:], start[:, 5:]
    backbone = copy.deepcopy(backbone).to(dtype)
    state = tree_map(lambda leaf: leaf.detach().to(dtype).requires_grad_(), state)
    inputs = [x.to(dtype).requires_grad_(), *tree_leaves(state), *backbone.parameters()]
    y, final = run(backbone, inputs[0], start, state)
    loss = y.sin().sum() + sum(leaf.cos().sum() for leaf in tree_leaves(final))
    return torch.autograd.grad(loss, inputs)


@names
def test_gradients_equal_those_of_the_loop(name):
    found, expected = (gradients(run, make(name), torch.float64) for run in (in_parallel, stepped))
    assert_near(found, expected)


@names
def test_float32_gradients_are_as_good_as_those_of_the_loop(name):
    """Both stray from float64 as far as rounded poles make them."""
    backbone = make(name)
    expected = gradients(stepped, backbone, torch.float64)
    found, loop = (
        errors(gradients(run, backbone, torch.float32), expected) for run in (in_parallel, stepped)
    )
    assert (found <= 1e-5 + 3 * loop).all()
    assert (found <= 1e-3).all()


@names
@dtypes
def test_row_order_batch_size_and_padding_change_nothing(name, dtype):
    backbone, tolerance = make(name, dtype), TOLERANCE[dtype]
    x, start = data(50, dtype=dtype)
    y, final = backbone(x, start=start)
    order = torch.tensor([2, 0, 1])
    assert_near(backbone(x[order], start=start[order])[0], y[order], tolerance)
    assert_near(backbone(x[1:2], start=start[1:2])[0], y[1:2], tolerance)
    padded = torch.cat([x, torch.full((3, 7, D), float("nan"), dtype=x.dtype)], 1)
    valid = (torch.arange(57) < 50).expand(3, 57)
    longer = torch.cat([start, torch.ones(3, 7, dtype=torch.bool)], 1)
    found, state = backbone(padded, start=longer, valid=valid)
    assert_near((found[:, :50], state), (y, final), tolerance)


@names
@dtypes
def test_steps_that_are_not_valid_might_as_well_be_cut_out(name, dtype):
    backbone = make(name, dtype)
    x, start = data(50, rows=1, dtype=dtype)
    valid = torch.rand(1, 50) < 0.7
    start &= valid
    y, final = backbone(x, start=start, valid=valid)
    expected = backbone(x[valid][None], start=start[valid][None])
    assert_near((y[valid][None], final), expected, TOLERANCE[dtype])


@names
def test_bfloat16_autocast_stays_near(name):
    backbone = make(name, torch.float32)
    x, start = data(200, dtype=torch.float32)
    with torch.no_grad():
        expected, _ = backbone(x, start=start)
        with torch.autocast("cpu", torch.bfloat16):
            (found, state), (steps, _) = backbone(x, start=start), stepped(backbone, x, start)
            first, between = backbone(x[:, :90], start=start[:, :90])
            halves = torch.cat([first, backbone(x[:, 90:], between, start[:, 90:])[0]], 1)
    assert_near(found.float(), expected, 2e-2)
    assert_near(steps.float(), found.float(), 2e-2)
    assert_near(halves.float(), found.float(), 2e-2)
    assert all(leaf.dtype == torch.float32 for leaf in tree_leaves(state))


@names
def test_what_does_not_fit_is_named(name):
    backbone = make(name)
    other = make_backbone("gru" if name == "lstm" else "lstm", D, n_layers=2).double()
    x, start = data(5)
    for call, words in {
        lambda: backbone(x[..., :3]): "shape",
        lambda: backbone(x[:, :0]): "empty",
        lambda: backbone(x.long()): "type",
        lambda: backbone(x.float()): "type",
        lambda: backbone(x, start=start.float()): "start",
        lambda: backbone(x, valid=start[:, :2]): "valid",
        lambda: backbone(x, backbone.initial_state(7)): "state",
        lambda: backbone.step(x, backbone.initial_state(3)): "shape",
        lambda: backbone(x, other.initial_state(3)): "state",
        lambda: backbone.step(x[:, 0], backbone.initial_state(1)): "state",
        lambda: backbone.step(x[:, 0], other.initial_state(3)): "state",
        lambda: backbone.step(x[:, 0], None): "state",
        lambda: backbone.step(x[:, 0], backbone.initial_state(3), start): "start",
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "s4dd"}, "did you mean 's4d'"),
        ({"d_stat": 3}, "did you mean 'd_state'"),
        ({"d_state": "many"}, "needs int"),
        ({"d_model": 0}, "d_model 0"),
        ({"n_layers": 0}, "n_layers 0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio -1.0"),
        ({"dropout": 1.0}, r"dropout 1.0 in \[0, 1\)"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone(**({"name": "s4"} | options))


def test_options_are_read_as_written():
    pairs = ["d_state=32", "dt-min=1e-3", "train_ssm=false", "init=lin"]
    expected = {"d_state": 32, "dt_min": 0.001, "train_ssm": False, "init": "lin"}
    assert parse_options(pairs) == expected


@pytest.mark.parametrize("pair", ["d_state", "init=[", "init=2024-13-01", f"d={'9' * 5000}"])
def test_a_malformed_option_is_named(pair):
    with pytest.raises(UserError, match=rf"backbone option '{re.escape(pair)}'"):
        parse_options([pair])
