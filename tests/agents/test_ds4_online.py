"""Decision S4's on-policy half: stored states, targets, what an update touches and learns."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

from decision_s4.agents.ds4_online import DS4OnlineLearner, DS4OnlineOptions
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.replay import Replay, Transition, next_step, this_step
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.stored_state import LastLayer, ReadOuts, WholeState, stored_state
from decision_s4.envs.actions import disturbed
from decision_s4.envs.errors import UserError
from decision_s4.envs.timestep import TimeStep

OBSERVATION = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))


def make_policy(backbone="s4", **options):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_layers": 2, "d_embed": 4, "return_scale": 1.0}
    policy = SequencePolicy(OBSERVATION, ACTION, PolicyOptions(backbone, **sizes | options))
    with torch.no_grad():
        for block in policy.backbone.blocks:
            if hasattr(block.mixer, "c"):
                block.mixer.c.normal_()  # zero at first, which would hide the memory
    return policy.eval()


def make_learner(pretrained=False, policy=None, **options):
    options = {"freeze": "memory", "anchor_weight": 1.0} | options
    return DS4OnlineLearner(policy or make_policy(), DS4OnlineOptions(**options), pretrained)


def steps(count, rows=4):
    """Time steps of `rows` episodes from their beginning."""
    no = torch.zeros(rows, dtype=torch.bool)
    for t in range(count):
        yield TimeStep(
            torch.randn(rows, 3),
            torch.rand(rows, 2),
            torch.randn(rows),
            torch.randn(rows),
            torch.full((rows,), t == 0),
            no,
            no,
        )


def make_batch(learner, count=3, rows=4, **fields):
    """Transitions at time `count` of random episodes."""
    torch.manual_seed(1)
    policy, state = learner.policy, learner.policy.initial_state(rows)
    with torch.no_grad():
        for step in steps(count, rows):
            _, state = policy.step(step, state)
        (seen, *_), (later, *_) = steps(1, rows), steps(1, rows)
        seen = seen._replace(start=torch.zeros(rows, dtype=torch.bool))
        _, after = policy.step(seen, state)
    reward = torch.randn(rows)
    batch = Transition(
        seen.observation,
        seen.previous_action,
        seen.start,
        seen.return_to_go,
        learner.stored.keep(state, seen),
        torch.rand(rows, 2),
        reward,
        torch.tensor([True, False] * (rows // 2)),
        later.observation,
        seen.return_to_go - reward,
        None,
        torch.zeros(rows, dtype=torch.int64),
    )
    batch = batch._replace(next_state=learner.stored.keep(after, next_step(batch)))
    return batch._replace(**fields)


@pytest.mark.parametrize(("backbone", "kept"), [("s4", ReadOuts), ("s4d", ReadOuts), ("gru", None)])
def test_a_step_from_the_stored_state_is_the_policys_own(backbone, kept):
    learner = make_learner(policy=make_policy(backbone))
    policy, stored = learner.policy, learner.stored
    assert isinstance(stored, kept or WholeState)
    state = policy.initial_state(4)
    for step in steps(5):
        if not step.start.any():
            found = stored.step(policy, step, stored.keep(state, step))
            expected, _ = policy.step(step, state)
            assert_close(found, expected)
            mine, own = (
                torch.autograd.grad(x.square().sum(), list(policy.project.parameters()))
                for x in (found, expected)
            )
            assert_close(mine, own)
        with torch.no_grad():
            _, state = policy.step(step, state)


def test_what_the_read_outs_are_of_follows_the_trained_skip_and_nothing_else():
    learner = make_learner()
    policy, stored = learner.policy, learner.stored
    (step,) = steps(1)
    state = tuple(torch.randn_like(x) for x in policy.initial_state(4))
    kept = stored.keep(state, step)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    no_start = step._replace(start=torch.zeros_like(step.start))
    assert_close(stored.step(policy, no_start, kept), policy.step(no_start, state)[0])


@pytest.mark.parametrize("freeze", ["memory", "core", "nothing"])
def test_what_is_frozen_stands_still(freeze):
    learner = make_learner(freeze=freeze, actor_every=1, actor_learning_rate=1e-2)
    before = copy.deepcopy(learner.policy)
    learner.update(make_batch(learner), trains_actor=True)
    changed = {
        name.rpartition(".")[2]
        for (name, new), old in zip(
            learner.policy.named_parameters(), before.parameters(), strict=True
        )
        if ".mixer." in name and not torch.equal(new, old)
    } & {"c", "b", "log_dt", "log_decay", "frequency", "p"}
    trained = {"memory": set(), "core": {"c"}}
    expected = trained.get(freeze, {"c", "b", "log_dt", "log_decay", "frequency", "p"})
    assert changed == expected


def test_the_actor_stands_still_bit_for_bit_while_the_critics_warm_up():
    learner = make_learner(actor_every=1)
    actor, critic = copy.deepcopy(learner.policy), copy.deepcopy(learner.critic)
    for _ in range(3):
        learner.update(make_batch(learner), trains_actor=False)
    for new, old in zip(learner.policy.parameters(), actor.parameters(), strict=True):
        assert torch.equal(new, old)
    for new, old in zip(learner.target_policy.parameters(), actor.parameters(), strict=True):
        assert torch.equal(new, old)
    assert not torch.equal(learner.critic.out.weight, critic.out.weight)


def test_no_gradient_goes_back_through_time():
    """A gradient of the actor's loss is the same for a state that knows how it came about."""
    learner = make_learner(pretrained=True, freeze="nothing")
    policy = learner.policy
    state = policy.initial_state(4)
    for step in steps(3):
        _, state = policy.step(step, state)  # carries the graph of three steps
    batch = make_batch(learner)
    severed = tuple(x.detach() for x in state)
    loss, _ = learner.actor_loss(batch._replace(state=severed))
    seen = this_step(batch)
    features, _ = policy.step(seen._replace(start=torch.zeros_like(seen.start)), severed)
    action = policy.head.act(features)
    values = learner.critic(batch.observation, action, batch.return_to_go)[0]
    expected = -values.mean() / values.detach().abs().mean()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    # The anchor's distance is zero where nothing has moved, and so is its gradient.
    assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))


