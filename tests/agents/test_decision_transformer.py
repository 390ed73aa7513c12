"""Three tokens a step, in every mode: training on windows is what acting computes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import decision_s4
from decision_s4 import evaluate, train
from decision_s4.agents import checkpoint
from decision_s4.agents.actor import Actor
from decision_s4.agents.config import parse
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policies import POLICIES, make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.training import TrainConfig
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import map_tree, space_tree
from decision_s4.envs.timestep import TimeStep
from decision_s4.envs.trajectories import Trajectories
from decision_s4.envs.windows import WindowBatches

K = 5
LENGTHS = [12, 1, 7]
BOX, HAND = spaces.Box(-1, 1, (3,)), spaces.Box(-2, 3, (2,))
SPACES = {
    "box": (BOX, HAND),
    "discrete": (spaces.Discrete(4, start=2), spaces.Discrete(3, start=1)),
    "dict": (
        spaces.Dict({"a": spaces.Box(0, 255, (8, 8, 3), np.uint8), "b": BOX}),
        spaces.MultiDiscrete([2, 3]),
    ),
}
SMALL = PolicyOptions(
    backbone="transformer",
    backbone_options=("n_heads=1", f"window={3 * K}", "positions=none"),
    d_model=16,
    n_layers=2,
    mlp_ratio=2.0,
    mlp_activation="relu",
    tokens="three",
    context_mode="recompute",
    context_steps=K,
    max_episode_steps=20,
)


def new_policy(names: str = "box", **options) -> Policy:
    """Every parameter stirred, in evaluation mode."""
    torch.manual_seed(0)
    policy = make_policy(*SPACES[names], replace(SMALL, **options))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return policy.eval()


def sampled(space: spaces.Space, count: int):
    space.seed(0)
    return map_tree(
        lambda *leaves: np.stack(leaves),
        *(space_tree(space, space.sample()) for _ in range(count)),
    )


def episodes(names: str = "box", lengths: list[int] = LENGTHS) -> Trajectories:
    observation_space, action_space = SPACES[names]
    steps = sum(lengths)
    return Trajectories(
        name=names,
        observation_space=observation_space,
        action_space=action_space,
        observations=sampled(observation_space, steps + len(lengths)),
        actions=sampled(action_space, steps),
        rewards=np.random.default_rng(0).normal(0, 500, steps),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
        lengths=np.array(lengths),
    )


def whole(data: Trajectories):
    """All episodes in one row, in their order."""
    return PackedBatches(data, 10**6, 0)._batch(np.arange(data.num_episodes))


def acted(policy: Policy, batch) -> torch.Tensor:
    """Actions (B, T, …) of an Actor that meets the rows step by step."""
    actor, actions = Actor(policy), []
    state = actor.initial_state(len(batch.start))
    for t in range(batch.start.shape[1]):
        observation, done = (
            map_tree(lambda leaf, t=t: leaf[:, t], tree)
            for tree in (batch.observation, batch.previous_action)
        )
        start, target = batch.start[:, t], batch.return_to_go[:, t]
        ended = torch.zeros_like(start)
        step = TimeStep(observation, done, 0 * target, target, start, ended, ended)
        action, state = actor.act(step, state)
        actions.append(action)
    return torch.stack(actions, 1)


@torch.no_grad()
@pytest.mark.parametrize("tokens", ["three", "step"])
@pytest.mark.parametrize("names", SPACES)
def test_recomputing_acts_as_the_training_on_windows_computes(names, tokens):
    policy, data = new_policy(names, tokens=tokens), episodes(names)
    found = acted(policy, whole(data))[0]
    timestep = np.concatenate([np.arange(length) for length in LENGTHS])
    back = np.minimum(timestep, K - 1)
    features, _ = policy(WindowBatches(data, K, 1, 0).windows(np.arange(len(back)) - back))
    expected = policy.head.act(features[np.arange(len(back)), back])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("names", SPACES)
@pytest.mark.parametrize("backbone", ["transformer", "s4", "hybrid"])
def test_recurrent_acting_equals_whole_episodes_in_parallel(backbone, names):
    own = SMALL.backbone_options if backbone == "transformer" else ()
    options = {"backbone": backbone, "backbone_options": own, "context_mode": "recurrent"}
    policy, batch = new_policy(names, **options), whole(episodes(names))
    expected = policy.head.act(policy(batch)[0])
    torch.testing.assert_close(acted(policy, batch), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_both_modes_are_one_function_until_the_window_slides():
    batch = whole(episodes())
    recurrent, recomputed = (
        acted(new_policy(context_mode=mode), batch)[0] for mode in ("recurrent", "recompute")
    )
    early = batch.timestep[0] < K
    torch.testing.assert_close(recurrent[early], recomputed[early], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(recurrent[~early], recomputed[~early], rtol=1e-3)


@torch.no_grad()
def test_a_sequence_may_be_split_and_its_state_carried_on():
    policy, batch = new_policy(context_mode="recurrent").double(), whole(episodes())
    batch = tree_map(lambda x: x.double() if x.is_floating_point() else x, vars(batch))
    part = type("Part", (), {})

    def cut(first, last):
        view = part()
        for name, leaf in batch.items():
            setattr(view, name, leaf[:, first:last])
        return view

    expected, final = policy(cut(0, None))
    for at in (1, 5, 12, 13, 19):
        first, state = policy(cut(0, at))
        second, state = policy(cut(at, None), state)
        found = torch.cat([first, second], 1)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        for new, old in zip(tree_leaves(state), tree_leaves(final), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-12)
    assert final.time.tolist() == [7]


@torch.no_grad()
def test_the_tokens_by_hand():
    policy = make_policy(
        spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)), replace(SMALL, d_model=2)
    )
    for layer, column in {
        policy.embed_action: [1.0, 0.0],
        policy.embed_return: [0.0, 1.0],
        policy.embed_observation: [1.0, 1.0],
    }.items():
        layer.weight.copy_(torch.tensor(column)[:, None]), layer.bias.zero_()
    policy.embed_time.weight.copy_(100 * torch.arange(20.0)[:, None].expand(20, 2))
    policy.norm = nn.Identity()
    tokens = policy.embed(
        torch.tensor([[2000.0, 1000.0]]),
        torch.tensor([[[5.0], [6.0]]]),
        torch.tensor([[[7.0], [8.0]]]),
        torch.tensor([[3, 4]]),
    )
    assert tokens[0].flatten(0, 1).tolist() == [
        *([207, 200], [300, 302], [305, 305]),
        *([308, 300], [400, 401], [406, 406]),
    ]


def peer_module():
    """The Decision Transformer of the benchmarks, written apart from this one."""
    path = Path(decision_s4.__file__).parent / "benchmarks/peers/decision_transformer.py"
    spec = importlib.util.spec_from_file_location("peer_decision_transformer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_weights_of(policy: Policy):
    """The peer with the same weights."""
    peer = peer_module()
    model = peer.DecisionTransformer(3, 2, K, 16, layers=2, max_steps=20)
    blocks = [
        (theirs, ours) for theirs, ours in zip(model.blocks, policy.backbone.blocks, strict=True)
    ]
    pairs = [
        *((getattr(model, f"embed_{n}"), getattr(policy, f"embed_{n}")) for n in
          ("time", "return", "observation", "action")),
        (model.norm_in, policy.norm),
        (model.norm_out, policy.backbone.norm),
        (model.head, policy.head.linear),
        *((theirs.norm_attention, ours.norm) for theirs, ours in blocks),
        *((theirs.queries_keys_values, ours.mixer.queries_keys_values) for theirs, ours in blocks),
        *((theirs.out, ours.mixer.out) for theirs, ours in blocks),
        *((theirs.norm_mlp, ours.mlp[0]) for theirs, ours in blocks),
        *((theirs.mlp[0], ours.mlp[1]) for theirs, ours in blocks),
        *((theirs.mlp[2], ours.mlp[3]) for theirs, ours in blocks),
    ]  # fmt: skip
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return peer.TransformerAgent(model)


@torch.no_grad()
def test_it_acts_as_a_decision_transformer_that_was_written_apart():
    policy, batch = new_policy(mlp_ratio=4.0), whole(episodes())
    agent = with_weights_of(policy)
    state, expected = agent.initial_state(1), []
    for t in range(batch.start.shape[1]):
        start = batch.start[:, t]
        step = TimeStep(
            batch.observation[:, t], batch.previous_action[:, t], torch.zeros(1),
            batch.return_to_go[:, t], start, ~start, ~start,
        )  # fmt: skip
        action, state = agent.act(step, state)
        expected.append(action)
    unit = (acted(policy, batch) - policy.head.centre) / policy.head.reach
    torch.testing.assert_close(unit, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_an_action_is_not_predicted_from_itself():
    policy, data = new_policy(), episodes()
    batch = WindowBatches(data, K, 1, 0).windows(np.array([2]))
    batch.previous_action.requires_grad_()
    (gradient,) = torch.autograd.grad(policy(batch)[0][:, 2].sin().sum(), batch.previous_action)
    assert gradient.abs().amax(-1)[0].bool().tolist() == [False, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["recurrent", "recompute"])
def test_episodes_longer_than_the_embedding_are_named(mode):
    policy = new_policy(max_episode_steps=6, context_mode=mode)
    message = "knows 6; train with a larger --max-episode-steps"
    with pytest.raises(UserError, match=message):
        policy(whole(episodes(lengths=[7])))
    with pytest.raises(UserError, match=message):
        acted(policy, whole(episodes(lengths=[7])))
    assert acted(policy, whole(episodes(lengths=[6, 6]))).isfinite().all()


def test_a_policy_that_recomputes_takes_no_state_in_parallel():
    policy = new_policy()
    with pytest.raises(ValueError, match="takes no state"):
        policy(whole(episodes()), policy.initial_state(1))


def test_unknown_tokens_are_named():
    with pytest.raises(UserError, match="'four recompute' are unknown"):
        make_policy(*SPACES["box"], replace(SMALL, tokens="four"))


@pytest.mark.parametrize("kind", POLICIES)
def test_the_options_choose_the_policy(kind):
    assert type(new_policy(tokens=kind[0], context_mode=kind[1])) is POLICIES[kind]


def test_the_constant_schedule_warms_up_and_stays():
    options = OptimiserOptions(learning_rate=1.0, warmup_steps=4, schedule="constant")
    learner, rates = DecisionLearner(new_policy(), options, 100), []
    batch = next(WindowBatches(episodes(), K, 2, 0))
    for _ in range(7):
        rates.append(learner.schedule.get_last_lr()[0])
        learner.update(batch)
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_it_learns_to_get_the_return_asked_for():
    """Episodes of four steps, reward = action in {0, 1}: the return-to-go and time tell it."""
    arms = np.array([[n >> i & 1 for i in range(4)] for n in range(16)])
    space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    data = Trajectories(
        name="bandit",
        observation_space=space[0],
        action_space=space[1],
        observations=np.zeros((5 * 16, 1), np.float32),
        actions=arms.reshape(-1),
        rewards=arms.reshape(-1).astype(np.float64),
        terminations=np.tile([False, False, False, True], 16),
        truncations=np.zeros(64, bool),
        lengths=np.full(16, 4),
    )
    torch.manual_seed(0)
    policy = make_policy(*space, replace(SMALL, return_scale=1.0))
    options = OptimiserOptions(learning_rate=5e-3, warmup_steps=20, average_decay=0.9)
    learner, batches = DecisionLearner(policy, options, 300), WindowBatches(data, K, 32, 0)
    for _ in range(300):
        learner.update(next(batches))
    actor, left = Actor(learner.averaged_policy), torch.arange(5.0)
    state, done, never = actor.initial_state(5), torch.zeros(5).long(), torch.zeros(5).bool()
    for t in range(4):
        step = TimeStep(torch.zeros(5, 1), done, 0 * left, left, never | (t == 0), never, never)
        done, state = actor.act(step, state)
        left = left - done
    assert left.tolist() == [0] * 5


TINY = (
    "--algo decision-transformer --steps 4 --eval-every 2 --eval-episodes 1 --no-video "
    "--batch-steps 100 --d-model 8 --n-layers 1 --threads 1 --device cpu --target-returns 3600"
)


def test_it_trains_resumes_and_evaluates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([*TINY.split(), "--run-dir", "through"]) == 0
    assert train.main([*TINY.split(), "--steps", "2", "--run-dir", "run"]) == 0
    assert train.main(["--resume", "run", "--steps", "4"]) == 0
    weights = [
        Path(run, "checkpoints/last/weights.safetensors").read_bytes() for run in ("through", "run")
    ]
    assert weights[0] == weights[1]
    assert checkpoint.load(Path("run")).metadata["algo"] == "decision-transformer"
    assert evaluate.main(["run", "--episodes", "1", "--checkpoint", "last"]) == 0


def test_a_dataset_with_longer_episodes_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([*TINY.split(), "--max-episode-steps", "99", "--run-dir", "run"]) == 2
    assert "train with a larger --max-episode-steps" in capsys.readouterr().err


def test_the_published_configuration():
    config = parse(TrainConfig, ["--algo", "decision-transformer"])
    assert (config.tokens, config.context_mode, config.context_steps) == ("three", "recompute", 20)
    assert (config.d_model, config.n_layers, config.mlp_ratio) == (128, 3, 4)
    assert (config.mlp_activation, config.dropout) == ("relu", 0.1)
    assert set(config.backbone_options) == {
        *("n_heads=1", "window=60", "positions=none", "attention_dropout=0.1"),
    }
    assert (config.sampling, config.batch_steps) == ("windows", 64 * 20)
    assert (config.learning_rate, config.weight_decay) == (1e-4, 1e-4)
    assert (config.warmup_steps, config.schedule, config.return_scale) == (10_000, "constant", 1000)


def test_decision_mamba_differs_in_the_backbone():
    transformer, mamba = (
        parse(TrainConfig, ["--algo", f"decision-{name}"]) for name in ("transformer", "mamba")
    )
    assert (mamba.backbone, mamba.backbone_options) == ("mamba", ())
    for name in ("tokens", "context_mode", "context_steps", "sampling", "batch_steps", "d_model"):
        assert getattr(mamba, name) == getattr(transformer, name)
    assert (mamba.learning_rate, mamba.mlp_activation) == (1e-3, "gelu")
