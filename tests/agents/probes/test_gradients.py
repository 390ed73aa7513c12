"""Methods that take the policy as a function: complete, exact where it is linear, and faithful."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.agents.backbones import BACKBONES
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.probes.base import Target, make_probe, make_probes, targets_of
from decision_s4.agents.probes.baselines import BASELINES, baseline
from decision_s4.agents.probes.context import Context, make_context
from decision_s4.agents.probes.faithfulness import GRADIENT, RANDOM, faithfulness
from decision_s4.agents.probes.gradients import IntegratedGradients, Occlusion, time_blocks
from decision_s4.agents.probes.recordings import Recording, made
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import UserError

METHODS = ("gradient-x-input", "integrated-gradients", "smoothgrad", "occlusion")
LAG, STEPS = 3, 24


class Lagged(SequencePolicy):
    """A planted policy: its first action is the first observation of LAG steps ago, times 2."""

    def forward(self, batch, state=None):
        x = self.tapped_inputs(batch.return_to_go, batch.observation, batch.previous_action)[1]
        before = torch.cat([torch.zeros_like(x[:, :LAG]), x[:, :-LAG]], 1)
        return 2 * before[..., :1].expand(-1, -1, self.options.d_model), state


def policy_of(kind=SequencePolicy, backbone="s4", low=-1.0):
    torch.manual_seed(0)
    space = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(low, -low, (2,))
    policy = kind(*space, PolicyOptions(backbone=backbone, d_model=16, n_layers=2, d_embed=8))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy.eval()


def recordings_of(policy, count=4, steps=STEPS) -> list[Recording]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        made(
            policy,
            str(i),
            draw(steps, 3),
            draw(steps, 2).tanh(),
            500 + 300 * draw(steps),
            draw(steps),
        )
        for i in range(count)
    ]


def context_of(policy, step=STEPS - 1, **more) -> Context:
    first, *rest = recordings_of(policy)
    return make_context(policy, first, rest, step, Target(0), **more)


@pytest.fixture
def planted() -> Context:
    policy = policy_of(Lagged, low=-np.inf)
    with torch.no_grad():
        policy.head.linear.weight.fill_(1 / policy.options.d_model)
        policy.head.linear.bias.zero_()
    return context_of(policy)


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_step_and_feature_are_found(planted, method):
    values = make_probe(method).attribute(planted).values
    top = divmod(values.abs().argmax().item(), values.shape[1])
    assert top == (STEPS - 1 - LAG, 1)


@pytest.mark.parametrize("method", METHODS[:3])
def test_a_linear_policy_has_its_analytic_answer(planted, method):
    """y = 2 x[t − LAG]: gradient × input is 2 x; a path from b adds 2 (x − b)."""
    probe = make_probe(method)
    x, b = planted.features, planted.others.mean(0)
    wanted = torch.zeros_like(x)
    here = STEPS - 1 - LAG, 1
    wanted[here] = 2 * (x[here] - (b[here] if method == "integrated-gradients" else 0))
    torch.testing.assert_close(probe.attribute(planted).values, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [(name, "episodes") for name in sorted(BACKBONES)]
    + [(name, kind) for name in ("s4", "mamba") for kind in BASELINES if kind != "episodes"],
)
def test_integrated_gradients_are_complete(backbone, kind):
    context = context_of(policy_of(backbone=backbone), window=12)
    found = IntegratedGradients(baseline=kind).attribute(context)
    assert found.values.sum().item() + found.bias == pytest.approx(found.prediction, abs=1e-3)


def test_decisions_that_jump_are_held_and_accounted_for():
    """Of a policy that attends elsewhere when it reads the baseline."""
    policy = policy_of(backbone="seqboat")
    with torch.no_grad():
        for block in policy.backbone.blocks:
            block.mixer.decide.weight.mul_(20)
            block.mixer.unit_gate.bias.add_(3)
            for part in (block.mixer.unit.queries_keys_values, block.mixer.unit.out):
                part.weight.mul_(20)
    context, probe = context_of(policy, window=12), IntegratedGradients()
    held, base = context.with_decisions_held(), baseline(probe.baseline, context)
    there = replace(context, features=base[0]).with_decisions_held()
    assert any((held.decisions[name] != there.decisions[name]).any() for name in held.decisions)
    assert held.prediction == context.prediction
    found = probe.attribute(context)
    assert found.values.sum().item() + found.bias == pytest.approx(found.prediction, abs=1e-3)
    change = found.bias - context.answer(base).mean().item()
    assert abs(change) > 1e-2  # what no integral of gradients holds
    assert f"{change:+.4f}" in found.notes[1]
    assert len(probe.attribute(context_of(policy_of(), window=12)).notes) == 1


def test_a_window_on_a_carried_state_answers_as_the_whole_episode():
    policy = policy_of()
    whole, window = context_of(policy), context_of(policy, window=7)
    assert window.features.shape == (7, 6)
    assert window.prediction == pytest.approx(whole.prediction, abs=1e-5)
    tail = window.tail(3)
    assert tail.first == STEPS - 3
    assert tail.prediction == pytest.approx(whole.prediction, abs=1e-5)


def test_answers_to_what_was_read_are_the_policys_own():
    policy = policy_of()
    context = context_of(policy)
    with torch.no_grad():
        features, _ = policy(context.batch)
    assert context.prediction == pytest.approx(policy.head.act(features)[0, -1, 0].item(), abs=1e-6)


def test_occlusion_sees_what_a_hand_sees():
    policy = policy_of()
    context = context_of(policy)
    base = baseline("episodes", context)[:2]
    changed = context.features.expand(2, -1, -1).clone()
    changed[:, -1, 2] = base[:, -1, 2]
    with torch.no_grad():
        wanted = context.prediction - context.answer(changed).mean().item()
    found = Occlusion().attribute(context).values[-1, 2].item()
    assert found == pytest.approx(wanted, abs=1e-6)


def test_time_blocks_cover_each_step_once():
    assert list(time_blocks(12, 2)) == [(11, 12), (10, 11), (8, 10), (4, 8), (0, 4)]


def test_faithfulness_tells_a_true_map_from_chance(planted):
    contexts = [planted.tail(STEPS)] * 3
    found = faithfulness([make_probe("occlusion")], contexts)
    value, low, _ = found.beats("occlusion", RANDOM)
    assert 0 < low <= value
    assert found.mean("occlusion", "sufficiency")[0] == pytest.approx(0, abs=1e-5)
    assert {"occlusion", GRADIENT, RANDOM} == {row[0] for row in found.table().rows}


def test_bad_questions_are_named():
    policy = policy_of()
    with pytest.raises(UserError, match=r"probe 'oclusion' is unknown; did you mean 'occlusion'\?"):
        make_probes(["oclusion"], policy)
    with pytest.raises(UserError, match="baseline 'means' is unknown"):
        baseline("means", context_of(policy))
    with pytest.raises(UserError, match="dimensions are 0 to 1"):
        Target(2).check(policy)
    with pytest.raises(UserError, match="steps are 0 to 23"):
        context_of(policy, step=24)
    assert [target.name for target in targets_of(policy)] == ["action[0]", "action[1]"]
