"""Agents of stable-baselines3 as runs: what they leave, resume, act on and refuse."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4 import evaluate
from decision_s4.agents import checkpoint, saved
from decision_s4.agents.baselines import BaselineConfig, BaselineTraining, RecurrentPPOConfig
from decision_s4.agents.eval_table import read_rows
from decision_s4.agents.model_agent import ModelAgent
from decision_s4.agents.models import ModelOptions, make_agent
from decision_s4.agents.stream_vec_env import StreamVecEnv
from decision_s4.envs.errors import UserError
from decision_s4.envs.rollout import open_rows, rollout
from decision_s4.envs.stream import Stream
from decision_s4.train import main

CPU = torch.device("cpu")
SMALL = "--hidden 8 --eval-every 64 --log-every 32 --eval-episodes 1 --no-video --device cpu"
OWN = {
    "sac": "--env Pendulum-v1 --agent-options learning_starts=20,batch_size=8",
    "td3": "--env Pendulum-v1 --agent-options learning_starts=20,batch_size=8",
    "sb3-ppo": "--env CartPole-v1 --environments 2 --agent-options n_steps=16,batch_size=8",
    "recurrent-ppo": "--env CartPoleNoVel-v1 --environments 2 --lstm-width 8 "
    "--agent-options n_steps=16,batch_size=8",
}


class Count(gym.Env):
    """Observes its steps, is paid what it is told, terminates after 3 steps or at action 1."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        seen = np.full(1, self.time, np.float32)
        return seen, float(action), bool(action), self.time == 3, {}


gym.register("BaselineCount-v0", Count)


