"""A push along what a policy copies moves its action as far; the state is moved where it should."""

import numpy as np
import pytest
import torch
from planted import new_policy, planted
from test_layer_probes import STEP, episode
from torch.utils._pytree import tree_map

from decision_s4.agents.probes.base import Target, make_probe
from decision_s4.agents.probes.context import make_context
from decision_s4.agents.probes.linear import PROGRESS_LABELS, Readout
from decision_s4.agents.probes.recordings import made, play
from decision_s4.agents.probes.steering import (
    moved_state,
    random_pushes,
    state_numbers,
    states_of,
)
from decision_s4.envs.task import Task

LAG, STEPS = 1, 40


def telling(policy, seed: int):
    """An episode whose first observation is how much of it is done."""
    draw = np.random.default_rng(seed)
    observation = torch.from_numpy(draw.normal(size=(STEPS, 3)))
    observation[:, 0] = torch.arange(STEPS) / STEPS
    numbers = [torch.from_numpy(draw.normal(size=shape)) for shape in ((STEPS, 2), STEPS, STEPS)]
    return made(policy, str(seed), observation, numbers[0], *numbers[1:])


def test_a_push_along_what_is_copied_moves_the_action_by_the_label():
    policy = planted(LAG)
    first, *others = [telling(policy, seed) for seed in range(4)]
    contexts = [make_context(policy, one, [first], 20, Target(0)) for one in (first, *others)]
    rows = make_probe("steering").examine(contexts).tables[0].rows
    label, where, score, change, random, beats = rows[0]
    assert (label, where, beats) == (PROGRESS_LABELS[0], "blocks.0.input", "100%")
    assert score == pytest.approx(1, abs=1e-3)
    assert change == pytest.approx((np.arange(STEPS) / STEPS).std(), rel=0.02)
    assert 0 < random < 0.6 * change
    assert rows[2][1] == "recurrent state"
    assert rows[2][3:5] == [0, 0]  # the delay reads no state


def test_pushes_are_as_long_as_each_other_and_read_one_standard_deviation():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 5)) * [1, 10, 0.1, 1, 3]
    readout = Readout.fit(x, x @ [1.0, 0.2, 5, 0, 0])
    moved = readout.read(x + readout.push()) - readout.read(x)
    np.testing.assert_allclose(moved, readout.label_std)
    lengths = [np.linalg.norm(push / readout.std) for push in random_pushes(readout)]
    np.testing.assert_allclose(lengths, np.linalg.norm(readout.push() / readout.std))


def test_more_numbers_than_steps_are_fitted_the_same():
    """The smaller system gives the larger one's weights."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(30, 20)), draw.normal(size=30)
    wide = np.concatenate([x, np.zeros((30, 40))], 1)
    np.testing.assert_allclose(Readout.fit(wide, y).weight[:20], Readout.fit(x, y).weight)


@pytest.mark.parametrize("backbone", ["s4", "mamba", "transformer", "lstm", "s5"])
def test_a_state_is_moved_number_by_number(backbone):
    policy = new_policy(backbone)
    states, times = states_of(policy, episode(policy, 0))
    assert len(states) == len(times) > 3
    with torch.no_grad():
        _, state = policy(episode(policy, 0).batch(0, STEP))
    push = torch.randn(states.shape[1], dtype=torch.float64)
    moved = moved_state(state, push.numpy())
    torch.testing.assert_close(state_numbers(moved) - state_numbers(state), push)
    tree_map(lambda a, b: a.dtype == b.dtype or pytest.fail(f"{a.dtype}"), moved, state)


def test_the_loop_is_pushed_both_ways(cartpole):
    task = Task("CartPole-v1", (100.0,))
    recordings = play(cartpole, task, 3, 0, 30)
    contexts = [
        make_context(cartpole, one, recordings[:1], 5, Target(0, "logit")) for one in recordings
    ]
    rows = make_probe("steering").examine(contexts, task).tables[1].rows
    names = [row[0] for row in rows]
    assert names[:3] == ["nothing", f"+ {PROGRESS_LABELS[0]}", f"− {PROGRESS_LABELS[0]}"]
    assert len(names) == 9
