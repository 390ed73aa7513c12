"""Lockstep rollouts equal episodes played one by one; nothing leaks between rows or episodes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.envs.actions import environment_action
from decision_s4.envs.errors import SimulatorError, UserError
from decision_s4.envs.rollout import evaluate, rollout
from decision_s4.envs.scores import ReferenceScores

COUNT = "RolloutCount-v0"


class CountEnv(gym.Env):
    """Episode of `seed` steps paying 1, 2, 3, …; ends as terminated if `seed` is even.

    Fails where an action is not the number of steps taken, or where it is stepped past its end.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(0, 1000, (1,), np.float32)

    def __init__(self, strict: bool = True):
        self.strict = strict

    def reset(self, *, seed=None, options=None):
        self.length, self.time = seed, 0
        return np.array([seed, 0.0]), {}

    def step(self, action):
        if self.strict and action[0] != self.time:
            raise ValueError(f"action {action[0]} at step {self.time}")
        if self.time == self.length:
            raise ValueError("stepped past its end")
        self.time += 1
        ended, even = self.time == self.length, self.length % 2 == 0
        observation = np.array([self.length, float(self.time)])
        return observation, float(self.time), ended and even, ended and not even, {}


class TreeEnv(gym.Env):
    """Dict observation with a Tuple inside, Tuple action of Discrete and Box; pays the Discrete."""

    observation_space = spaces.Dict(
        {
            "pair": spaces.Tuple((spaces.Discrete(9), spaces.Box(0, 1, (2,)))),
            "time": spaces.Discrete(9),
        }
    )
    action_space = spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (2,))))

    def observe(self):
        return {"pair": (self.time, np.full(2, 0.5, np.float32)), "time": np.int64(self.time)}

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        return self.observe(), float(action[0]), False, self.time == 3, {}


gym.register(COUNT, entry_point=CountEnv)
gym.register("RolloutTree-v0", entry_point=TreeEnv)


class CountingAgent:
    """Its state counts the steps since `start`; the action is that count. Keeps all it saw."""

    def __init__(self):
        self.seen = []

    def initial_state(self, batch_size):
        return {"count": torch.full((batch_size,), -99.0)}

    def act(self, step, state, deterministic=False):
        self.seen.append(step)
        count = torch.where(step.start, 0.0, state["count"])
        return count[:, None], {"count": count + 1}


class LinearAgent:
    """A fixed random linear policy, computed row by row so that a batch rounds as one row does."""

    def __init__(self, observations, actions):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(actions, observations, generator=generator)

    def initial_state(self, batch_size):
        return None

    def act(self, step, state, deterministic=False):
        return torch.stack([self.policy(row) for row in step.observation]), state

    def policy(self, row):
        return torch.tanh(self.weight @ row.clone())  # a copy: BLAS rounds by alignment


def test_returns_and_ends_of_each_row():
    episodes = rollout(CountingAgent(), COUNT, [0.0] * 4, seeds=[3, 1, 4, 2])
    assert episodes.returns.tolist() == [6, 1, 10, 3]
    assert episodes.lengths.tolist() == [3, 1, 4, 2]
    assert episodes.terminated.tolist() == [False, False, True, True]
    assert episodes.truncated.tolist() == [True, True, False, False]


def test_return_to_go_is_the_target_minus_the_rewards_so_far():
    agent = CountingAgent()
    rollout(agent, COUNT, [10.0, None], seeds=[3, 3])
    assert [step.return_to_go.tolist() for step in agent.seen] == [[10, 0], [9, -1], [7, -3]]
    assert agent.seen[0].return_to_go.dtype == torch.float32


def test_a_time_step_tells_of_the_step_before():
    agent = CountingAgent()
    rollout(agent, COUNT, [0.0] * 2, seeds=[2, 3])
    first, second, third = agent.seen
    assert first.start.tolist() == [True, True]
    assert second.start.tolist() == [False, False]
    assert first.previous_action.tolist() == [[0], [0]]
    assert third.previous_action.tolist() == [[1], [1]]
    assert first.previous_reward.tolist() == [0, 0]
    assert third.previous_reward.tolist() == [2, 2]
    assert second.observation.tolist() == [[2, 1], [3, 1]]  # a copy: later steps leave it alone
    assert third.terminated.tolist() == [True, False]
    assert not third.truncated.any()


