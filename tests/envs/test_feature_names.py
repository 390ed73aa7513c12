"""Names of features: as many as the environment has, in its order."""

import gymnasium as gym
import pytest
from gymnasium import spaces

from decision_s4.envs.feature_names import OBSERVATIONS, action_names, observation_names


@pytest.mark.parametrize("env_id", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5"])
def test_a_name_for_each_position_and_velocity(env_id):
    env = gym.make(env_id)
    width = env.observation_space.shape[0]
    names = observation_names(env_id, env.observation_space, width)
    assert len(set(names)) == width
    # x is left out; each other coordinate is a position first, then a velocity
    joints = [env.unwrapped.model.joint(i).name for i in range(env.unwrapped.model.njnt)]
    count = len(joints)
    assert "velocity" not in "".join(names[: count - 1])
    assert all("velocity" in name for name in names[count - 1 :])
    acts = action_names(env_id, env.action_space, env.action_space.shape[0])
    assert all(name.endswith("torque") for name in acts)
    env.close()


def test_literal_names():
    box = spaces.Box(-1, 1, (11,))
    assert observation_names("Hopper-v5", box, 11)[5] == "torso x velocity"
    assert observation_names("HalfCheetah-v4", spaces.Box(-1, 1, (17,)), 17)[16] == (
        "front foot angular velocity"
    )
    door = OBSERVATIONS["AdroitHandDoor"]
    assert (len(door), door[27], door[38]) == (39, "door latch angle", "door is open")
    moved = action_names("AdroitHandDoor-v1", spaces.Box(-1, 1, (28,)), 28)
    assert moved[0] == "arm forward target"  # which alone has no angle
    assert [name.replace(" target", " angle") for name in moved[1:]] == list(door[:27])


def test_what_is_unknown_is_numbered():
    box = spaces.Box(-1, 1, (2,))
    assert observation_names("Hopper-v5", box, 2) == ["obs[0]", "obs[1]"]
    assert observation_names(None, box, 2) == ["obs[0]", "obs[1]"]
    assert action_names("CartPole-v1", spaces.Discrete(2), 2) == ["action[0]", "action[1]"]
