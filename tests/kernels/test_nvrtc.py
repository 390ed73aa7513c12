"""CUDA C++ is compiled once a machine, and what stands against it is said."""

import pytest
import torch

from decision_s4.kernels import nvrtc

CUDA = torch.cuda.is_available()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", torch.version.cuda or "13.0")
    return tmp_path / "decision_s4_cubins"


def test_a_source_is_compiled_once(folder, monkeypatch):
    calls = []

    def compile_(source, options):
        calls.append((source, *options))
        return f"{source} {options}".encode()

    monkeypatch.setattr(nvrtc, "_compile", compile_)
    for _ in range(2):
        assert nvrtc.compiled("a", ["-D1"]) == b"a ['-D1']"
        assert nvrtc.compiled("a", ["-D2"]) == b"a ['-D2']"
    assert calls == [("a", "-D1"), ("a", "-D2")]
    assert len(list(folder.iterdir())) == 2  # and nothing half written


def test_what_does_not_compile_is_not_kept(folder, monkeypatch):
    def fail(source, options):
        raise RuntimeError("a CUDA kernel does not compile: line 1")

    monkeypatch.setattr(nvrtc, "_compile", fail)
    with pytest.raises(RuntimeError, match="line 1"):
        nvrtc.compiled("a", [])
    assert not list(folder.iterdir())


def test_why_it_cannot_compile(monkeypatch):
    def missing():
        raise OSError("libnvrtc.so.13: no such file")

    nvrtc.misfit.cache_clear()
    device = torch.device("cuda", 0)
    try:
        monkeypatch.setattr(torch.version, "cuda", None)
        assert nvrtc.misfit(device) == "needs a torch for CUDA"
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        nvrtc.misfit.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "compute capability 8.0" in nvrtc.misfit(device)
        nvrtc.misfit.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(nvrtc, "_compiler", missing)
        assert "libnvrtc.so.13: no such file" in nvrtc.misfit(device)
    finally:
        nvrtc.misfit.cache_clear()


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_the_compilers_words_are_kept(folder):
    with pytest.raises(RuntimeError, match=r"does not compile: .*undeclared_name"):
        nvrtc.Kernel('extern "C" __global__ void k() { undeclared_name(); }', "k", {}, 32, 0)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_kernel_runs(folder):
    source = 'extern "C" __global__ void k(const float* x, float* y, int n) { '
    source += "int i = blockIdx.x * TWO + threadIdx.x; if (i < n) y[i] = x[i] + TWO; }"
    x, y = torch.randn(5, device="cuda"), torch.zeros(5, device="cuda")
    nvrtc.Kernel(source, "k", {"TWO": 2}, 2, 0)((3, 1), [x, y], 4)
    assert torch.equal(y[:4], x[:4] + 2) and y[4] == 0
