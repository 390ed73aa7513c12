"""A policy, ready to act: the Agent of a rollout."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.acting_plan import can_plan, plan_features, plan_of
from decision_s4.agents.backbones import State, ops
from decision_s4.agents.policy import Policy, SequencePolicy
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels.policy_step import Impl, Inputs, make_policy_step

Act = Callable[[TimeStep, State, bool], tuple[Tensor, State]]


class Actor:
    """A copy of a policy as it is now: what depends on its parameters alone is computed once.

    Acts as the policy's own step does, up to rounding, and on the same state; an S4 or S4D policy
    on the CPU or CUDA in far less time.

    Args:
        policy: the policy, in evaluation mode.
        impl: None takes "graph" on CUDA, "torch" on the CPU (see kernels/policy_step) where the
            policy allows it, and its own step elsewhere. For acting many times, "cpu" compiles a
            C++ library once a machine.

    Raises:
        ValueError: for an `impl` that is unknown or cannot act for this policy.
    """

    def __init__(self, policy: Policy, impl: Impl | None = None):
        with torch.inference_mode():
            self.policy = copy.deepcopy(policy)
            make = _planned if can_plan(policy) else _own_step
            self._act = make(self.policy, impl)
            self._act_marked = _own_step(self.policy, None)

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step."""
        return self.policy.initial_state(batch_size)

    @torch.inference_mode()
    def act(self, step: TimeStep, state: State, deterministic: bool = True) -> tuple[Tensor, State]:
        """One step of all rows: action (B, …) in the action space's units, and the new state."""
        act = self._act_marked if ops.is_open() else self._act  # what is fused has no marks
        return act(step, state, deterministic)


def _planned(policy: SequencePolicy, impl: Impl | None) -> Act:
    plan, head = plan_of(policy), policy.head
    policy_step, flat = make_policy_step(plan, impl), len(policy.action_space.shape) == 1
    observation = plan_features(policy.observation_features)
    action, device = plan_features(policy.action_features), plan.shift.device

    def act(step: TimeStep, state: State, deterministic: bool) -> tuple[Tensor, State]:
        if device.type != "cpu":
            step = tree_map(lambda leaf: leaf.to(device), step)
        seen, done = observation(step.observation), action(step.previous_action)
        out, state = policy_step(Inputs(step.return_to_go, seen, done, step.start), state)
        if plan.head is None:
            return head.act(out, deterministic), state
        return out if flat else out.view(len(out), *head.shape), state

    return act


def _own_step(policy: Policy, impl: Impl | None) -> Act:
    if impl is not None:
        raise ValueError(
            f"impl '{impl}' acts for s4 and s4d policies in evaluation mode, not for "
            f"this {policy.options.backbone} policy; leave impl at None"
        )
    constants, device = policy.backbone.constants(), policy.head.linear.weight.device

    def act(step: TimeStep, state: State, deterministic: bool) -> tuple[Tensor, State]:
        step = tree_map(lambda leaf: leaf.to(device), step)
        features, state = policy.step(step, state, constants)
        return policy.head.act(features, deterministic), state

    return act
