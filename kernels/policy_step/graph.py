"""policy_step on CUDA: a step recorded once, then replayed in one launch."""

from torch import Tensor

from decision_s4.kernels.policy_step.eager import EagerStep, forget
from decision_s4.kernels.policy_step.plan import Inputs, Plan
from decision_s4.kernels.recorded_rows import RecordedRows


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
        self.rows = RecordedRows(self._step)

    def __call__(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, *after = self.rows([*inputs, *state])
        return out, tuple(after)

    def _step(self, given: list[Tensor]) -> list[Tensor]:
        count = len(Inputs._fields)
        inputs, state = Inputs(*given[:count]), tuple(given[count:])
        out, after = self.eager.advance(*forget(inputs, state))
        return [out, *after]
