"""What policies share: options, observations and actions as features, backbone and head.

Return-to-go, observation and previous action go in, features for the head come out. Shapes: B rows,
T steps, D model width.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones import Backbone, State, make_backbone, ops
from decision_s4.agents.backbones.base import parse_options
from decision_s4.agents.encoders import make_features, set_statistics
from decision_s4.agents.heads import BoxHead, DiscreteHead, make_head
from decision_s4.agents.kept import kept
from decision_s4.agents.vision import Eyes
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep

if TYPE_CHECKING:
    from decision_s4.agents.feed_forward import Perceptron
    from decision_s4.agents.probes.base import Probe


@dataclass(frozen=True)
class PolicyOptions:
    """What the policy is made of, what it sees, and how it acts."""

    backbone: str = kept("s4")
    """Sequence layer (docs/backbones.md): s4, s4d, s5, lru, hyena, focus, mamba, diff-mamba,
    seqboat, mamba2, gla, hgrn2, retnet, lightning, linear-attention, hedgehog, lla, deltanet, kda,
    rwkv, gated-deltanet, las, power-softmax, transformer, gru, lstm, al-rnn, hybrid, or mlp,
    which has no memory."""
    backbone_options: tuple[str, ...] = kept(())
    """Its options as name=value, such as d_state=32,train_ssm=false; --backbone NAME --help lists
    those of one."""
    d_model: int = kept(64)
    """Width of the backbone."""
    n_layers: int = kept(3)
    """Blocks of the backbone."""
    d_embed: int = kept(64)
    """Width of the embedding of each of return-to-go, observation and previous action, where they
    share one token."""
    mlp_ratio: float = kept(0.0)
    """Hidden width of an MLP in each block, as a multiple of d_model; 0 for none."""
    mlp_activation: Literal["gelu", "relu"] = kept("gelu")
    """Activation of the MLP in each block."""
    dropout: float = kept(0.0)
    """Dropout probability on each residual branch."""
    return_scale: float = kept(1000.0)
    """Returns-to-go are divided by this."""
    condition_on_return: bool = kept(True)
    """Whether the policy sees the return-to-go; without it, it clones the behaviour logged."""
    eyes: Eyes = kept("cnn")
    """What reads images: convolutions, or a vision transformer, its patches mixed by attention
    alone, after a two-dimensional state space, or by Hyena in two dimensions."""
    previous_action: bool = kept(True)
    """Whether the policy sees its previous action; without it, it cannot learn to copy it."""
    observation_noise: float = kept(0.0)
    """In training only: Gaussian noise on observations, in units of their standard deviation."""
    tokens: Literal["step", "three", "observation"] = kept("step")
    """What the backbone reads of a step: one token; return-to-go, observation and action; or, for a
    perceptron in place of the backbone, the observation alone."""
    context_mode: Literal["recurrent", "recompute"] = kept("recurrent")
    """How it acts: on from its state, or reading the last context_steps steps anew at each step."""
    context_steps: int = kept(20)
    """Steps that recompute reads, and that a random window has in training (see sampling)."""
    max_episode_steps: int = kept(1000)
    """With three tokens: the longest episode that their time-step embedding knows."""


class InputPart(NamedTuple):
    """Where one modality of one step enters the backbone."""

    step: int
    modality: str
    token: int
    """Which of the backbone's tokens holds it."""
    features: slice
    """Its place among all features of the step, side by side in the order of MODALITIES."""


MODALITIES = ("return_to_go", "observation", "previous_action")


class Policy(nn.Module):
    """What policies share: spaces, observations and actions as features, backbone and head."""

    token_order: ClassVar[dict[str, int]] = dict.fromkeys(MODALITIES, 0)
    """Which of a step's tokens holds each modality."""
    backbone: "Backbone | Perceptron"
    head: BoxHead | DiscreteHead

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: PolicyOptions,
    ):
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.options = options
        self.observation_features = make_features(observation_space, options.eyes)
        self.action_features = make_features(action_space)
        self.probes: list[Probe] = []  # by attach

    def attach(self, *probes: "str | Probe") -> "list[Probe]":
        """Add probes, by name or made, that evaluations of a training log; returns them.

        They change nothing of what the policy computes. The setting `probes` does the same.

        Raises:
            UserError: for an unknown name, or a probe that cannot serve this policy.
        """
        from decision_s4.agents.probes.base import make_probes

        added = make_probes(probes, self)
        self.probes += added
        return added

    def add_backbone_and_head(self) -> None:
        """The second half of the construction, once a subclass has made its embeddings."""
        options = self.options
        self.backbone = make_backbone(
            options.backbone,
            options.d_model,
            options.n_layers,
            options.mlp_ratio,
            options.dropout,
            options.mlp_activation,
            **parse_options(options.backbone_options),
        )
        self.head = make_head(options.d_model, self.action_space)

    def set_statistics(self, mean: Tree, std: Tree) -> None:
        """Take the dataset's observation statistics, saved with the weights from then on."""
        set_statistics(self.observation_features, mean, std)

    def features_of(self, observation: Tree) -> Tensor:
        """(…, F), with noise in training if the options ask for it."""
        features = self.observation_features(observation)
        if self.training and self.options.observation_noise:
            features = features + self.options.observation_noise * torch.randn_like(features)
        return ops.tap("inputs.observation", features)

    def scaled(self, return_to_go: Tensor) -> Tensor:
        """(…) as the features (…, 1)."""
        return return_to_go[..., None] / self.options.return_scale

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step."""
        raise NotImplementedError

    def step(self, step: TimeStep, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Features (B, D) of one step, and the new state. Differentiable."""
        raise NotImplementedError

    def token_map(self, steps: int) -> list[InputPart]:
        """Every part of the input of `steps` steps, step by step."""
        widths = (1, self.observation_features.width, self.action_features.width)
        ends = list(accumulate(widths))
        places = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        per_step = max(self.token_order.values()) + 1
        return [
            InputPart(step, name, per_step * step + self.token_order[name], place)
            for step in range(steps)
            for name, place in zip(MODALITIES, places, strict=True)
        ]

    def tapped_inputs(
        self, return_to_go: Tensor, observation: Tree, previous_action: Tree
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (…, 1), (…, F), (…, A) of all that it reads: the taps `inputs.MODALITY`."""
        return (
            ops.tap("inputs.return_to_go", self.scaled(return_to_go)),
            self.features_of(observation),
            ops.tap("inputs.previous_action", self.action_features(previous_action)),
        )


@torch.no_grad()
def silence_unseen(policy: Policy, embed_return: nn.Module, embed_action: nn.Module) -> None:
    """Make the embeddings of what the options hide from the policy say nothing, for good."""
    hidden = [] if policy.options.condition_on_return else [embed_return]
    hidden += [] if policy.options.previous_action else [embed_action]
    for parameter in [each for layer in hidden for each in layer.parameters()]:
        parameter.requires_grad_(False).zero_()


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