def test_the_target_by_hand():
    learner = make_learner(target_noise=0.0, discount=0.5)
    for parameter in learner.target_critic.parameters():
        parameter.zero_()
    learner.target_critic.out.bias.copy_(torch.tensor([7.0, 3.0]).view(2, 1, 1))
    batch = make_batch(learner, reward=torch.tensor([1.0, 2, 3, 4]))
    # The lower of 7 and 3, halved, unless the episode terminated there.
    assert_close(learner.target(batch), torch.tensor([1.0, 3.5, 3.0, 5.5]))


def test_the_target_acts_from_the_state_after_the_step():
    learner = make_learner(target_noise=0.0)
    batch = make_batch(learner)
    other = batch._replace(next_state=batch.next_state + 1)
    assert not torch.allclose(learner.target(batch)[1::2], learner.target(other)[1::2])
    assert_close(learner.target(batch)[::2], batch.reward[::2])


@pytest.mark.parametrize(("rate", "every", "moves"), [(1.0, 2, [0, 1, 0, 1]), (0.5, 1, [0.5] * 4)])
def test_targets_follow_by_averaging_or_by_copies(rate, every, moves):
    learner = make_learner(target_rate=rate, target_every=every)
    for moved in moves:
        before = learner.target_critic.out.weight.clone()
        learner.update(make_batch(learner), trains_actor=False)
        way = learner.critic.out.weight - before
        assert_close(learner.target_critic.out.weight - before, moved * way)


def test_noise_is_in_units_of_half_the_range_and_clipped():
    action, noise = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.5, 4.0]])
    assert_close(disturbed(ACTION, action, noise), torch.tensor([[1.0, 1.0]]))


