"""Runs of ds4-online: from scratch, from another run, resumed, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_unflatten

from decision_s4 import evaluate
from decision_s4.agents import checkpoint, saved
from decision_s4.agents.ds4_online import DS4OnlineLearner
from decision_s4.agents.online_training import DS4OnlineConfig, OnlineTraining
from decision_s4.agents.replay import this_step
from decision_s4.agents.settings import settings as chosen
from decision_s4.agents.stored_state import LastLayer
from decision_s4.envs.errors import DivergedError, UserError
from decision_s4.envs.local_rows import LocalRows
from decision_s4.envs.worker_rows import WorkerRows
from decision_s4.train import main

SIZES = {"d_model": 8, "n_layers": 1, "d_embed": 4, "critic_width": 8}
SHORT = {"steps": 512, "eval_every": 256, "eval_episodes": 2, "critic_warmup": 128}
SHORT |= {"warmup_updates": 8}
CPU = torch.device("cpu")


def settings(**options):
    values = {"algo": "ds4-online", "env": "Pendulum-v1", "batch_size": 16, "replay_size": 400}
    return DS4OnlineConfig(**values | SIZES | SHORT | options)


def flags(**options):
    values = vars(settings(**options))
    known = {f.name: f.default for f in dataclasses.fields(DS4OnlineConfig)}
    changed = {n: v for n, v in values.items() if v != known[n]}
    return [f"--{n.replace('_', '-')}={v}" for n, v in changed.items()] + ["--no-video"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("online") / "run"
    assert main(flags(run_dir=folder)) == 0
    return folder


def test_a_run_from_scratch_leaves_what_every_run_leaves(run):
    assert {"config.yaml", "eval.csv", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert checkpoint.load(run).step == 512


def test_a_run_can_be_evaluated(run, capsys):
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    assert f"step {checkpoint.load(run, 'best').step}" in capsys.readouterr().out


def test_it_may_ask_for_more_than_the_data_of_the_run_begun_from(run, monkeypatch):
    offline = dataclasses.replace(saved.task(checkpoint.load(run)), return_range=(0.0, 1.0))
    monkeypatch.setattr(saved, "task", lambda found: offline)
    begun = settings(from_run=run, env=None, target_returns=(9.0,))
    assert OnlineTraining.begin(begun, CPU).task.aims == (9.0,)


def test_a_run_goes_on_from_anothers_best_policy(run):
    begun = OnlineTraining.begin(settings(from_run=run, env=None), CPU)
    saved = checkpoint.load(run, "best").weights
    for name, value in begun.learner.policy.state_dict().items():
        assert torch.equal(value, saved[name])
    assert begun.task.env_id == "Pendulum-v1"


def test_a_run_is_resumed_by_the_command_line(run, tmp_path):
    folder = tmp_path / "run"
    begun = ["--from", str(run)]
    assert main([*flags(run_dir=folder, steps=256), *begun]) == 0
    assert main(["--resume", str(folder), "--steps", "384"]) == 0
    assert checkpoint.load(folder).step == 384


def test_a_run_goes_on_without_the_one_that_it_was_begun_from(run, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(run, source, symlinks=True)
    assert main([*flags(run_dir=folder, steps=256), "--from", str(source)]) == 0
    shutil.rmtree(source)
    assert main(["--resume", str(folder), "--steps", "384"]) == 0
    found = checkpoint.load(folder)
    assert found.step == 384
    assert saved.rebuild(found).options.d_model == 8


def test_a_checkpoint_goes_on_bit_for_bit_but_for_the_environments(run, tmp_path):
    """From the same replay the same updates follow; the episodes are new ones, of later seeds."""
    first = OnlineTraining.begin(settings(), CPU)
    for _ in range(3):
        first.update()
    first.save(tmp_path)
    second = OnlineTraining.begin(settings(), CPU)
    second.restore(tmp_path)
    assert (second.step, second.explorer.target) == (first.step, first.explorer.target)
    kept = first.replay.state_dict()["store"], second.replay.state_dict()["store"]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    learned = [each._learn(64)["loss"] for each in (first, second)]
    assert torch.equal(*learned)
    weights = [each.learner.policy.state_dict() for each in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert second.explorer.table is None and second.explorer.episodes == first.explorer.episodes


@pytest.mark.parametrize("backbone", ["transformer", "focus", "lstm", "mamba", "diff-mamba"])
def test_whole_states_of_any_kind_are_kept(backbone, tmp_path):
    options = {"backbone": backbone, "steps": 8, "environments": 2, "round_steps": 8}
    first, second = (OnlineTraining.begin(settings(**options), CPU) for _ in range(2))
    first.update()
    first.save(tmp_path)
    second.restore(tmp_path)
    kept = first.replay.state_dict()["store"], second.replay.state_dict()["store"]
    for a, b in zip(*map(tree_leaves, kept), strict=True):
        assert torch.equal(a, b)
    second.update()


def nested(first: OnlineTraining) -> dict:
    """A run's state as it was written when states were kept as the backbone gives them."""
    state = first.state_dict()
    form = first.learner.stored.form
    store = state["replay"]["store"]
    changed = {n: tree_unflatten(store[n], form) for n in ("state", "next_state")}
    return state | {"replay": state["replay"] | {"store": store | changed}}


