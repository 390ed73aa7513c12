"""What is recorded does what it would have done, as often as it is called."""

import pytest
import torch

from decision_s4.kernels import cuda_graph
from decision_s4.kernels.cuda_graph import WARMUP, Recorded

CPU = torch.device("cpu")


def test_the_first_calls_run_and_later_ones_replay_what_was_recorded(monkeypatch):
    done = []
    monkeypatch.setattr(cuda_graph, "record", lambda run: (lambda: done.append("graph"), run))
    recording = object()
    call = Recorded(lambda: done.append("run"), CPU, recording)
    found = [call() for _ in range(WARMUP + 2)]
    assert done == ["run"] * WARMUP + ["graph"] * 2
    assert found == [None] * WARMUP + [recording] * 2
    assert call.calls == WARMUP + 2


def test_what_cannot_be_recorded_runs_on_and_says_so_once(monkeypatch, caplog):
    def fail(run):
        raise RuntimeError("not permitted\nmore")

    monkeypatch.setattr(cuda_graph, "record", fail)
    call = Recorded(lambda: 1, CPU)
    assert [call() for _ in range(WARMUP + 2)] == [1] * (WARMUP + 2)
    assert [record.getMessage() for record in caplog.records] == [
        "work on CUDA cannot be recorded (not permitted); it runs operation by operation"
    ]
    assert not call.tries


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_goes_on_with_what_the_first_calls_left(caplog):
    count = torch.zeros((), device="cuda")
    call = Recorded(lambda: count.add_(1) * 2, torch.device("cuda"))
    assert [float(call()) for _ in range(7)] == [2, 4, 6, 8, 10, 12, 14]
    assert call.graph and not caplog.records


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_asks_the_gpu_for_a_number_runs_on(caplog):
    count = torch.zeros((), device="cuda")
    call = Recorded(lambda: count.add_(1).item(), torch.device("cuda"))
    assert [call() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert "cannot be recorded" in caplog.text
