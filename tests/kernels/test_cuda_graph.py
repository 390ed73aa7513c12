"""What is recorded does what it would have done, as often as it is called."""

import gc

import pytest
import torch

from decision_s4.kernels import cuda_graph
from decision_s4.kernels.cuda_graph import WARMUP, Recorded

CPU = torch.device("cpu")


def test_the_first_calls_run_and_later_ones_replay_what_was_recorded(monkeypatch):
    done = []
    monkeypatch.setattr(
        cuda_graph, "record", lambda run, device: (lambda: done.append("graph"), run)
    )
    recording = object()
    call = Recorded(lambda: done.append("run"), CPU, recording)
    found = [call() for _ in range(WARMUP + 2)]
    assert done == ["run"] * WARMUP + ["graph"] * 2
    assert found == [None] * WARMUP + [recording] * 2
    assert call.calls == WARMUP + 2


def test_what_cannot_be_recorded_runs_on_and_says_so_once(monkeypatch, caplog):
    def fail(run, device):
        raise RuntimeError("not permitted\nmore")

    monkeypatch.setattr(cuda_graph, "record", fail)
    call = Recorded(lambda: 1, CPU)
    assert [call() for _ in range(WARMUP + 2)] == [1] * (WARMUP + 2)
    assert [record.getMessage() for record in caplog.records] == [
        "work on CUDA cannot be recorded (not permitted); it runs operation by operation"
    ]
    assert not call.tries


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_cuda
def test_a_graph_goes_on_with_what_the_first_calls_left(caplog):
    count = torch.zeros((), device="cuda")
    call = Recorded(lambda: count.add_(1) * 2, torch.device("cuda"))
    assert [float(call()) for _ in range(7)] == [2, 4, 6, 8, 10, 12, 14]
    assert call.graph and not caplog.records


FAILURES = {
    "asks the GPU for a number": lambda x: x.sum().item(),
    "waits for the GPU": lambda x: torch.cuda.synchronize(),
    "reads the CPU's memory": lambda x: x + torch.ones(3).to("cuda"),
    "raises": lambda x: torch.ones(2) + torch.ones(3),
}


@on_cuda
@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_runs_on_and_leaves_torch_as_it_was(failure, caplog):
    """Counted once a call, random numbers as without it, and memory of two streams freed."""
    torch.cuda.manual_seed(0)
    wanted = torch.rand(3, device="cuda")
    count, stream = torch.zeros((), device="cuda"), torch.cuda.current_stream()
    fails = FAILURES[failure]

    def run():
        count.add_(1)
        if failure != "raises" or torch.cuda.is_current_stream_capturing():
            fails(count.expand(3))
        return float(count) if not torch.cuda.is_current_stream_capturing() else 0.0

    call = Recorded(run, torch.device("cuda"))
    assert [call() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert "cannot be recorded" in caplog.text
    torch.cuda.manual_seed(0)
    assert torch.equal(torch.rand(3, device="cuda"), wanted)
    assert torch.cuda.current_stream() == stream
    assert_memory_of_two_streams_is_used_again()
    assert float(Recorded(lambda: count * 2, torch.device("cuda"))()) == 14


def assert_memory_of_two_streams_is_used_again():
    other = torch.cuda.Stream()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(8):
        used = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
        used.record_stream(other)
        del used
        torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() - before <= 128 << 20


@on_cuda
def test_garbage_of_other_graphs_does_not_break_a_recording():
    device, x = torch.device("cuda"), torch.ones(3, device="cuda")

    def graph_in_a_circle():
        call = Recorded(lambda: x * 2, device)
        for _ in range(WARMUP + 1):
            call()
        call.circle = call

    def run():
        made = [[] for _ in range(10)]  # the collector counts what is made
        return x * len(made)

    before = gc.get_threshold()
    call = Recorded(run, device)
    for _ in range(WARMUP):
        call()
    graph_in_a_circle()
    gc.set_threshold(1)
    try:
        found = call()
    finally:
        gc.set_threshold(*before)
    assert call.graph and found.tolist() == [10, 10, 10]