def test_a_checkpoint_of_nested_states_goes_on_too():
    options = {"backbone": "mamba", "steps": 8, "environments": 2, "round_steps": 8}
    first, second = (OnlineTraining.begin(settings(**options), CPU) for _ in range(2))
    first.update()
    assert type(nested(first)["replay"]["store"]["state"][0]) is not torch.Tensor
    second.load_state_dict(nested(first), 8)
    kept = first.replay.state_dict()["store"], second.replay.state_dict()["store"]
    for a, b in zip(*map(tree_leaves, kept), strict=True):
        assert torch.equal(a, b)
    second.update()


def test_states_of_another_form_are_refused_or_left_out():
    options = {"steps": 8, "environments": 2, "round_steps": 8}
    first, second, third = (
        OnlineTraining.begin(settings(**options | more), CPU)
        for more in ({"store_states": False}, {}, {"save_replay": False})
    )
    first.update()
    with pytest.raises(UserError, match="states in another form than this version; --no-save-repl"):
        second.load_state_dict(first.state_dict(), 8)
    third.load_state_dict(first.state_dict(), 8)
    assert len(third.replay) == 0
    third.update()


def test_a_run_without_stored_states_goes_on_too(tmp_path):
    first = OnlineTraining.begin(settings(store_states=False), CPU)
    first.update()
    first.save(tmp_path)
    second = OnlineTraining.begin(settings(store_states=False), CPU)
    second.restore(tmp_path)
    assert second.replay.store.state.shape == (400, 0)
    assert torch.equal(*[each._learn(8)["loss"] for each in (first, second)])


def test_a_checkpoint_without_the_replay_goes_on_with_an_empty_one(tmp_path):
    first = OnlineTraining.begin(settings(save_replay=False), CPU)
    first.update()
    first.save(tmp_path)
    second = OnlineTraining.begin(settings(save_replay=False), CPU)
    second.restore(tmp_path)
    assert (second.step, len(second.replay)) == (128, 0)
    second.update()
    assert len(second.replay) == 128


