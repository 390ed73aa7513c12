"""What learners of values beside a feed-forward policy share: critics, state, single steps."""

from typing import Any

from decision_s4.agents.bootstrapping import target_of
from decision_s4.agents.critics import TwinCritic, share_statistics
from decision_s4.agents.feed_forward import FeedForwardPolicy
from decision_s4.agents.optimisers import restore


class ValueLearner:
    """A policy, twin critics of its sizes and their targets; a subclass adds to `parts`.

    `parts` are the networks and optimisers that an update changes, by name; `updates` counts.
    """

    def __init__(self, policy: FeedForwardPolicy):
        self.policy, self.updates = policy, 0
        shape = policy.options.d_model, policy.options.n_layers
        critic = TwinCritic(policy.observation_space, policy.action_space, *shape)
        self.critic = critic.to(policy.head.linear.weight.device)
        share_statistics(policy, self.critic)
        self.target_critic = target_of(self.critic)
        self.parts: dict[str, Any] = {
            "policy": policy,
            "critic": self.critic,
            "target_critic": self.target_critic,
        }

    @property
    def averaged_policy(self) -> FeedForwardPolicy:
        """The policy that acts: the newest one."""
        return self.policy

    @property
    def learning_rate(self) -> float:
        """The policy's rate at the next step."""
        return self.parts["policy_optimiser"].param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return states | {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.updates = state["updates"]
        for name, part in self.parts.items():
            restore(part, state[name])
