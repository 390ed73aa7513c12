"""Helpers of this folder are imported by name."""

import sys
from pathlib import Path

import pytest
import torch

from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.envs.make import make

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def cartpole() -> Policy:
    """A small untrained policy for CartPole-v1."""
    torch.manual_seed(0)
    env = make("CartPole-v1")
    options = PolicyOptions(d_model=8, n_layers=1, d_embed=8)
    made = make_policy(env.observation_space, env.action_space, options).eval()
    env.close()
    return made
