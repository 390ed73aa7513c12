"""A hedgehog policy that takes over from a transformer."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gymnasium import spaces

from decision_s4 import train
from decision_s4.agents import checkpoint, saved
from decision_s4.agents.decision import OptimiserOptions
from decision_s4.agents.distillation import DistilledLearner, attention_loss, copy_weights
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy

SIZES = PolicyOptions(d_model=16, d_embed=8, n_layers=2, backbone="transformer")
TEACHER = replace(SIZES, backbone_options=("positions=none", "n_heads=2", "window=50"))
PUPIL = replace(SIZES, backbone="hedgehog", backbone_options=("n_heads=2", "bias=true"))
SPACE = spaces.Box(-1, 1, (3,))


def make(options: PolicyOptions, seed: int) -> SequencePolicy:
    torch.manual_seed(seed)
    return SequencePolicy(SPACE, SPACE, options)


def sharp_teacher() -> SequencePolicy:
    """One whose attention is not uniform, as it is in the beginning."""
    teacher = make(TEACHER, 0)
    for block in teacher.backbone.blocks:
        torch.nn.init.normal_(block.mixer.queries_keys_values.weight, std=0.5)
        torch.nn.init.normal_(block.mixer.out.weight, std=0.5)
    return teacher.eval()


def make_batch(seed: int, rows: int = 4, steps: int = 12) -> SimpleNamespace:
    """Two episodes a row, the last two steps of the first row padding."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.zeros(rows, steps, dtype=torch.bool)
    start[:, 0] = start[:, 5] = True
    valid = torch.ones_like(start)
    valid[0, -2:] = False
    return SimpleNamespace(
        observation=torch.randn(rows, steps, 3, generator=draw),
        previous_action=torch.randn(rows, steps, 3, generator=draw),
        action=torch.randn(rows, steps, 3, generator=draw).tanh(),
        return_to_go=1000 * torch.randn(rows, steps, generator=draw),
        start=start,
        valid=valid,
    )


def losses(policy, teacher, batch) -> torch.Tensor:
    """At all steps."""
    return attention_loss(policy, teacher, batch, torch.arange(batch.start.shape[1]))


def loss(policy, teacher, batch) -> float:
    return losses(policy, teacher, batch)[batch.valid].mean().item()


def distance(policy, teacher, batch) -> float:
    with torch.no_grad():
        ours, theirs = (each.head.act(each(batch)[0])[batch.valid] for each in (policy, teacher))
    return (ours - theirs).abs().mean().item()


def test_it_begins_as_a_copy_but_for_the_feature_maps():
    teacher, policy = sharp_teacher(), make(PUPIL, 1)
    copy_weights(policy, teacher)
    ours, theirs = (dict(each.named_parameters()) for each in (policy, teacher))
    assert sum("feature_maps" in name for name in ours) == 2
    for name in set(ours) & set(theirs):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    mixers = (each.backbone.blocks[1].mixer for each in (policy, teacher))
    x = torch.randn(2, 5, 16)
    ours, theirs = (
        mixer.in_proj(x) if hasattr(mixer, "in_proj") else mixer.queries_keys_values(x)
        for mixer in mixers
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_loss_is_zero_where_weights_are_the_same_and_sees_no_other_episode():
    """One step an episode: every weight is 1."""
    teacher, policy, batch = sharp_teacher(), make(PUPIL, 1), make_batch(0)
    copy_weights(policy, teacher)
    batch.start[:] = True
    assert losses(policy, teacher, batch).abs().max() < 1e-6
    batch = make_batch(0)
    before = losses(policy, teacher, batch)
    batch.observation[:, :5] = 1e3
    after = losses(policy, teacher, batch)
    torch.testing.assert_close(after[:, 5:], before[:, 5:])
    some = torch.tensor([7, 2])
    torch.testing.assert_close(attention_loss(policy, teacher, batch, some), after[:, some])


def test_distilling_brings_attention_and_actions_nearer():
    teacher, held_out = sharp_teacher(), make_batch(99)
    policy = make(PUPIL, 1)
    options = OptimiserOptions(learning_rate=3e-2, warmup_steps=5, gradient_clip=10.0)
    learner = DistilledLearner(policy, teacher, options, 60, distill_steps=60)
    before = loss(policy, teacher, held_out), distance(policy, teacher, held_out)
    kept = policy.embed_observation.weight.clone()
    for i in range(60):
        learner.update(make_batch(i))
    assert loss(policy, teacher, held_out) < 0.5 * before[0]
    assert distance(policy, teacher, held_out) < 0.8 * before[1]
    torch.testing.assert_close(policy.embed_observation.weight, kept, rtol=0, atol=0)


def test_then_all_weights_imitate():
    policy = make(PUPIL, 1)
    options = OptimiserOptions(warmup_steps=1)
    learner = DistilledLearner(policy, sharp_teacher(), options, 4, distill_steps=1)
    learner.update(make_batch(0))
    kept = policy.embed_observation.weight.clone()
    learner.update(make_batch(0))
    assert (policy.embed_observation.weight != kept).any()


TINY = (
    "--steps 2 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --threads 1 --device cpu --env none --dataset hopper-mixed"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs of transformers: `plain` without positions, `turning` with them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in (("plain", ["--backbone-options", "positions=none"]), ("turning", [])):
        flags = [*TINY.split(), "--backbone", "transformer", *options]
        assert train.main([*flags, "--run-dir", str(folder / name)]) == 0
    return folder


def test_a_run_from_a_run_and_its_resumption(runs):
    run = ["--run-dir", str(runs / "pupil")]
    flags = [
        "--backbone",
        "hedgehog",
        "--distill-from",
        str(runs / "plain"),
        "--distill-steps",
        "1",
    ]
    assert train.main([*TINY.split(), *flags, *run]) == 0
    assert train.main(["--resume", str(runs / "pupil"), "--steps", "3"]) == 0
    policy = saved.rebuild(checkpoint.load(runs / "pupil", "last"))
    assert "bias=true" in policy.options.backbone_options


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backbone s4d --distill-from plain", "needs --backbone hedgehog, not s4d"),
        ("--backbone hedgehog --distill-from turning", "positions=none"),
        ("--backbone hedgehog --distill-from plain --d-model 16", "--d-model is 16, but 8 in"),
        ("--backbone hedgehog --distill-from plain --backbone-options n_heads=2", "n_heads is 2"),
        ("--backbone hedgehog --distill-from plain --range-weight 1", "exclude each other"),
        ("--backbone hedgehog --distill-from nowhere", "nowhere"),
    ],
)
def test_bad_input(runs, flags, message, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert train.main([*TINY.split(), *flags.split(), "--run-dir", str(runs / "bad")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
