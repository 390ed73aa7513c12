"""An answer further back than a window of 20: Decision S4 has it, the window has not."""

import pytest


@pytest.fixture(scope="module")
def long_horizon(program_of):
    return program_of("benchmarks/long_horizon.py")


@pytest.fixture
def corridor(long_horizon, tmp_path, monkeypatch) -> tuple[str, str]:
    """(dataset, environment) of 25 steps."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path / "cache"))
    env_id = long_horizon.register(25)
    return long_horizon.make_dataset(env_id, 200), env_id


def test_decision_s4_remembers_what_a_window_of_20_has_forgotten(long_horizon, corridor):
    flags = f"{long_horizon.LEARNERS['decision-s4']} --d-model 16 --n-layers 1 --batch-steps 500"
    right, _ = long_horizon.right_answers(*corridor, flags, updates=400)
    assert right > 0.95
    window = long_horizon.LEARNERS["decision-transformer, context 20"]
    right, _ = long_horizon.right_answers(*corridor, f"{window} --batch-steps 500", updates=60)
    assert 0.35 < right < 0.65
