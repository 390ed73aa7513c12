"""Recorded updates are the learner's own: the same losses, weights and averages, batch by batch."""

import logging

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.recorded import RecordedUpdates, recorded_updates
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.trajectories import Trajectories
from decision_s4.kernels import choice, cuda_graph
from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.chunk_layout import widened
from decision_s4.kernels.lti_scan import System, chunked, lti_scan
from decision_s4.kernels.packing import Packing

CPU = torch.device("cpu")
SEEN, DONE = Box(-np.inf, np.inf, (3,)), Box(-1, 1, (2,))


def trajectories() -> Trajectories:
    """Episodes of 1 to 150 steps: of up to three chunks on the CPU."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 151, 24)
    steps = int(lengths.sum())
    return Trajectories(
        name="random",
        observation_space=SEEN,
        action_space=DONE,
        observations=random.normal(size=(steps + len(lengths), 3)),
        actions=random.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=random.normal(size=steps),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
        lengths=lengths,
    )


def make_learner(backbone="s4", device=CPU, action=DONE, options=()) -> DecisionLearner:
    torch.manual_seed(0)
    sizes = PolicyOptions(backbone, options, d_model=8, n_layers=2, d_embed=8, return_scale=10.0)
    policy = SequencePolicy(SEEN, action, sizes).to(device)
    rates = OptimiserOptions(recurrence_learning_rate=1e-3, warmup_steps=4)
    return DecisionLearner(policy, rates, 20)


@pytest.fixture
def recordings(monkeypatch):
    """In place of graphs: what was recorded runs again, and its results go where they went."""
    made = []

    def record(run, device):
        found = torch.zeros(()), torch.zeros(())
        made.append(found)

        def replay():
            for place, value in zip(found, run(), strict=True):
                place.copy_(value)

        return replay, found

    monkeypatch.setattr(cuda_graph, "record", record)
    return made


def assert_the_same_training(backbone, device, tolerance, count=14, options=()):
    plain, fast = (make_learner(backbone, device, options=options) for _ in range(2))
    updates, batches = RecordedUpdates(fast, device), PackedBatches(trajectories(), 200, 0)
    for _ in range(count):
        batch = next(batches)
        wanted, found = plain.update(batch.to(device)), updates.update(batch)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(fast.policy.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
    pairs = zip(fast.averaged_policy.parameters(), plain.averaged_policy.parameters(), strict=True)
    assert all(torch.allclose(mine, theirs, rtol=0, atol=tolerance) for mine, theirs in pairs)
    assert fast.learning_rate == plain.learning_rate
    assert [g["lr"] for g in fast.optimiser.param_groups] == [
        g["lr"] for g in plain.optimiser.param_groups
    ]
    return plain, fast


NARROW = ("n_heads=2",)
KINDS = [
    *(
        (name, ())
        for name in (
            "s4",
            "s4d",
            "s5",
            "lru",
            "mamba",
            "diff-mamba",
            "hyena",
            "mlp",
            "gru",
            "lstm",
            "al-rnn",
        )
    ),
    *((name, NARROW) for name in ("gla", "hgrn2", "retnet", "lightning", "linear-attention")),
    *((name, ("window=16", *NARROW)) for name in ("transformer", "las", "lla", "power-softmax")),
    ("mamba2", NARROW),
    ("hedgehog", NARROW),
    *((name, NARROW) for name in ("deltanet", "gated-deltanet", "kda", "rwkv")),
    ("hybrid", ("linear=mamba", "ratio=1", "full_window=16", "full_n_heads=2")),
    ("hybrid", ("linear=s4d", "ratio=1", "full_window=16", "full_n_heads=2")),
]


@pytest.mark.parametrize(("backbone", "options"), KINDS)
def test_they_train_alike(backbone, options, recordings):
    assert_the_same_training(backbone, CPU, 1e-4, options=options)
    assert 1 <= len(recordings) <= 3  # room grows at first only


@pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
def test_they_train_alike_by_fused_scans(recordings, monkeypatch):
    monkeypatch.setattr(choice, "fastest", lambda *about: "triton")
    monkeypatch.setattr(cuda_graph, "WARMUP", 1)
    _, fast = assert_the_same_training("s4", CPU, 1e-4, count=5)  # interpreted, they take minutes
    assert fast.policy.backbone.blocks[0].mixer.system()[1] is not None
    assert 1 <= len(recordings) <= 3


@pytest.mark.parametrize("gpu", [0, 1])
@pytest.mark.parametrize(
    ("backbone", "options"), [*KINDS, ("s4", ("train_ssm=true",)), ("s4d", ("train_ssm=true",))]
)
def test_graphs_train_alike_on_cuda(backbone, options, gpu, caplog):
    """On the second GPU too, while the first is torch's current one."""
    if torch.cuda.device_count() <= gpu:
        pytest.skip(f"needs {gpu + 1} CUDA device(s)")
    device = torch.device("cuda", gpu)
    plain, fast = assert_the_same_training(backbone, device, 1e-4, options=options)
    assert torch.cuda.current_device() == 0
    assert "cannot be recorded" not in caplog.text
    assert fast.average.n_averaged == plain.average.n_averaged == 14


def test_what_fails_to_be_recorded_runs_without(monkeypatch, caplog):
    def fail(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graph, "record", fail)
    with caplog.at_level(logging.WARNING):
        assert_the_same_training("s4d", CPU, 1e-4)
    assert caplog.text.count("cannot be recorded (operation not permitted") == 1


def test_room_changes_no_scan():
    """Chunks that nobody uses read nothing and give nothing."""
    torch.manual_seed(0)
    start, valid = torch.rand(2, 100) < 0.1, torch.rand(2, 100) < 0.9
    layout = Packing(start, valid).chunks(8)
    counts = (*(count + 3 for count in layout.counts), 3, 2)
    wide = Packing.prepared(start, valid, widened(layout, counts))
    system = System(*(0.2 * torch.randn(3, 4, dtype=torch.complex64) for _ in range(5)))
    u, state = torch.randn(2, 100, 3), torch.randn(2, 3, 4, 2)
    wanted = lti_scan(u, system, state, Packing(start, valid))
    given = chunked.scan(u, system, state, wide, chunk=8)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["deltanet", "kda", "rwkv"])
def test_delta_rules_can_be_where_their_scan_is_fused(backbone, monkeypatch):
    learner, device = make_learner(backbone, options=NARROW), torch.device("cuda")
    for impl in ("triton", "fla", "torch"):
        monkeypatch.setattr(choice, "fastest", lambda *about, impl=impl: impl)
        assert (recorded_updates(learner, device) is not None) == (impl == "triton")


@pytest.mark.parametrize(
    ("backbone", "action", "device", "reason"),
    [
        ("s4", DONE, "cpu", "the device is cpu, not cuda"),
        ("focus", DONE, "cuda", "not all layers of focus can be"),
        ("s4", Discrete(2), "cuda", "only policies of one token a step with Box actions can be"),
    ],
)
def test_what_cannot_be_recorded_is_said(backbone, action, device, reason, caplog):
    learner = make_learner(backbone, action=action)
    with caplog.at_level(logging.INFO):
        assert recorded_updates(learner, torch.device(device)) is None
    assert reason in caplog.text
