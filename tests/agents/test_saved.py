"""A saved policy comes back the same, its normaliser included; nothing foreign becomes one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task

SMALL = PolicyOptions(d_model=8, d_embed=8, n_layers=1, backbone_options=("d_state=4",))
OBSERVATION = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Discrete(3, start=1))
TASK = Task("Hopper-v5", (2.0, 1.0))


def policy() -> SequencePolicy:
    torch.manual_seed(0)
    made = SequencePolicy(OBSERVATION, spaces.Discrete(2), SMALL)
    made.set_statistics({"a": np.array([3.0, 4.0]), "b": None}, {"a": np.full(2, 2.0), "b": None})
    return made


def save(folder: Path, weights: dict | None = None, **changes) -> checkpoint.Checkpoint:
    """A checkpoint as train.py writes it, but for `changes` to its metadata."""
    made = policy()
    metadata = saved.describe(made) | {"task": TASK.describe()} | changes
    kept = {name: value for name, value in metadata.items() if value is not None}
    checkpoint.save(folder, 1, weights or made.state_dict(), {}, kept, best=True)
    return checkpoint.load(folder)


def test_the_same_policy_comes_back(tmp_path):
    found = saved.rebuild(save(tmp_path))
    assert not found.training
    assert found.options == SMALL
    assert found.observation_space == OBSERVATION
    assert found.action_space == spaces.Discrete(2)
    expected, weights = policy().state_dict(), found.state_dict()
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    (mean,) = (value for name, value in weights.items() if name.endswith(".mean"))
    assert mean.tolist() == [3.0, 4.0]


def test_the_task_comes_back(tmp_path):
    assert saved.task(save(tmp_path)) == TASK


WITHOUT = SMALL.__dict__ | {"backbone_options": []}
FOREIGN = {
    "no policy": ({"policy": None}, "KeyError: 'policy'"),
    "a list": ({"policy": [1, 2]}, "TypeError"),
    "unknown option": ({"policy": WITHOUT | {"colour": "red"}}, "colour"),
    "bad width": ({"policy": WITHOUT | {"d_model": "wide"}}, "TypeError"),
    "negative width": ({"policy": WITHOUT | {"d_model": -8}}, "RuntimeError"),
    "unknown backbone": ({"policy": WITHOUT | {"backbone": "s9"}}, "backbone 's9' is unknown"),
    "no space": ({"observation_space": None}, "KeyError: 'observation_space'"),
    "broken space": ({"observation_space": "{"}, "JSONDecodeError"),
    "unknown space": ({"action_space": '{"type": "Cube"}'}, "TypeError"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_description(case, tmp_path):
    changes, words = FOREIGN[case]
    with pytest.raises(UserError) as error:
        saved.rebuild(save(tmp_path, **changes))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/checkpoints/1: describes no policy of this version (")
    assert words in message
    assert message.endswith("; train it anew")
    assert "\n" not in message


@pytest.mark.parametrize("task", [None, [], {"env_id": 1}, TASK.describe() | {"reference": [1]}])
def test_a_foreign_task(task, tmp_path):
    with pytest.raises(UserError, match=r"checkpoints/1: describes no task of this version \("):
        saved.task(save(tmp_path, task=task))


def test_foreign_weights(tmp_path):
    weights = policy().state_dict()
    name = next(iter(weights))
    del weights[name]
    with pytest.raises(UserError, match=f"1 missing \\(first: {name}\\)"):
        saved.rebuild(save(tmp_path, weights))
    wider = {key: torch.zeros(3, 3) for key in policy().state_dict()}
    with pytest.raises(UserError, match="of another shape"):
        saved.rebuild(save(tmp_path, wider))
