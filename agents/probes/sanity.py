"""Is a map the policy's own? The same map of networks whose weights were shuffled.

Sanity checks of Adebayo et al. (arXiv 1810.03292). A rank correlation alone misleads: the layers
decay alike whatever they learned, and x is a factor of most maps, so that maps of two shuffled
networks agree with each other, too. That agreement, the floor, is what nothing learned explains.
Shapes: W steps, F features.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from decision_s4.agents.policy import Policy


@torch.no_grad()
def shuffle(module: nn.Module, generator: torch.Generator) -> None:
    """Put each parameter's numbers in another order."""
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def shuffled_weights(policy: Policy, seed: int) -> Policy:
    """A copy with all weights shuffled."""
    copied = copy.deepcopy(policy)
    shuffle(copied, torch.Generator().manual_seed(seed))
    return copied


def cascade(policy: Policy, seed: int) -> Iterator[tuple[str, Policy]]:
    """Copies shuffled ever deeper: the head, then the last layer too, and so on to the inputs."""
    generator, copied = torch.Generator().manual_seed(seed), copy.deepcopy(policy)
    blocks = getattr(copied.backbone, "blocks", [])
    for name, module in [("head", copied.head), *_named("layer", blocks)[::-1]]:
        shuffle(module, generator)
        yield name, copy.deepcopy(copied)
    yield "all", shuffled_weights(policy, seed)


def _named(word: str, modules: nn.ModuleList | list) -> list[tuple[str, nn.Module]]:
    return [(f"{word} {i}", module) for i, module in enumerate(modules)]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of all numbers of two tensors; nan where one is constant."""
    ranks = torch.stack([_ranks(x.flatten().double()) for x in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def mean_ranks(maps: Sequence[Tensor]) -> Tensor:
    """The order that several maps of one shape have in common: the mean of each cell's ranks."""
    return torch.stack([_ranks(x.flatten().double()) for x in maps]).mean(0).view_as(maps[0])


def partial_rank_correlation(a: Tensor, b: Tensor, given: Tensor) -> float:
    """Spearman's of a and b once the order of `given` is taken out of both (of residuals of ranks);
    nan where one of them has no other order."""
    ab, ac, bc = (rank_correlation(x, y) for x, y in ((a, b), (a, given), (b, given)))
    left = (1 - ac**2) * (1 - bc**2)
    return (ab - ac * bc) / left**0.5 if left > 0 else float("nan")


def _ranks(x: Tensor) -> Tensor:
    """Ties share the mean of their ranks."""
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    ends = count.cumsum(0).double()
    return (ends - (count - 1) / 2)[place]
