"""Probes at evaluations: in TensorBoard, and without a trace in the training."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from decision_s4 import train

TINY = (
    "--steps 4 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu --dropout .1"
)


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
