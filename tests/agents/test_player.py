"""A policy in a loop of one's own acts as it does in an evaluation."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from decision_s4 import train
from decision_s4.agents import checkpoint, saved
from decision_s4.agents.player import Player
from decision_s4.envs.errors import UserError
from decision_s4.envs.rollout import rollout

PLAIN = "--eval-episodes 1 --no-video --device cpu"
SMALL = f"{PLAIN} --d-model 8 --n-layers 1 --run-dir run"
OFFLINE = f"{SMALL} --steps 2 --target-returns 900,100 --eval-every 2 --d-embed 8"
ONLINE = f"{SMALL} --algo ppo --steps 8 --rollout-steps 4 --rows 2 --previous-reward"


@pytest.fixture(autouse=True)
def folder(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)


def evaluated(env_id: str, target: float | None, seed: int) -> list[np.ndarray]:
    """The actions of an evaluation's episode."""
    policy = saved.rebuild(checkpoint.load("run", "best"))
    actions = []
    agent = saved.agent_of(policy)
    rollout(agent, env_id, [target], [seed], recorder=lambda step: actions.append(step.action[0]))
    return actions


def played(player: Player, env_id: str, seed: int) -> list[np.ndarray]:
    env, actions, ended, reward = gym.make(env_id), [], False, 0.0
    seen, _ = env.reset(seed=seed)
    while not ended:
        actions.append(player.act(seen, reward))
        seen, reward, terminated, truncated, _ = env.step(actions[-1])
        ended = terminated or truncated
    env.close()
    player.reset()
    return actions


def test_continuous_actions_asked_for_a_return():
    assert train.main(OFFLINE.split()) == 0
    player = Player.load("run", target_return=500)
    assert player.target_return == 500
    for seed in (3, 4):  # the second episode knows nothing of the first
        assert np.array_equal(played(player, "Hopper-v5", seed), evaluated("Hopper-v5", 500, seed))
    assert Player.load("run").target_return == 900
    assert Player.load("run", 10**6).target_return < 4000  # held to what was logged


def test_discrete_actions_that_depend_on_rewards():
    assert train.main([*ONLINE.split(), "--env", "CartPole-v1"]) == 0
    player = Player.load("run")
    ours = played(player, "CartPole-v1", 1)
    assert ours == evaluated("CartPole-v1", None, 1)
    assert gym.make("CartPole-v1").action_space.contains(ours[0])


def test_what_does_not_fit_is_one_line():
    assert train.main(OFFLINE.split()) == 0
    with pytest.raises(UserError, match=r"an observation has shape \(3,\); give \(11,\)"):
        Player.load("run").act([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="holds no checkpoints"):
        Player.load("nowhere")
    with pytest.raises(ValueError, match=r"impl 'fast' is unknown; use one of .*, compiled$"):
        Player.load("run", impl="fast")
    assert train.main(f"{PLAIN} --algo sac --steps 2 --env Pendulum-v1 --run-dir sac".split()) == 0
    with pytest.raises(UserError, match="impl 'compiled' is for policies of this project"):
        Player.load("sac", impl="compiled")


class Echo:
    """Does what it sees."""

    def initial_state(self, batch_size):
        return ()

    def act(self, step, state, deterministic=False):
        return step.observation, state


def test_observations_are_left_alone_and_may_be_plain_lists():
    player = Player(Echo(), spaces.Box(-9, 9, (2,)), spaces.Box(-9, 9, (2,)))
    first = np.zeros(2, np.float32)
    player.act(first)
    player.act(np.ones(2, np.float32))
    assert first.tolist() == [0, 0]
    player.reset()
    player.act([1, 2])
    assert player.act([0.5, 0.25]).tolist() == [0.5, 0.25]
