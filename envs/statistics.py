"""What a set of episode returns says, in rliable's definitions (Agarwal et al. 2021)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from decision_s4.envs.scores import ReferenceScores, normalized_score


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray | float:
    """Mean of the middle half: a quarter of the values, rounded down, is cut from each end."""
    ordered = np.sort(np.moveaxis(np.asarray(values, np.float64), axis, -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray] = np.mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Stratified percentile bootstrap interval of `statistic(values)`, the mean unless told.

    `values` is (runs,) or (runs, tasks); each task is resampled by itself, as rliable does.
    `statistic` takes an array and `axis`.
    """
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    index = np.random.default_rng(seed).integers(len(values), size=(resamples, *values.shape))
    samples = np.take_along_axis(values[None], index, axis=1).reshape(resamples, -1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(statistic(samples, axis=-1), [tail, 100 - tail])
    return float(low), float(high)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Chance that a run of ours scores higher than one of theirs on a task drawn at random.

    Both (runs, tasks), runs of any number; a tie counts half (the Mann-Whitney statistic, rliable).
    """
    ours, theirs = np.asarray(ours)[:, None], np.asarray(theirs)[None]
    return float((np.sign(ours - theirs) / 2 + 0.5).mean())


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of all runs (runs, tasks) with a score above each threshold (K,): (K,)."""
    return (np.ravel(scores)[:, None] > np.asarray(thresholds)).mean(0)


def stratified_resamples(
    scores: np.ndarray, resamples: int = 2000, seed: int = 0
) -> Iterator[np.ndarray]:
    """(runs, tasks) with each task's runs drawn anew, with replacement, as rliable does."""
    scores, draw = np.asarray(scores), np.random.default_rng(seed)
    for _ in range(resamples):
        index = draw.integers(len(scores), size=scores.shape)
        yield np.take_along_axis(scores, index, 0)


@dataclass(frozen=True)
class Evaluation:
    """Episodes played towards one target return (None: the policy has no target)."""

    target_return: float | None
    returns: np.ndarray  # (episodes,) float64
    lengths: np.ndarray  # (episodes,) int64, steps
    reference: ReferenceScores | None = None

    @property
    def score(self) -> float | None:
        """Normalised score of the mean return; None without a reference."""
        if self.reference is None:
            return None
        return float(normalized_score(self.returns.mean(), self.reference))

    def row(self) -> dict[str, float | int | None]:
        """One line of a table. `return_ci_*` bound the mean (not the IQM) at 95%."""
        low, high = bootstrap_interval(self.returns)
        return {
            "target_return": self.target_return,
            "episodes": len(self.returns),
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "return_iqm": float(interquartile_mean(self.returns)),
            "return_ci_low": low,
            "return_ci_high": high,
            "normalized_score": self.score,
            "length_mean": float(self.lengths.mean()),
        }
