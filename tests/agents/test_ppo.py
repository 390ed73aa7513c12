"""Recurrent PPO: what a rollout holds, what an update does, what a run leaves and says."""

import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._pytree import tree_leaves

from decision_s4 import evaluate, train
from decision_s4.agents import checkpoint
from decision_s4.agents.actor_critic import ActorCritic, ActorCriticOptions
from decision_s4.agents.moments import Moments
from decision_s4.agents.ppo import PPOLearner, PPOOptions
from decision_s4.agents.ppo_training import PPOConfig, PPOTraining
from decision_s4.agents.rollouts import Collector
from decision_s4.agents.stochastic_heads import make_stochastic_head
from decision_s4.envs.local_rows import LocalRows
from decision_s4.envs.rollout import open_rows
from decision_s4.envs.stream import Stream

SMALL = {"rows": 4, "rollout_steps": 16, "d_model": 16, "epochs": 2, "minibatches": 2}
TINY = (
    "--algo ppo --rows 4 --rollout-steps 16 --d-model 8 --epochs 1 --eval-episodes 2 --no-video "
    "--device cpu --backbone gru --steps 128 --eval-every 64"
)


class Counter(gym.Env):
    """Shows how far the episode is; truncated after `length` steps."""

    observation_space = spaces.Dict(
        {"time": spaces.Box(0, 99, (1,), np.float32), "kind": spaces.Discrete(2)}
    )
    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(self, length: int = 5):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        return self.seen(), 1.0, False, self.time == self.length, {}

    def seen(self):
        return {"time": np.array([self.time], np.float32), "kind": self.time % 2}


def counters(count: int = 2) -> tuple[Stream, ActorCritic]:
    torch.manual_seed(0)
    rows = LocalRows(Counter, range(count))
    options = ActorCriticOptions(backbone="gru", d_model=8, previous_reward=True)
    policy = ActorCritic(rows.observation_space, rows.action_space, options)
    return Stream(rows, count, seed=0), policy


def run_of(**changes) -> PPOTraining:
    return PPOTraining(PPOConfig(algo="ppo", **(SMALL | changes)), torch.device("cpu"))


def test_episodes_follow_on_one_another_without_a_made_up_step():
    stream, policy = counters()
    rollout = Collector(stream, policy).collect(policy, 12)
    assert rollout.observation["time"][0, :, 0].tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert rollout.start[0].nonzero()[:, 0].tolist() == [0, 5, 10]
    assert np.flatnonzero(rollout.ended[0]).tolist() == [4, 9]
    assert rollout.previous_reward[0].tolist() == [0, 1, 1, 1, 1] * 2 + [0, 1]
    assert rollout.episodes == [(5.0, 5)] * 4
    assert torch.equal(rollout.previous_action[0, 1], rollout.action[0, 0])


def test_a_cut_episode_counts_on_the_value_of_its_own_last_observation():
    stream, policy = counters(1)
    rollout = Collector(stream, policy).collect(policy, 5)
    assert np.flatnonzero(rollout.cut_value[0]).tolist() == [4]
    with torch.no_grad():
        last = {"time": torch.tensor([[[5.0]]]), "kind": torch.tensor([[1]])}
        observation = {
            name: torch.cat([leaf, last[name]], 1) for name, leaf in rollout.observation.items()
        }
        whole = rollout._replace(
            observation=observation,
            previous_action=torch.cat([rollout.previous_action, rollout.action[:, -1:]], 1),
            previous_reward=torch.cat([rollout.previous_reward, torch.ones(1, 1)], 1),
            start=torch.tensor([[True] + [False] * 5]),
        )
        features, _ = policy(whole)
    assert rollout.cut_value[0, 4] == pytest.approx(policy.value_of(features)[0, 5].item(), 1e-5)


@pytest.mark.parametrize("backbone", ["gru", "s5", "lru", "mamba", "s4d", "transformer"])
def test_the_parallel_pass_goes_on_from_the_stored_state(backbone):
    """Two rollouts in a row: the second one's features are those of acting, step by step."""
    torch.manual_seed(0)
    rows = open_rows("RepeatPrevious-v0", 2)
    options = ActorCriticOptions(backbone=backbone, d_model=8)
    policy = ActorCritic(rows.observation_space, rows.action_space, options)
    collector = Collector(Stream(rows, 2, seed=0), policy)
    first, second = (collector.collect(policy, 40) for _ in range(2))
    with torch.no_grad():
        _, after = policy(first, first.state)
        _, end = policy(second, second.state)
    for ours, theirs in [(after, second.state), (end, collector.state)]:
        for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_before_the_first_step_no_ratio_is_clipped_and_the_policy_has_not_moved():
    stream, policy = counters()
    rollout = Collector(stream, policy).collect(policy, 12)
    learner = PPOLearner(policy, PPOOptions(epochs=1, minibatches=1))
    told = learner.update(rollout)
    assert told["approx_kl"].abs() < 1e-6
    assert told["clip_fraction"] == 0


