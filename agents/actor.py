"""A policy, ready to act: the Agent of a rollout."""

import copy
import logging
from typing import Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.acting_plan import can_fold, can_plan, plan_features, plan_of
from decision_s4.agents.backbones import State, ops
from decision_s4.agents.flat_step import Act, Acting, FlatAct, can_flatten, folded_step, own_step
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels import policy_step
from decision_s4.kernels.compiled_rows import CompiledRows
from decision_s4.kernels.policy_step import Inputs, make_policy_step
from decision_s4.kernels.recorded_rows import RecordedRows

LOG = logging.getLogger(__name__)
Impl = policy_step.Impl | Literal["compiled"]
P = TypeVar("P", bound=Acting)


class Actor(Generic[P]):
    """A copy of a policy as it is now: what depends on its parameters alone is computed once.

    Acts as the policy's own step does, up to rounding, and on the same state, in less time where
    it can.

    Args:
        policy: the policy, in evaluation mode.
        impl: None takes "graph" on CUDA, a step recorded once and replayed in one launch; on the
            CPU "torch" for S4 and S4D (see kernels/policy_step), the policy's own step for others.
            For acting many times: "cpu" compiles a C++ library once a machine for S4 and S4D,
            "compiled" any one-token policy's step once for each number of rows, on the CPU; where
            that fails they warn, and act as without.

    Raises:
        ValueError: for an `impl` that is unknown or cannot act for this policy.
    """

    def __init__(self, policy: P, impl: Impl | None = None):
        with torch.inference_mode():
            self.policy = copy.deepcopy(policy)
            self._act_marked = own_step(self.policy)
            self._act = _faster(self.policy, impl) or self._act_marked

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step."""
        return self.policy.initial_state(batch_size)

    @torch.inference_mode()
    def act(self, step: TimeStep, state: State, deterministic: bool = True) -> tuple[Tensor, State]:
        """One step of all rows: action (B, …) in the action space's units, and the new state."""
        act = self._act_marked if ops.is_open() else self._act  # what is fused has no marks
        return act(step, state, deterministic)


def _faster(policy: Acting, impl: Impl | None) -> Act | None:
    """What acts in less time than the policy's own step, if anything does."""
    known = (None, *get_args(policy_step.Impl))
    if can_plan(policy) and impl != "compiled" and impl in known:
        return _planned(policy, impl)
    device, flat = policy.head.linear.weight.device.type, can_flatten(policy)
    if impl in (None, "graph") and device == "cuda" and flat:
        return FlatAct(policy, RecordedRows, LOG.info if impl is None else None)
    if impl == "compiled" and device == "cpu" and flat:
        return FlatAct(policy, CompiledRows, LOG.warning)
    if impl is not None:
        raise ValueError(_refusal(policy, impl, device))
    return folded_step(policy) if device == "cpu" and can_fold(policy) else None


def _refusal(policy: Acting, impl: str, device: str) -> str:
    known = [*get_args(policy_step.Impl), "compiled"]
    if impl not in known:
        return f"impl '{impl}' is unknown; use one of {', '.join(known)}"
    takes = {"graph": "policies on CUDA", "compiled": "policies on the CPU"}
    whose = takes.get(impl, "s4 and s4d policies") + " in evaluation mode"
    more = " and one token a step" if impl in takes else ""
    return (
        f"impl '{impl}' acts for {whose}{more}, "
        f"not for this {policy.options.backbone} policy on {device}; leave impl at None"
    )


def _planned(policy: SequencePolicy, impl: policy_step.Impl | None) -> Act:
    plan, head = plan_of(policy), policy.head
    policy_step, flat = make_policy_step(plan, impl), len(policy.action_space.shape or ()) == 1
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