def test_the_policy_runs_over_few_finished_rows():
    agent = CountingAgent()
    rollout(agent, COUNT, [0.0] * 4, seeds=[1, 1, 1, 5])
    assert [len(step.start) for step in agent.seen] == [4, 1, 1, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_any_mix_of_lengths_keeps_state_with_its_row(lengths):
    episodes = rollout(CountingAgent(), COUNT, [0.0] * len(lengths), seeds=lengths, workers=1)
    assert episodes.lengths.tolist() == lengths
    assert episodes.returns.tolist() == [n * (n + 1) / 2 for n in lengths]


@pytest.mark.parametrize("workers", [2, 3])
def test_worker_processes_change_nothing(workers):
    seeds = [5, 1, 7, 2, 9, 4, 3]
    episodes = rollout(CountingAgent(), COUNT, [0.0] * 7, seeds, workers=workers)
    assert episodes.lengths.tolist() == seeds
    assert episodes.returns.tolist() == [n * (n + 1) / 2 for n in seeds]


def test_max_steps_truncates():
    episodes = rollout(CountingAgent(), COUNT, [0.0] * 3, seeds=[2, 4, 9], max_steps=4)
    assert episodes.lengths.tolist() == [2, 4, 4]
    assert episodes.terminated.tolist() == [True, True, False]
    assert episodes.truncated.tolist() == [False, False, True]


def test_the_recorder_sees_whole_episodes():
    transitions = []
    rollout(CountingAgent(), COUNT, [0.0] * 2, seeds=[1, 2], recorder=transitions.append)
    first, second = transitions
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 1], [1])
    assert first.observation.tolist() == [[1, 0], [2, 0]]
    assert first.next_observation.tolist() == [[1, 1], [2, 1]]
    assert second.observation.tolist() == [[2, 1]]
    assert second.action.tolist() == [[1]]
    assert second.terminated.tolist() == [True]
    assert first.truncated.tolist() == [True, False]


def test_progress_counts_steps_and_running_episodes():
    calls = []
    rollout(CountingAgent(), COUNT, [0.0] * 2, [1, 3], progress=lambda *call: calls.append(call))
    assert calls == [(1, 1), (2, 1), (3, 0)]


@pytest.mark.parametrize("workers", [1, 2])
def test_dict_and_tuple_spaces(workers):
    class Agent:
        def initial_state(self, batch_size):
            return None

        def act(self, step, state, deterministic=False):
            time = step.observation["pair"]["0"]
            assert torch.equal(time, step.observation["time"])
            assert step.observation["pair"]["1"].shape == (len(time), 2)
            assert step.previous_action["0"].dtype == torch.int64
            return {"0": time + 1, "1": torch.full((len(time), 2), 7.0)}, None  # clipped to 1

    episodes = rollout(Agent(), "RolloutTree-v0", [0.0] * 3, range(3), workers=workers)
    assert episodes.returns.tolist() == [6, 6, 6]


@pytest.mark.parametrize("workers", [1, 2])
def test_lockstep_equals_plain_gymnasium_bitwise(workers):
    agent, returns, lengths = LinearAgent(11, 3), [], []
    for seed in range(3):
        env = gym.make("Hopper-v5")
        observation, _ = env.reset(seed=seed)
        total, length, done = 0.0, 0, False
        while not done:
            row = torch.from_numpy(observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(agent.policy(row).numpy())
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    episodes = rollout(agent, "Hopper-v5", [0.0] * 3, range(3), workers=workers)
    assert episodes.returns.tolist() == returns
    assert episodes.lengths.tolist() == lengths


def test_evaluate_groups_by_target_and_pairs_the_seeds():
    agent = CountingAgent()
    scale = ReferenceScores(0, 10, "test scale")
    high, low = evaluate(agent, COUNT, [5.0, 2.0], episodes=3, seed=1, reference=scale)
    assert agent.seen[0].return_to_go.tolist() == [5, 5, 5, 2, 2, 2]
    assert high.returns.tolist() == low.returns.tolist() == [1, 3, 6]
    row = high.row()
    assert row["target_return"] == 5.0
    assert row["episodes"] == 3
    assert row["return_mean"] == pytest.approx(10 / 3)
    assert row["normalized_score"] == pytest.approx(100 / 3)
    assert row["length_mean"] == 2


def test_evaluate_without_targets_or_scale():
    (only,) = evaluate(CountingAgent(), COUNT, [None], episodes=2, seed=1)
    assert only.row()["target_return"] is None
    assert only.row()["normalized_score"] is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_environment_is_named_with_its_row(workers):
    class Wrong(CountingAgent):
        def act(self, step, state, deterministic=False):
            action, state = super().act(step, state)
            action[2] += len(self.seen) == 2
            return action, state

    message = (
        r"environment 'RolloutCount-v0' failed in step of row 2: ValueError: action 2.0 at step 1 "
        r"\(test_rollout.py:\d+\)"
    )
    with pytest.raises(SimulatorError, match=message):
        rollout(Wrong(), COUNT, [0.0] * 3, seeds=[4, 4, 4], workers=workers)


class Constant:
    """The same action always."""

    def __init__(self, action):
        self.action = action

    def initial_state(self, batch_size):
        return torch.zeros(batch_size)

    def act(self, step, state, deterministic=False):
        return np.array(self.action), state


def test_a_non_finite_action_is_refused():
    with pytest.raises(UserError, match="non-finite action at step 0"):
        rollout(Constant([[np.nan]]), COUNT, [0.0], [3])


def test_an_action_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"act gave \(1,\), not \(B, …\) = \(1, 1\)"):
        rollout(Constant([0.0]), COUNT, [0.0], [3])