def test_passes_stop_where_the_policy_moved_too_far():
    stream, policy = counters()
    rollout = Collector(stream, policy).collect(policy, 12)
    options = PPOOptions(learning_rate=0.3, epochs=20, minibatches=1, target_kl=0.01)
    assert PPOLearner(policy, options).update(rollout)["updates"] < 20


def test_a_rollout_of_one_step_is_learned_from():
    stream, policy = counters(1)
    rollout = Collector(stream, policy).collect(policy, 1)
    told = PPOLearner(policy, PPOOptions(epochs=1)).update(rollout)
    assert all(value.isfinite() for value in told.values()), told
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-2.0, 2.0, (2,), np.float32),
    ],
    ids=str,
)
def test_samples_have_the_probabilities_that_the_head_tells(space):
    """The mean of −log p over samples is the entropy."""
    torch.manual_seed(0)
    head = make_stochastic_head(4, space)
    torch.nn.init.normal_(head.linear.weight)
    features = torch.randn(1, 4).expand(20000, 4)
    action = head.act(features, deterministic=False)
    surprise = -head.log_prob(features, action).mean()
    assert surprise.item() == pytest.approx(head.entropy(features)[0].item(), abs=0.03)
    assert head.act(features[:1]).shape == (1, *space.shape)


@pytest.mark.parametrize("backbone", ["lru", "gru"])
def test_it_learns_to_remember_the_sign(backbone):
    """Turning at random earns 1/2 in the mean; so does turning always alike."""
    run = run_of(
        env="TMaze-v0",
        env_options=("length=4",),
        backbone=backbone,
        rows=16,
        rollout_steps=25,
        epochs=10,
        steps=12_000,
        learning_rate=3e-3,
        entropy_coefficient=0.01,
        eval_episodes=40,
    )
    while not run.finished:
        run.update()
    assert run.evaluate()[0]["return_mean"] > 0.95


def test_without_memory_the_sign_is_lost():
    run = run_of(
        env="TMaze-v0", env_options=("length=4",), backbone="mlp", steps=6000, eval_episodes=40
    )
    while not run.finished:
        run.update()
    assert run.evaluate()[0]["return_mean"] < 0.8


def test_a_run_leaves_its_curves_and_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(TINY.split()) == 0
    (folder,) = Path("runs/ppo/CartPoleNoVel-v1").iterdir()
    with (folder / "eval.csv").open() as file:
        rows = [(row["step"], row["target_return"]) for row in csv.DictReader(file)]
    assert rows == [("64", ""), ("128", "")]
    tags = set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
    wanted = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/value_loss"}
    assert wanted | {"eval/return_mean", "train/learning_rate"} <= tags
    assert evaluate.main([str(folder), "--episodes", "2", "--checkpoint", "last"]) == 0
    assert "CartPoleNoVel-v1" in capsys.readouterr().out
    assert evaluate.main([str(folder), "--target-returns", "5,6"]) == 2
    assert "a policy of ppo aims at no return; leave it out" in capsys.readouterr().err


def test_what_moments_go_on_from_stays_as_it_was():
    """A second run may go on from the same state."""
    first, second = Moments((2,)), Moments((2,))
    first.add(np.eye(2))
    kept = first.state_dict()
    second.load_state_dict(kept)
    second.add(np.ones((3, 2)))
    assert kept["squares"].tolist() == first.squares.tolist()


def test_a_resumed_run_has_all_but_the_simulators(tmp_path):
    run = run_of()
    for _ in range(3):
        run.update()
    run.save(tmp_path)
    again = run_of()
    again.restore(tmp_path)
    ours, theirs = run.state_dict(), again.state_dict()
    seeds = np.random.default_rng()
    seeds.bit_generator.state = ours.pop("stream")["generator"]
    seeds.integers(2**31, size=4)  # of the four new episodes
    assert theirs.pop("stream")["generator"] == seeds.bit_generator.state
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
    assert again.step == 3 * 64
    assert bool(again.stream.now().start.all())  # new episodes, everywhere


