"""Which policy the options ask for: the one place that chooses."""

from gymnasium import spaces

from decision_s4.agents.feed_forward import FeedForwardPolicy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.recompute import RecomputedSequencePolicy, RecomputedTokenPolicy
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.tokens import TokenPolicy
from decision_s4.envs.errors import UserError, nearest

POLICIES: dict[tuple[str, str], type[Policy]] = {
    ("step", "recurrent"): SequencePolicy,
    ("step", "recompute"): RecomputedSequencePolicy,
    ("three", "recurrent"): TokenPolicy,
    ("three", "recompute"): RecomputedTokenPolicy,
    ("observation", "recurrent"): FeedForwardPolicy,
}
"""By (tokens, context_mode) of PolicyOptions."""


def make_policy(
    observation_space: spaces.Space, action_space: spaces.Space, options: PolicyOptions
) -> Policy:
    """The policy of these options. Raises UserError for spaces or options that fit none."""
    kind = (options.tokens, options.context_mode)
    if kind not in POLICIES:
        near = nearest(" ".join(kind), [" ".join(pair) for pair in POLICIES])
        raise UserError(f"tokens and context_mode '{' '.join(kind)}' are unknown{near}")
    return POLICIES[kind](observation_space, action_space, options)
