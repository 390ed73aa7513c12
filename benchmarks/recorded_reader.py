"""Updates of a small network on CUDA, recorded once as a graph and replayed in one launch each.

Of a few hundred kernels on 32 rows of 48 symbols, launching is what an update costs. What is
replayed is an update as torch.optim.Adam makes it under a OneCycleLR, rates and momenta read from a
table, gradients clipped to norm 1. A network that cannot be recorded runs operation by operation.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from decision_s4.kernels.cuda_graph import Recorded

EPSILON = 1e-8


class RecordedUpdates:
    """Gradient steps on `loss(x, y)`, whose batches all have one shape.

    Args:
        loss: a scalar of x and y on the device.
        parameters: what it depends on; those that are not trained are left alone.
        table: (updates, 4), of `rates`.
        recorded: whether to try; otherwise, operation by operation.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        table: Tensor,
        recorded: bool = True,
    ):
        self.loss, self.table = loss, table
        self.parameters = [each for each in parameters if each.requires_grad]
        self.means, self.squares = (
            [torch.zeros_like(each) for each in self.parameters] for _ in range(2)
        )
        self.given: tuple[Tensor, ...] = ()
        self.launch = Recorded(self._step, table.device, tries=recorded)

    def update(self, x: Tensor, y: Tensor) -> None:
        """The next step, by a batch on the device of the parameters."""
        batch = (x, y, self.table[self.done])
        if not self.given:
            self.given = tuple(part.clone() for part in batch)
        for place, part in zip(self.given, batch, strict=True):
            place.copy_(part)
        self.launch()

    @property
    def done(self) -> int:
        """Steps so far."""
        return self.launch.calls

    def _step(self) -> None:
        x, y, rates = self.given
        found = torch.autograd.grad(self.loss(x, y), self.parameters, allow_unused=True)
        trained = [i for i, gradient in enumerate(found) if gradient is not None]
        gradients = clipped([found[i] for i in trained])
        parts = (self.parameters, self.means, self.squares)
        weights, means, squares = ([part[i] for i in trained] for part in parts)
        adam(weights, means, squares, gradients, rates)


def rates(updates: int, optimiser_of: Callable[..., tuple], device: torch.device) -> Tensor:
    """(updates, 4): β₁, 1 − β₁, the rate over 1 − β₁ᵗ, and √(1 − β₂ᵗ) of each update.

    `optimiser_of` makes (optimiser, schedule) of parameters and a number of updates.
    """
    optimiser, schedule = optimiser_of([nn.Parameter(torch.zeros(1))], updates)
    rows = []
    for step in range(1, updates + 1):
        group = optimiser.param_groups[0]
        (first, second), rate = group["betas"], group["lr"]
        rows.append((first, 1 - first, rate / (1 - first**step), math.sqrt(1 - second**step)))
        optimiser.step()
        schedule.step()
    return torch.tensor(rows, device=device)


def clipped(gradients: list[Tensor], largest: float = 1.0) -> list[Tensor]:
    """Scaled together so that their norm is at most `largest`, as torch's clip_grad_norm_."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return list(torch._foreach_mul(gradients, (largest / (norm + 1e-6)).clamp(max=1)))


@torch.no_grad()
def adam(
    parameters: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    gradients: list[Tensor],
    rates: Tensor,
    second: float = 0.999,
) -> None:
    """A step in place; `rates` a row of the table, `second` β₂."""
    first, new, rate, root = rates.unbind()
    torch._foreach_mul_(means, first)
    torch._foreach_add_(means, torch._foreach_mul(gradients, new))
    torch._foreach_mul_(squares, second)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
    scales = torch._foreach_sqrt(squares)
    torch._foreach_div_(scales, root)
    torch._foreach_add_(scales, EPSILON)
    steps = torch._foreach_div(means, scales)
    torch._foreach_mul_(steps, rate)
    torch._foreach_sub_(parameters, steps)