@pytest.mark.parametrize("algo", OWN)
def test_a_run_is_resumed_evaluated_and_holds_no_pickle(algo, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = f"--algo {algo} {OWN[algo]} {SMALL} --steps 128 --run-dir {folder}"
    assert main(flags.split()) == 0
    assert main(["--resume", str(folder), "--steps", "192"]) == 0
    assert [row["step"] for row in read_rows(folder / "eval.csv", 192)] == [64, 128, 192]
    assert checkpoint.load(folder).step == 192
    assert evaluate.main([str(folder), "--episodes", "2"]) == 0
    assert f"agent   {algo}" in capsys.readouterr().out
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not [data for data in files if data.startswith((b"PK", b"\x80"))]  # a zip, a pickle


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_a_checkpoint_goes_on_bit_for_bit_but_for_the_environments(algo, tmp_path):
    flags = {"algo": algo, "env": "Pendulum-v1", "hidden": (8,), "steps": 200}
    flags["agent_options"] = ("learning_starts=20", "batch_size=8", "buffer_size=90")
    runs = [BaselineTraining.begin(BaselineConfig(**flags), CPU) for _ in range(2)]
    runs[0].update()
    runs[0].save(tmp_path)
    for run in runs:
        run.restore(tmp_path)
        run.model.train(gradient_steps=5, batch_size=8)
    one, other = (run.model.policy.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert runs[1].step == 100
    assert runs[0].stream._seeds(3) == runs[1].stream._seeds(3)


def test_a_rebuilt_agent_acts_as_the_one_that_was_saved(tmp_path):
    config = RecurrentPPOConfig(algo="recurrent-ppo", env="CartPoleNoVel-v1", lstm_width=8)
    run = BaselineTraining.begin(config, CPU)
    run.save(tmp_path)
    again = saved.rebuild(checkpoint.load(tmp_path))
    played = [
        rollout(agent, "CartPoleNoVel-v1", [None] * 3, [1, 2, 3]).returns
        for agent in (run.acting_policy, again)
    ]
    assert np.array_equal(*played)


def test_an_lstm_agent_acts_as_the_library_does_with_its_state():
    space = spaces.Box(-1, 1, (2,), np.float32)
    options = ModelOptions("recurrent-ppo", {"lstm_hidden_size": 4, "net_arch": [4]})
    agent = make_agent(space, space, options)
    rng, state, theirs = np.random.default_rng(0), agent.initial_state(3), None
    for t in range(6):
        seen = rng.normal(size=(3, 2)).astype(np.float32)
        start = np.array([t == 0, t in (0, 3), t == 0])
        step = _Moment(torch.from_numpy(seen), torch.from_numpy(start))
        action, state = agent.act(step, state, True)
        expected, theirs = agent.policy.predict(seen, theirs, start, True)
        assert np.array_equal(action, expected)
    assert state[0].shape == (3, 1, 4)


class _Moment:
    def __init__(self, observation, start):
        self.observation, self.start = observation, start


def test_the_libraries_see_endings_as_they_were():
    env = StreamVecEnv(Stream(open_rows("BaselineCount-v0", 2), 2, seed=0))
    assert env.reset().tolist() == [[0], [0]]
    steps = []
    for action in ([0, 0], [1, 0], [0, 0]):
        env.step_async(np.array(action))
        steps.append(env.step_wait())
    seen, reward, done, infos = zip(*steps, strict=True)
    assert [s.ravel().tolist() for s in seen] == [[1, 1], [0, 2], [1, 0]]
    assert [r.tolist() for r in reward] == [[0, 0], [1, 0], [0, 0]]
    assert [d.tolist() for d in done] == [[False, False], [True, False], [False, True]]
    terminated, truncated = infos[1][0], infos[2][1]
    assert terminated["terminal_observation"].tolist() == [2]
    assert not terminated["TimeLimit.truncated"]
    assert (terminated["episode"]["r"], terminated["episode"]["l"]) == (1.0, 2)
    assert truncated["terminal_observation"].tolist() == [3]
    assert truncated["TimeLimit.truncated"]
    assert infos[0] == [{}, {}]


def test_ppo_learns_through_the_adapter():
    config = BaselineConfig(
        algo="sb3-ppo",
        env="CartPole-v1",
        environments=8,
        learning_rate=1e-3,
        hidden=(32,),
        eval_episodes=5,
        agent_options=("n_steps=128", "batch_size=256", "n_epochs=10"),
    )
    run, curve = BaselineTraining.begin(config, CPU), []
    while run.step < 12_000:
        curve.append(float(run.update()[0]["rollout/ep_rew_mean"]))
    assert curve[0] < 40 < 80 < curve[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--algo sac --env CartPole-v1", "sac on CartPole-v1: The algorithm only supports"),
        ("--algo td3 --env none", "--env is none"),
        ("--algo sac --agent-options batchsize=3", "unknown 'batchsize' of sac; did you mean 'bat"),
        ("--algo sb3-ppo --agent-options seed=3", "unknown 'seed' of sb3-ppo"),
        ("--algo sb3-ppo --lstm-width 3", "unknown flag --lstm-width"),
        ("--algo recurrent-ppo --lstm-width 0", "--lstm-width is 0"),
        ("--algo sac --hidden 64,0", "--hidden is 0; use 1 to 16384"),
        ("--algo sac --env Nowhere-v1", "Nowhere-v1"),
    ],
)
def test_what_cannot_be_trained_is_refused(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*flags.split(), "--no-video", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    monkeypatch.chdir(tmp_path)
    assert main(["--algo", "recurrent-ppo", "--no-video"]) == 2
    assert "pip install -e '.[contrib]'" in capsys.readouterr().err


def test_a_run_that_diverges_stops(tmp_path):
    config = BaselineConfig(algo="sb3-ppo", env="CartPole-v1", hidden=(4,))
    run = BaselineTraining.begin(config, CPU)
    with torch.no_grad():
        next(run.model.policy.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"training diverged: .* lower --learning-rate 0\.0003"):
        run.update()


def test_probes_are_refused(tmp_path, capsys):
    run = BaselineTraining.begin(BaselineConfig(algo="sac", env="Pendulum-v1", hidden=(4,)), CPU)
    run.save(tmp_path)
    assert evaluate.main([str(tmp_path), "--episodes", "1", "--probe", "occlusion"]) == 2
    assert "not one of sac" in capsys.readouterr().err


def test_a_plain_agent_has_no_state():
    space = spaces.Box(-1, 1, (2,), np.float32)
    agent = make_agent(space, space, ModelOptions("sac", {"net_arch": [4]}))
    assert isinstance(agent, ModelAgent)
    assert agent.initial_state(3) == ()