def transitions(rewards, first_return):
    count = len(rewards)
    returns = torch.tensor([first_return - sum(rewards[:t]) for t in range(count)])
    reward = torch.tensor(rewards)
    zeros, no = torch.zeros(count, 1), torch.zeros(count, dtype=torch.bool)
    born = torch.zeros(count, dtype=torch.int64)
    return Transition(
        zeros, zeros, no, returns, zeros, zeros, reward, no, zeros, returns - reward, zeros, born
    )


def test_hindsight_by_hand():
    replay = Replay(10)
    replay.add(transitions([5.0], 9.0))
    positions = replay.add(transitions([1.0, 2.0, 3.0], 10.0))
    assert replay.store.return_to_go[:4].tolist() == [9, 10, 9, 7]
    replay.relabel(positions, residual=10.0 - 6.0)
    assert replay.store.return_to_go[:4].tolist() == [9, 6, 5, 3]
    assert replay.store.next_return_to_go[:4].tolist() == [4, 5, 3, 0]


def test_hindsight_leaves_alone_what_has_been_overwritten():
    replay = Replay(4)
    old = replay.add(transitions([1.0, 1.0], 2.0))
    replay.add(transitions([1.0, 1.0, 1.0], 3.0))  # the last lies where `old` began
    replay.relabel(old, residual=100.0)
    assert replay.store.return_to_go.tolist() == [1, -99, 3, 2]
    assert replay.recent(2).return_to_go.tolist() == [2, 1]


def test_a_replay_goes_on_bit_for_bit():
    replay = Replay(4)
    replay.add(transitions([1.0, 2, 3], 6.0))
    replay.add(transitions([4.0, 5, 6], 15.0))
    other = Replay(4)
    other.load_state_dict(replay.state_dict())
    for each in (replay, other):
        each.add(transitions([7.0], 7.0))
    assert other.store.reward.tolist() == replay.store.reward.tolist() == [5, 6, 7, 4]
    draws = [each.sample(8, torch.Generator().manual_seed(0)).reward for each in (replay, other)]
    assert torch.equal(*draws)


