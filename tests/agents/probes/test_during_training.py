"""Probes at evaluations: in TensorBoard, and without a trace in the training."""

from pathlib import Path

import pytest
import torch
from planted import new_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_layer_probes import query

from decision_s4 import train
from decision_s4.agents import checkpoint, saved
from decision_s4.agents.probes.base import make_probe
from decision_s4.agents.probes.figures import layers_figure, map_figure
from decision_s4.agents.probes.gradients import GradientTimesInput
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs.errors import UserError

TINY = (
    "--steps 4 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu --dropout .1"
)
SMALL = {"batch_steps": 50, "d_model": 8, "d_embed": 8, "n_layers": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints/4/weights.safetensors").read_bytes()


def test_training_is_the_same_with_probes_and_without(tmp_path):
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    assert train.main([*TINY.split(), "--run-dir", str(plain)]) == 0
    flags = ["--probes", "gradient-x-input", "--run-dir", str(probed)]
    assert train.main([*TINY.split(), *flags]) == 0
    assert weights(plain) == weights(probed)
    events = EventAccumulator(str(probed)).Reload()
    steps = [event.step for event in events.Scalars("probe/gradient-x-input/deletion_over_random")]
    assert steps == [2, 4]
    assert "probe/gradient-x-input" in events.Tags()["images"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradient", "probe 'gradient' is unknown; did you mean"),
        ("occlusion", "probe 'occlusion' is too slow for every evaluation"),
    ],
)
def test_bad_probes_end_before_training(name, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train.main([*TINY.split(), "--probes", name, "--run-dir", str(run_dir)]) == 2
    assert message in capsys.readouterr().err
    assert not run_dir.exists()


def test_attached_probes_are_logged_and_change_nothing(tmp_path):
    config = TrainConfig(**SMALL)
    training, other = (Training.begin(config, torch.device("cpu")) for _ in range(2))
    probes = training.learner.policy.attach("lrp", GradientTimesInput(), "hidden-attention")
    assert training.learner.policy.probes == probes
    for each in (training, other):
        each.update()
    states = [each.learner.policy.state_dict() for each in (training, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    logged = Logged()
    other.explain(logged)
    assert logged.names == set()
    training.explain(logged)
    assert {"probe/lrp", "probe/gradient-x-input", "probe/lrp/deletion"} <= logged.names
    assert {"probe/hidden-attention", "probe/hidden-attention/layers"} <= logged.names
    gaps = {name for name in logged.names if name.endswith("conservation_gap")}
    assert gaps == {"probe/lrp/conservation_gap"}


@pytest.mark.parametrize(("tokens", "labels"), [("step", "0 2 5"), ("three", "return to go")])
def test_figures_tell_steps_and_layers(tokens, labels):
    context = query(new_policy("gla", tokens=tokens), window=6)
    figure = layers_figure(make_probe("implicit-attention"), context)
    assert [axis.get_title()[:8] for axis in figure.axes] == ["layer 0:", "layer 1:"]
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    wanted = [str(context.first + int(x)) for x in labels.split()] if tokens == "step" else [labels]
    assert set(wanted) <= set(ticks)
    found = make_probe("lrp").attribute(context)
    names = [str(i) for i in range(found.values.shape[1])]
    axes = map_figure(found, names, "thigh torque").axes
    assert axes[0].get_title() == f"lrp: thigh torque at step {found.step}"
    assert len(axes) == 3  # map, sums, colours
    weights = make_probe("rollout").attribute(context)
    (label,) = map_figure(weights, names, "thigh torque").axes[0].get_yticklabels()
    assert label.get_text() == "all inputs"


class Logged:
    """A logger that keeps what it was given names for."""

    def __init__(self):
        self.names = set()

    def log(self, step, scalars):
        self.names |= set(scalars)

    def figure(self, name, figure, step):
        self.names.add(name)


def test_a_probe_that_cannot_serve_is_not_attached():
    policy = new_policy("s4", tokens="observation")
    for name, message in {
        "rollout": "probe 'rollout' reads layers",
        "lpr": "'lpr' is unknown",
    }.items():
        with pytest.raises(UserError, match=message):
            policy.attach(name)
    assert policy.probes == []


@pytest.mark.parametrize(("sampling", "steps"), [("episodes", None), ("windows", 7)])
def test_a_run_keeps_how_long_a_stretch_it_saw(sampling, steps, tmp_path):
    config = TrainConfig(**SMALL, sampling=sampling, context_steps=7)
    training = Training.begin(config, torch.device("cpu"))
    longest = steps or int(training.trajectories.lengths.max())
    training.save(tmp_path)
    assert saved.task(checkpoint.load(tmp_path)).learned_steps == longest