def test_a_fraction_is_no_discrete_action():
    with pytest.raises(ValueError, match="act gave float64 for Discrete"):
        rollout(Constant([0.5]), "CartPole-v1", [0.0], [0])


def test_an_action_of_whole_numbers_is_the_nearest():
    space, alive = spaces.Box(-3, 3, (4,), np.int64), np.ones(1, bool)
    given = torch.tensor([[1.9, -1.9, 0.4, 7.0]])
    taken = environment_action(space, given, alive, 0)
    assert taken.dtype == np.int64
    assert taken.tolist() == [[2, -2, 0, 3]]


def test_half_precision_actions_are_taken():
    agent = Constant([[0.0]])
    agent.act = lambda step, state, deterministic: (torch.zeros(1, 1, dtype=torch.bfloat16), state)
    assert rollout(agent, COUNT, [0.0], [1]).returns == [1]


def test_actions_are_clipped():
    seen = []
    options = {"env_kwargs": {"strict": False}, "recorder": seen.append}
    rollout(Constant([[-5.0]]), COUNT, [0.0], [1], **options)
    rollout(Constant([[5000.0]]), COUNT, [0.0], [1], **options)
    assert [t.action.tolist() for t in seen] == [[[0]], [[1000]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_returns": [1.0]}, "1 target returns for 2 seeds"),
        ({"target_returns": [], "seeds": []}, "0 target returns for 0 seeds"),
        ({"target_returns": [1.0, np.nan]}, "target return nan is not finite"),
        ({"seeds": [3, -1]}, "seed -1 is negative"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"env_id": "RolloutCont-v0"}, "did you mean 'RolloutCount-v0'"),
        ({"env_kwargs": {"colour": 1}}, "refuses {'colour': 1}"),
        ({"env_kwargs": {"colour": 1}, "workers": 2}, "refuses {'colour': 1}"),
    ],
)
def test_bad_input_is_named(options, message):
    good = {"env_id": COUNT, "target_returns": [0.0, 0.0], "seeds": [2, 2]}
    with pytest.raises(UserError, match=message):
        rollout(CountingAgent(), **(good | options))


def test_evaluate_needs_an_episode_and_a_target():
    with pytest.raises(UserError, match="0 episodes"):
        evaluate(CountingAgent(), COUNT, episodes=0)
    with pytest.raises(UserError, match=r"targets \[\]"):
        evaluate(CountingAgent(), COUNT, [])


class BrokenSensor(gym.Env):
    """Its second step gives what was asked for."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, seen: float = 0.0, reward: float = 0.0):
        self.broken, self.time = (np.float32([seen]), reward), 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        given = self.broken if self.time == 2 else (np.zeros(1, np.float32), 0.0)
        return *given, self.time == 3, False, {}


gym.register("RolloutBrokenSensor-v0", entry_point=BrokenSensor)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"seen": np.nan}, "the environment gave observations that are not finite at environment"),
        ({"reward": np.inf}, "the environment gave rewards that are not finite at environment"),
        (
            {"reward": -1e30},
            r"the environment gave a reward of 1e\+30 at environment step 1; scale",
        ),
    ],
)
def test_what_an_environment_breaks_is_not_blamed_on_the_policy(broken, message):
    with pytest.raises(SimulatorError, match=message):
        rollout(Constant([[0.0]]), "RolloutBrokenSensor-v0", [0.0], [3], env_kwargs=broken)


class EndlessEnv(gym.Env):
    """Never ends; says how many steps were taken."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1), {}

    def step(self, action):
        self.time += 1
        return np.array([float(self.time)]), 1.0, False, False, {}


gym.register("Endless-v0", EndlessEnv)
gym.register("EndlessLimited-v0", EndlessEnv, max_episode_steps=40)


class Idle:
    def initial_state(self, batch_size):
        return torch.zeros(batch_size)

    def act(self, step, state, deterministic=True):
        return torch.zeros(len(state), dtype=torch.long), state