def test_updates_go_on_bit_for_bit():
    def later(learner, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            learner.update(make_batch(learner), True, generator)
        return learner.policy.state_dict() | {"q": learner.critic.out.weight}

    learner = make_learner(pretrained=True)
    later(learner, 0)
    other = make_learner(pretrained=True, policy=make_policy(n_layers=2))
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    first, second = later(learner, 1), later(other, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_actor_climbs_what_the_critic_says():
    """Reward is minus the squared distance to an action: a wrong sign or unit goes elsewhere."""
    learner = make_learner(discount=0.0, actor_every=1, actor_learning_rate=3e-3, anchor_weight=0.0)
    batch, wish = make_batch(learner, rows=64), torch.tensor([1.0, 0.25])

    @torch.no_grad()
    def distance():
        features = learner.stored.step(learner.policy, this_step(batch), batch.state)
        return float((learner.policy.head.act(features) - wish).square().sum(-1).mean())

    before = distance()
    for _ in range(1500):
        action = torch.rand(64, 2) * torch.tensor([4.0, 1.0]) - torch.tensor([2.0, 0.0])
        reward = -(action - wish).square().sum(-1)
        learner.update(batch._replace(action=action, reward=reward), True)
    assert distance() < 0.2 * before


def test_the_anchor_holds_the_actor():
    @torch.no_grad()
    def distance(learner, batch):
        policies = (make_policy(), learner.policy)
        acts = [p.head.act(learner.stored.step(p, this_step(batch), batch.state)) for p in policies]
        return float((acts[0] - acts[1]).norm())

    def moved(weight):
        learner = make_learner(
            pretrained=True, anchor_weight=weight, actor_every=1, actor_learning_rate=1e-3
        )
        batch = make_batch(learner, rows=64)
        for _ in range(50):
            learner.update(batch, True, torch.Generator().manual_seed(0))
        return distance(learner, batch)

    assert moved(100.0) < 0.5 * moved(0.0)


def test_actions_that_are_no_box_are_refused():
    policy = SequencePolicy(OBSERVATION, spaces.Discrete(3), PolicyOptions(d_model=8))
    with pytest.raises(UserError, match=r"Box action space, not Discrete\(3\)"):
        DS4OnlineLearner(policy, DS4OnlineOptions(), pretrained=False)


@pytest.mark.parametrize(
    ("freeze", "returns_change", "way", "shape"),
    [
        ("auto", False, ReadOuts, (4, 3, 8)),  # from scratch
        ("states", False, LastLayer, (4, 2, 8)),
        ("states", True, ReadOuts, (4, 3, 8)),
        ("memory", False, ReadOuts, (4, 3, 8)),
    ],
)
def test_what_is_kept_is_the_least_that_is_exact(freeze, returns_change, way, shape):
    """Three layers of width 8; what was kept before the actor moved still gives its own step."""
    policy = make_policy(n_layers=3, mlp_ratio=2)
    assert isinstance(stored_state(policy, returns_change), WholeState)  # C is trained
    options = DS4OnlineOptions(freeze, actor_learning_rate=0.1, actor_every=1)
    learner = DS4OnlineLearner(policy, options, False, returns_change)
    assert isinstance(learner.stored, way)
    state = tuple(torch.randn_like(x) for x in policy.initial_state(4))
    (step,) = steps(1)
    step = step._replace(start=torch.zeros_like(step.start))
    kept, before = learner.stored.keep(state, step), policy.step(step, state)[0]
    learner.update(make_batch(learner), True)
    after = policy.step(step, state)[0]
    assert kept.shape == shape and (after - before).abs().max() > 1e-2
    assert_close(learner.stored.step(policy, step, kept), after)


@pytest.mark.parametrize("backbone", ["s4", "gru"])
def test_states_stay_exact_where_all_that_feeds_them_stands_still(backbone):
    learner = make_learner(
        policy=make_policy(backbone, mlp_ratio=2), freeze="states", actor_learning_rate=0.1
    )
    policy, episode = learner.policy, list(steps(4))
    before, state = [], policy.initial_state(4)
    with torch.no_grad():
        for step in episode:
            features, state = policy.step(step, state)
            before.append((features, state))
    for _ in range(4):
        learner.update(make_batch(learner), True)
    state = policy.initial_state(4)
    with torch.no_grad():
        for step, (old, kept) in zip(episode, before, strict=True):
            features, state = policy.step(step, state)
            assert_close(state, kept, rtol=0, atol=0)
            assert (features - old).abs().max() > 1e-2


def test_without_stored_states_a_step_begins_from_a_new_state():
    learner = make_learner(store_states=False)
    policy, (step,) = learner.policy, steps(1)
    step = step._replace(start=torch.zeros_like(step.start))
    state = tuple(torch.randn_like(x) for x in policy.initial_state(4))
    kept = learner.stored.keep(state, step)
    assert kept.shape == (4, 0)
    found, new = learner.stored.step(policy, step, kept), policy.initial_state(4)
    assert_close(found, policy.step(step, new)[0])
    assert not torch.allclose(found, policy.step(step, state)[0])


def test_the_anchor_is_let_go_of_by_and_by():
    learner = make_learner(pretrained=True, anchor_weight=0.5, anchor_final=0.1)
    found = []
    for progress in (0.0, 0.5, 1.0):
        learner.set_progress(progress)
        found.append(learner.anchor)
    assert found == pytest.approx([0.5, 0.3, 0.1])


def test_the_critics_see_images_with_the_eyes_of_the_policy():
    space, sizes = spaces.Box(0, 255, (24, 24, 1), np.uint8), {"d_model": 8, "n_layers": 1}
    policy = SequencePolicy(space, ACTION, PolicyOptions(eyes="vit", **sizes)).eval()
    critic, images = make_learner(policy=policy).critic, torch.zeros(2, 24, 24, 1).byte()
    seen, shown = critic.observation_features(images), policy.observation_features(images)
    assert torch.equal(seen, shown)