def test_a_resumed_run_learns_at_the_rate_that_is_asked_for(tmp_path):
    run = run_of()
    run.update()
    run.save(tmp_path)
    again = run_of(learning_rate=1e-5, schedule="constant")
    again.restore(tmp_path)
    again.update()
    assert again.learning_rate == 1e-5


def test_two_runs_gone_on_with_from_one_checkpoint_are_the_same(tmp_path):
    run = run_of()
    run.update()
    run.save(tmp_path)
    weights = []
    for _ in range(2):
        again = run_of()
        again.restore(tmp_path)
        again.update()
        weights.append(again.policy.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--env CartPoleNoVell-v1", "did you mean 'CartPoleNoVel-v1'"),
        ("--env none", "name an environment"),
        ("--dataset x", "unknown flag --dataset"),
        ("--epoch 3", "did you mean '--epochs'"),
        ("--rows 0", "--rows is 0"),
        ("--rows 100000000", "--rows is 100000000; use 1 to 65536"),
        ("--eval-episodes 100000000", "--eval-episodes is 100000000; use 1 to 1000000"),
        ("--env-options length=3", "refuses"),
        ("--learning-rate 1e25 --target-kl 0", "training diverged"),
    ],
)
def test_bad_input_is_one_line(flags, said, tmp_path, capsys):
    code = train.main([*TINY.split(), "--run-dir", str(tmp_path / "run"), *flags.split()])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert said in error


def test_what_diverges_leaves_its_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    update = PPOLearner.update

    def poisoned(self, rollout):
        told = update(self, rollout)
        if self.learning_rate < 6e-4:  # past the first evaluation
            told["loss"] = told["value_loss"] = torch.tensor(float("nan"))
        return told

    monkeypatch.setattr(PPOLearner, "update", poisoned)
    assert train.main([*TINY.split(), "--run-dir", str(tmp_path / "run")]) == 2
    assert "go on from the last checkpoint with --resume" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "run").step == 64


class Odd(Counter):
    """Of spaces that are given, with rewards of `reward`."""

    def __init__(self, seen=None, done=None, reward=1.0):
        super().__init__()
        self.observation_space = seen or self.observation_space
        self.action_space, self.reward = done or self.action_space, reward

    def step(self, action):
        seen, _, *ended, info = super().step(action)
        return seen, self.reward, *ended, info


UNIT = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seen": spaces.Sequence(UNIT)}, "space Sequence"),
        ({"done": spaces.MultiBinary(3)}, "action space MultiBinary(3) has no distribution"),
        ({"done": spaces.Dict(a=UNIT)}, "has no distribution"),
        ({"reward": float("nan")}, "gave rewards that are not finite at environment step 0"),
    ],
)
def test_an_environment_that_cannot_be_learned_in_is_named(
    options, said, tmp_path, monkeypatch, capsys
):
    spec = gym.envs.registration.EnvSpec("Odd-v0", entry_point=Odd, kwargs=options)
    monkeypatch.setitem(gym.registry, "Odd-v0", spec)
    assert train.main([*TINY.split(), "--env", "Odd-v0", "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_resumed_run_stays_in_its_environment(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert train.main([*TINY.split(), "--run-dir", folder]) == 0
    assert train.main(["--resume", folder, "--env", "TMaze-v0"]) == 2
    assert "env is CartPoleNoVel-v1, not TMaze-v0" in capsys.readouterr().err
    assert train.main(["--resume", folder, "--steps", "192"]) == 0
    assert checkpoint.load(Path(folder)).step == 192


def test_a_last_rollout_beyond_the_steps_asked_for_is_said(tmp_path, capsys):
    flags = [*TINY.split(), "--steps", "100", "--run-dir", str(tmp_path / "run")]
    assert train.main(flags) == 0
    said = capsys.readouterr().out
    assert "\nuntil   128: --steps 100, and on to the end of an update of 64\n" in said
    assert "\nstep 128/128 " in said
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert "is finished: step 128 of 128;" in capsys.readouterr().out


def test_steps_of_whole_rollouts_are_not_remarked_upon(tmp_path, capsys):
    assert train.main([*TINY.split(), "--run-dir", str(tmp_path / "run")]) == 0
    assert "\nuntil " not in capsys.readouterr().out


def test_a_resumed_runs_total_counts_from_where_it_stands():
    run = run_of(steps=100)
    assert (run.update_steps, run.total_steps) == (64, 128)
    run.step = 30  # of other rollouts
    assert run.total_steps == 158
    run.step = 200
    assert run.total_steps == 200
