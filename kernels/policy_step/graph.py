"""policy_step on CUDA: a step recorded once, then replayed in one launch.

A graph reads and writes memory of its own. Around each replay the inputs and the states are copied
there, and what it found is copied out, so that no tensor handed out changes afterwards.
"""

import torch
from torch import Tensor

from decision_s4.kernels.cuda_graph import WARMUP, aside, record
from decision_s4.kernels.policy_step.eager import EagerStep, forget
from decision_s4.kernels.policy_step.plan import Inputs, Plan

START = Inputs._fields.index("start")


class GraphStep:
    """See `PolicyStep`. Records a graph for each power of two of rows, when first needed.

    Raises:
        ValueError: for a plan that is not on CUDA.
    """

    def __init__(self, plan: Plan):
        if plan.shift.device.type != "cuda":
            raise ValueError(
                f"policy_step: impl 'graph' needs a policy on CUDA, not on {plan.shift.device}; "
                "use 'torch'"
            )
        self.plan, self.eager = plan, EagerStep(plan)
        self.recorded: dict[int, Recorded] = {}

    @torch.inference_mode()
    def __call__(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = len(inputs.start)
        room = 1 << (rows - 1).bit_length()
        if room not in self.recorded:
            self.recorded[room] = Recorded(self.eager, inputs, state, room)
        return self.recorded[room].replay(inputs, state)


class Recorded:
    """A graph of `room` rows; fewer leave the rest as it was."""

    def __init__(self, eager: EagerStep, inputs: Inputs, state: tuple[Tensor, ...], room: int):
        self.inputs = Inputs(*(_empty_like(x, room) for x in inputs))
        self.state = tuple(_empty_like(x, room) for x in state)
        with aside(self.inputs.start.device):
            for _ in range(WARMUP):
                found = _step(eager, self.inputs, self.state)
        self.shapes = [x.shape for x in found]
        self.run, self.found = record(
            lambda: torch.cat([x.flatten() for x in _step(eager, self.inputs, self.state)])
        )

    def replay(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step of at most `room` rows."""
        rows = len(inputs.start)
        into = [x[:rows] for x in (*self.inputs, *self.state)]
        given = [*inputs, *state]
        into.pop(START).copy_(given.pop(START))
        torch._foreach_copy_(into, given)  # one launch for all of one type
        self.run()
        parts = self.found.clone().split([shape.numel() for shape in self.shapes])
        pairs = zip(parts, self.shapes, strict=True)
        *after, out = (part.view(shape)[:rows] for part, shape in pairs)
        return out, tuple(after)


def _step(eager: EagerStep, inputs: Inputs, state: tuple[Tensor, ...]) -> list[Tensor]:
    out, after = eager.advance(*forget(inputs, state))
    return [*after, out]  # states first: as complex numbers they must begin at an even place


def _empty_like(x: Tensor, rows: int) -> Tensor:
    return x.new_zeros(rows, *x.shape[1:])
