"""The figure of predictions shows logged steps, never the padding between them."""

from types import SimpleNamespace

import pytest
import torch
from gymnasium import spaces

from decision_s4.agents.pictures import prediction_figure
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import PolicyOptions

VALID = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
HOPPER = ["thigh torque", "leg torque", "foot torque"]
ACTIONS = [
    (spaces.Box(-1, 1, (2,)), torch.arange(18.0).view(3, 3, 2), ["action[0]", "action[1]"]),
    (spaces.Box(-1, 1, (3,)), torch.arange(27.0).view(3, 3, 3), HOPPER),
    (spaces.Discrete(9), torch.arange(9).view(3, 3), ["action[0]"]),
]


@pytest.mark.parametrize(("space", "action", "names"), ACTIONS)
def test_valid_steps_of_all_rows_in_turn(space, action, names):
    options = PolicyOptions(d_model=4, d_embed=4, n_layers=1, backbone="mlp")
    policy = make_policy(spaces.Box(-1, 1, (3,)), space, options).eval()
    batch = SimpleNamespace(
        observation=torch.zeros(3, 3, 3),
        previous_action=torch.zeros_like(action),
        return_to_go=torch.zeros(3, 3),
        action=action,
        start=torch.tensor([True, False, False]).expand(3, 3),
        valid=VALID,
    )
    figure = prediction_figure(policy, batch, "Hopper-v5", steps=5)
    assert [axis.get_ylabel() for axis in figure.axes] == names
    logged = [axis.lines[0].get_ydata().tolist() for axis in figure.axes]
    expected = action.flatten(0, 1)[[0, 1, 3, 6, 7], None].flatten(1)
    assert logged == expected.T.tolist()
