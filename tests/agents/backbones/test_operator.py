"""Every backbone's layers as linear maps at one input, and marks that cost nothing when unread.

Shapes: B rows, T steps, D width. A backbone joins by being registered.
"""

import pytest
import torch
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import BACKBONES, make_backbone, ops
from decision_s4.agents.probes.horizon import time_constants
from decision_s4.envs.errors import UserError

D, STEPS = 8, 11
names = pytest.mark.parametrize("name", sorted(BACKBONES))
parts = pytest.mark.parametrize("part", ["layer", "scan"])


def make(name: str):
    torch.manual_seed(0)
    backbone = make_backbone(name, D, n_layers=2).double().requires_grad_(True)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def data(backbone, rows: int = 2):
    """Inputs, a state of three steps before them, and one start in the second row."""
    torch.manual_seed(1)
    x = torch.randn(rows, STEPS + 3, D, dtype=torch.float64)
    _, state = backbone(x[:, :3])
    start = torch.zeros(rows, STEPS, dtype=torch.bool)
    start[1, 4] = True
    return x[:, 3:], tree_map(torch.Tensor.detach, state), start


def operators(name: str, part: str):
    backbone = make(name)
    x, state, start = data(backbone)
    return backbone.operator(x, state, start, part=part), start


def assert_near(found, expected, tolerance=1e-10):
    assert (found - expected).norm() <= tolerance * expected.norm()


@names
@parts
def test_the_operator_is_the_layer(name, part):
    for op in operators(name, part)[0]:
        mixed = op.apply(op.values) + op.bias + op.state_read
        assert_near(op.finish(mixed), op.mixer(op.x, op.state, op.packing)[0])


@names
@parts
def test_it_is_linear(name, part):
    for op in operators(name, part)[0]:
        v, w = torch.randn(2, *op.values.shape, dtype=torch.float64)
        assert_near(op.apply(2 * v - 3 * w), 2 * op.apply(v) - 3 * op.apply(w))


@names
@parts
def test_its_rows_reproduce_it_and_never_look_ahead(name, part):
    for op in operators(name, part)[0]:
        rows, v = op.dense(), torch.randn_like(op.values)
        assert rows.shape == (2, op.heads, STEPS, STEPS)
        assert_near(op.combine(rows, v), op.apply(v))
        assert torch.equal(rows.triu(1), torch.zeros_like(rows))
        assert torch.equal(op.rows([7, 2]), rows[:, :, [7, 2]])


@names
@parts
def test_closed_rows_equal_those_by_gradient(name, part, monkeypatch):
    for op in operators(name, part)[0]:
        rows = op.rows([3, 9])
        monkeypatch.setattr(op.mixer, "closed_rows", lambda *_: None)
        assert_near(rows, op.rows([3, 9]))


@names
@parts
@pytest.mark.parametrize("holes", [False, True])
def test_steps_that_are_not_valid_weigh_nothing(name, part, holes):
    backbone = make(name)
    x, state, start = data(backbone)
    valid = torch.ones_like(start)
    valid[:, 9:] = valid[1, 3] = False  # the end of an episode
    if holes:
        valid[0, 5] = False
    for op in backbone.operator(x, state, start, valid, part):
        rows = op.dense()
        v = torch.randn_like(op.values)
        found, expected = op.combine(rows, v)[valid], op.apply(v)[valid]
        assert_near(found, expected)
        assert rows.transpose(1, 3)[~valid].abs().max() == 0


@names
@parts
def test_a_single_step_is_a_layer_too(name, part):
    backbone = make(name)
    x, state, start = data(backbone)
    for op in backbone.operator(x[:, :1], state, start[:, :1], part=part):
        assert op.rows([0]).shape == (2, op.heads, 1, 1)
        assert_near(op.combine(op.dense(), op.values), op.apply(op.values))
        constants = time_constants(op)
        assert constants is None or (constants > 0).all()


@names
def test_rows_do_not_cross_a_start(name):
    ops_, start = operators(name, "layer")
    assert start[1, 4]
    for op in ops_:
        assert op.rows([6])[1, :, :, :4].abs().max() == 0
        assert op.state_read[1, 4:].abs().max() == 0


@names
def test_float32_is_near(name):
    backbone = make(name)
    x, state, start = data(backbone)
    x, state = x.float(), tree_map(lambda leaf: leaf.float(), state)
    for op in backbone.float().operator(x, state, start):
        mixed = op.combine(op.dense(), op.values) + op.bias + op.state_read
        assert_near(op.finish(mixed), op.mixer(op.x, op.state, op.packing)[0], 1e-5)


@names
def test_a_dense_map_too_large_is_refused_with_its_size(name):
    op = operators(name, "layer")[0][0]
    with pytest.raises(UserError, match=rf"{2 * op.heads * STEPS**2:,} elements.*rows"):
        op.dense(max_elements=100)


@names
@pytest.mark.parametrize("step", [-1, STEPS])
def test_a_step_that_is_not_there_is_named(name, step):
    with pytest.raises(UserError, match=f"step {step} is not there"):
        operators(name, "layer")[0][0].rows([step])


@names
def test_rules_off_equal_the_fused_layers(name):
    """In outputs, states and gradients: what runs for probes is the same function."""
    backbone = make(name)
    x, state, start = data(backbone)

    def run():
        y, after = backbone(x, state, start)
        return y, after, torch.autograd.grad(y.sin().sum(), list(backbone.parameters()))

    expected = run()
    with ops.rules("off"):
        found = run()
    tree_map(lambda a, b: assert_near(a, b), found, expected)


@names
@pytest.mark.parametrize("rules", sorted(ops.RULES))
def test_rules_change_gradients_alone(name, rules):
    backbone = make(name)
    x, state, start = data(backbone)
    before, _ = backbone(x, state, start)
    with ops.rules(rules):
        assert_near(backbone(x, state, start)[0], before)
    assert torch.equal(backbone(x, state, start)[0], before)  # and nothing is left behind


@names
def test_a_tap_reads_and_replaces(name):
    backbone = make(name)
    x, state, start = data(backbone)
    seen = []
    with ops.taps({"blocks.1.input": seen.append}):
        y, _ = backbone(x, state, start)
    assert_near(y, backbone(x, state, start)[0])
    with ops.taps({"blocks.1.input": lambda _: seen[0] * 0}):
        assert not torch.allclose(backbone(x, state, start)[0], y)
    with ops.taps({"blocks.1.input": lambda _: seen[0]}):  # what comes before no longer matters
        assert torch.equal(backbone(x * 0, state, start)[0], y)


def test_unknown_rules_are_named():
    with pytest.raises(UserError, match=r"rules 'lpr' are unknown.*lrp"):
        ops.rules("lpr")


def test_rules_may_be_made_for_the_purpose():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    with ops.rules(ops.Rules(product="half")):
        (gradient,) = torch.autograd.grad(ops.gate(x, 3 * x).sum(), x)
    assert torch.equal(gradient, 3 * x)  # half of 6 x


@pytest.mark.parametrize("kind", sorted(ops.ACTIVATIONS))
def test_ratios_are_those_of_the_activations(kind):
    x = torch.tensor([-30.0, -1.0, 0.0, 1e-300, 0.5, 30.0], dtype=torch.float64, requires_grad=True)
    with ops.rules("lrp"):
        y = ops.act(x, kind)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(y, ops.ACTIVATIONS[kind](x), rtol=1e-12, atol=0)
    assert torch.allclose(gradient * x, y, rtol=1e-12, atol=0)