def test_an_environment_that_never_ends_is_cut_short_and_named(monkeypatch, caplog):
    monkeypatch.setattr("decision_s4.envs.rollout.LONGEST_EPISODE", 25)
    played = rollout(Idle(), "Endless-v0", [0.0, 0.0], [0, 1], workers=1)
    assert played.lengths.tolist() == [25, 25] and played.truncated.all()
    said = "'Endless-v0' has no time limit: 2 of 2 episodes went on for 25 steps and were cut there"
    assert said in caplog.text and "register it with max_episode_steps" in caplog.text


@pytest.mark.parametrize(
    ("env_id", "kwargs", "max_steps", "length"),
    [
        ("EndlessLimited-v0", {}, None, 40),
        ("Endless-v0", {"max_episode_steps": 30}, None, 30),
        ("EndlessLimited-v0", {"max_episode_steps": -1}, 50, 50),
        ("TMaze-v0", {"length": 60}, None, 61),
    ],
)
def test_a_limit_of_its_own_is_left_alone(env_id, kwargs, max_steps, length, monkeypatch, caplog):
    monkeypatch.setattr("decision_s4.envs.rollout.LONGEST_EPISODE", 25)
    played = rollout(Idle(), env_id, [0.0], [0], kwargs, max_steps=max_steps, workers=1)
    assert played.lengths.tolist() == [length]
    assert caplog.text == ""


SEEN = np.zeros(2, np.float32)


class FaultyEnv(gym.Env):
    """Gives whatever it is told to."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reset=(SEEN, {}), step=(SEEN, 1.0, False, True, {}), space=None):
        self.given = {"reset": reset, "step": step}
        self.observation_space = space or self.observation_space

    def reset(self, *, seed=None, options=None):
        return self.given["reset"]

    def step(self, action):
        return self.given["step"]


gym.register("Faulty-v0", FaultyEnv, order_enforce=False)

PAIR = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float32)})
FAULTS = {
    "reset gives ndarray; Gymnasium's gives observation, info; mend it": {"reset": SEEN},
    "step gives 4 values; Gymnasium's gives observation, reward, term": {"step": (SEEN, 1, 0, {})},
    "(2,), float32) (shape (3,) instead of (2,)); mend it": {"reset": (np.zeros(3), {})},
    "(<U1 instead of numbers)": {"reset": (["a", "b"], {})},
    "(object instead of numbers)": {"reset": ([None, None], {})},
    "are not finite as an episode began; mend it": {"reset": ([0.0, np.nan], {})},
    "its rewards are no single numbers, such as array([1., 2.])": {
        "step": (SEEN, np.array([1.0, 2.0]), False, True, {})
    },
    "its rewards are no single numbers, such as 'one'": {"step": (SEEN, "one", False, True, {})},
    "Discrete(3), 'b': Box(-1.0, 1.0, (2,), float32)) ('b')": {
        "reset": ({"a": 1}, {}),
        "space": PAIR,
    },
    "(3 instead of one of Discrete(3))": {"reset": ({"a": 3, "b": SEEN}, {}), "space": PAIR},
    "(float64 instead of int64)": {"reset": (0.5, {}), "space": spaces.Discrete(3)},
    "([2 1] instead of one of MultiDiscrete([2 3]))": {
        "reset": ([2, 1], {}),
        "space": spaces.MultiDiscrete([2, 3]),
    },
    "([0 2] instead of one of MultiBinary(2))": {
        "reset": ([0, 2], {}),
        "space": spaces.MultiBinary(2),
    },
}


@pytest.mark.parametrize("message", FAULTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_that_breaks_its_word_is_told_how(message, workers):
    with pytest.raises(SimulatorError) as raised:
        rollout(Idle(), "Faulty-v0", [0.0] * 2, [0, 1], FAULTS[message], workers=workers)
    assert message in str(raised.value)


def test_an_environment_that_cannot_be_made_is_told_why():
    def broken():
        raise RuntimeError("no licence")

    gym.register("Broken-v0", broken)
    message = r"'Broken-v0' cannot be made: RuntimeError: no licence \(test_rollout.py:\d+\)"
    with pytest.raises(UserError, match=message):
        rollout(Idle(), "Broken-v0", [0.0], [0])


def test_observations_are_of_the_spaces_type_from_the_first_on():
    """Where a reset gives whole numbers, those of later steps keep what is behind the point."""
    seen = []

    class Watching(Idle):
        def act(self, step, state, deterministic=True):
            seen.append(step.observation.tolist())
            return super().act(step, state)

    step = ([0.25, 0.5], np.array([1.0]), False, False, {})  # a reward in an array of one
    faults = {"reset": ([0, 1], {}), "step": step}
    played = rollout(Watching(), "Faulty-v0", [0.0], [0], faults, max_steps=2)
    assert seen == [[[0.0, 1.0]], [[0.25, 0.5]]]
    assert played.returns.tolist() == [2.0]
