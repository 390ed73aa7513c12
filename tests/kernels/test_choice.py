"""Where none is named, fused kernels run on CUDA if they take the tensors; the log says it once."""

import importlib
import logging

import pytest
import torch

from decision_s4.kernels import choice, diagonal_scan, policy_step
from decision_s4.kernels.delta_rule.misfit import misfit as delta_misfit
from decision_s4.kernels.gated_linear.misfit import misfit

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def silent_before():
    choice.say.cache_clear()
    policy_step._fastest.cache_clear()


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object())


def test_cuda_takes_the_fused_kernels(triton, caplog):
    with caplog.at_level(logging.INFO):
        assert [choice.fastest("op", CUDA) for _ in range(2)] == ["triton"] * 2
    assert caplog.messages == ["op: 'triton' runs on cuda"]


def test_the_cpu_does_not(triton):
    assert choice.fastest("op", CPU) == "torch"


def test_what_does_not_fit_runs_in_torch_and_the_log_says_why(triton, caplog):
    with caplog.at_level(logging.INFO):
        assert choice.fastest("op", CUDA, "needs float32") == "torch"
    assert caplog.messages == ["op: 'torch' runs on cuda: needs float32"]


def test_another_library_runs_where_ours_cannot_and_it_may(triton, caplog):
    with caplog.at_level(logging.INFO):
        assert choice.fastest("op", CUDA, None, None) == "triton"
        assert choice.fastest("op", CUDA, "takes K up to 2", None) == "fla"
        assert choice.fastest("op", CUDA, "takes K up to 2", "needs bfloat16") == "torch"
    assert caplog.messages == [
        "op: 'triton' runs on cuda",
        "op: 'fla' runs on cuda: takes K up to 2",
        "op: 'torch' runs on cuda: takes K up to 2; 'fla' needs bfloat16",
    ]
    assert choice.fastest("op", CPU, "takes K up to 2", None) == "torch"


def test_without_triton_torch_runs(monkeypatch, caplog):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert choice.fastest("op", CUDA) == "torch"
    assert caplog.messages == ["op: 'torch' runs on cuda: Triton is not installed"]


def test_what_the_fused_kernels_take():
    x = torch.zeros(1, 2, 1, 128)
    assert misfit(x, x, x) is None and misfit(*[x.bfloat16()] * 3) is None
    assert misfit(x, x, x.double()) == "needs bfloat16 or float32, not torch.float64"
    wide = torch.zeros(1, 2, 1, 129)
    assert misfit(wide, wide, x) == "takes K up to 128, not 129"
    assert diagonal_scan.misfit(x.to(torch.complex64)) is None
    assert diagonal_scan.misfit(x) == "needs complex64, not torch.float32"


def test_what_the_fused_delta_rule_takes():
    x = torch.zeros(1, 2, 1, 128)
    assert delta_misfit(*[x] * 4) is None and delta_misfit(*[x.bfloat16()] * 4) is None
    assert delta_misfit(x, x, x.double(), x) == "needs bfloat16 or float32, not torch.float64"
    wide, long = torch.zeros(1, 2, 1, 129), x[:, :1].expand(1, 1_048_561, 1, 128)
    assert delta_misfit(wide, wide, wide, x) == "takes K up to 128, not 129"
    assert "rows of up to 1,048,560 steps" in delta_misfit(*[long] * 4)


def test_the_fused_delta_rule_needs_shared_memory(monkeypatch):
    class Somewhere(torch.Tensor):
        is_cuda = True

    narrow, wide = (torch.zeros(1, 2, 1, keys).as_subclass(Somewhere) for keys in (64, 128))
    module = importlib.import_module(delta_misfit.__module__)  # its name is the function's too
    monkeypatch.setattr(module, "shared_memory", lambda device: 101_376)
    assert delta_misfit(*[narrow] * 4) is None and delta_misfit(*[wide.bfloat16()] * 4) is None
    assert "needs 148 kB of shared memory" in delta_misfit(*[wide] * 4)


def test_acting_is_a_recorded_graph_on_cuda():
    assert policy_step._fastest("cuda") == "graph" and policy_step._fastest("cpu") == "torch"