def test_an_episodes_stored_states_are_those_that_its_replay_recomputes():
    begun = OnlineTraining.begin(settings(environments=1, round_steps=50, noise=0.3), CPU)
    begun.explorer.act_as(begun.learner.policy, begun.learner.stored)
    with torch.no_grad():
        for block in begun.learner.policy.backbone.blocks:
            block.mixer.c.normal_()
    begun.learner.stored = LastLayer(begun.learner.policy)  # of these weights
    begun.explorer.table = None
    begun.explorer.act_as(begun.learner.policy, begun.learner.stored)
    for _ in range(50):
        begun.explorer.step(begun.replay, 0)
    stored, policy = begun.replay.store, begun.learner.policy
    steps = this_step(stored)
    state = policy.initial_state(1)
    for t in range(50):
        step = type(steps)(*(leaf[t : t + 1] for leaf in steps))
        kept = begun.learner.stored.keep(state, step)
        assert_close(stored.state[t : t + 1], kept, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            _, state = policy.step(step, state)
    assert stored.state[:50].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": None}, "give --env, or --from"),
        ({"env": "CartPole-v1"}, "needs a Box action space"),
        ({"from_run": Path("nowhere")}, "holds no checkpoints"),
        ({"dropout": 0.1}, "--dropout 0.1: ds4-online learns without; leave it out"),
        ({"anchor_weight": 0.5}, "--anchor-weight 0.5 without --from: an untrained policy is none"),
        ({"anchor_final": 0.1}, "--anchor-final 0.1 without --from: an untrained policy is none"),
        ({"tokens": "three"}, "--tokens three --context-mode recurrent: ds4-online goes on from a"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        OnlineTraining.begin(settings(**options), CPU)


def test_an_environment_of_other_spaces_is_refused(run):
    with pytest.raises(UserError, match=r"'Hopper-v5' has observations Box\(11,\), the policy of"):
        OnlineTraining.begin(settings(from_run=run, env="Hopper-v5"), CPU)


@pytest.mark.parametrize("size", [16, 64])  # 64 is the default, which is as good as any other
@pytest.mark.parametrize("place", ["flag", "file"])
def test_another_size_than_that_of_the_run_begun_from_is_refused(place, size, run, tmp_path):
    given = ["--d-model", str(size)]
    if place == "file":
        (tmp_path / "mine.yaml").write_text(f"d_model: {size}\n")
        given = ["--config", str(tmp_path / "mine.yaml")]
    with pytest.raises(UserError, match=rf"^--from: d_model is 8, not {size}, in .*; leave it out"):
        chosen(["--algo", "ds4-online", "--from", str(run), *given])


def test_the_sizes_of_the_run_begun_from_are_the_runs_own(run):
    config = chosen(["--algo", "ds4-online", "--from", str(run), "--d-model", "8"])
    assert (config.d_model, config.d_embed, config.n_layers) == (8, 4, 1)


def test_a_policy_of_another_kind_is_refused(tmp_path, capsys):
    small = "--rows 4 --rollout-steps 16 --steps 64 --eval-episodes 1 --d-model 8 --n-layers 1"
    ppo = f"--algo ppo --env Pendulum-v1 {small} --no-video --run-dir {tmp_path / 'run'}"
    assert main(ppo.split()) == 0
    assert main(["--algo", "ds4-online", "--from", str(tmp_path / "run")]) == 2
    assert "a policy of --algo ppo is not one that ds4-online can" in capsys.readouterr().err


def test_a_second_target_is_refused(run):
    begun = settings(from_run=run, env=None, target_returns=(2.0, 1.0))
    with pytest.raises(UserError, match="--target-returns 2,1: ds4-online asks for one return"):
        OnlineTraining.begin(begun, CPU)


def test_a_resumed_run_learns_at_the_rates_that_are_asked_for(tmp_path):
    first = OnlineTraining.begin(settings(), CPU)
    first.update()
    first.save(tmp_path)
    rates = {"actor_learning_rate": 1e-5, "critic_learning_rate": 2e-5}
    second = OnlineTraining.begin(settings(**rates), CPU)
    second.restore(tmp_path)
    learner = second.learner
    found = [o.param_groups[0]["lr"] for o in (learner.actor_optimiser, learner.critic_optimiser)]
    assert found == [1e-5, 2e-5]
    assert learner.critic_optimiser.state_dict()["state"].keys()


def test_logged_steps_of_other_spaces_are_refused(run):
    begun = OnlineTraining.begin(settings(from_run=run, env=None), CPU)
    begun.config = dataclasses.replace(begun.config, dataset="hopper-mixed")
    with pytest.raises(UserError, match=r"--dataset hopper-mixed: its observation_space is Box"):
        begun.update()


@pytest.mark.parametrize("value", [np.nan, 1e9])
def test_values_that_are_none_stop_a_run(value):
    begun = OnlineTraining.begin(settings(), CPU)
    begun.update()
    begun.learner.target_critic.out.bias.fill_(value)
    with pytest.raises(UserError, match=r"training diverged: (loss|value) is"):
        begun.update()


def test_a_run_that_diverges_keeps_the_checkpoint_from_before(tmp_path, monkeypatch, capsys):
    update, folder = DS4OnlineLearner.update, tmp_path / "run"

    def spoiling(learner, *arguments):
        metrics = update(learner, *arguments)
        if learner.updates > 80:  # after the evaluation at step 256, which follows on 72
            learner.policy.head.linear.bias.data.fill_(np.nan)
        return metrics

    monkeypatch.setattr(DS4OnlineLearner, "update", spoiling)
    assert main([*flags(run_dir=folder, critic_warmup=0), "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("train.py: training diverged: ")
    assert f"go on from the last checkpoint with --resume {folder}" in error
    kept = checkpoint.load(folder)
    assert kept.step == 256 and all(w.isfinite().all() for w in kept.weights.values())


def test_a_policy_whose_actions_are_no_numbers_stops_a_run():
    begun = OnlineTraining.begin(settings(), CPU)
    begun.learner.policy.head.linear.bias.data.fill_(np.nan)
    with pytest.raises(DivergedError, match="the policy's action is not finite at step 0"):
        begun.update()


@pytest.mark.parametrize("name", ["reward", "observation"])
def test_an_environment_that_gives_no_numbers_stops_a_run(name, tmp_path, monkeypatch, capsys):
    step, calls = LocalRows.step, []

    def broken_step(rows, *arguments):
        calls.append(rows)
        outcome = step(rows, *arguments)
        return outcome._replace(**{name: getattr(outcome, name) * np.nan} if calls[20:] else {})

    monkeypatch.setattr(LocalRows, "step", broken_step)
    assert main([*flags(run_dir=tmp_path / "run"), "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert f"the environment gave {name}s that are not finite at environment step 160" in error


@pytest.mark.parametrize("algo", ["ds4-online", "ppo", "sb3-ppo"])
def test_a_worker_that_dies_stops_the_run_in_one_line(algo, tmp_path, monkeypatch, capsys):
    step, calls = WorkerRows.step, []

    def dying_step(rows, *arguments):
        calls.append(rows)
        if len(calls) == 40:
            rows.processes[0].kill()
            rows.processes[0].join()
        return step(rows, *arguments)

    monkeypatch.setattr(WorkerRows, "step", dying_step)
    common = f"--algo {algo} --env Pendulum-v1 --workers 2 --eval-every 64 --steps 512"
    sizes = "--d-model 8 --n-layers 1"
    own = {
        "ds4-online": f"--round-steps 64 {sizes}",
        "ppo": f"--rollout-steps 16 --rows 4 {sizes}",
        "sb3-ppo": "--environments 4 --agent-options n_steps=16",
    }[algo]
    folder = tmp_path / "run"
    shown = f"--eval-episodes 1 --no-video --device cpu --run-dir {folder}"
    assert main(f"{common} {own} {shown}".split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "worker process died" in error and f"--resume {folder}" in error
