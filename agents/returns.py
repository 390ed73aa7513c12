"""Targets from rewards and values: pure functions over arrays.

Shapes: N rows, T steps of a rollout, in which episodes follow on one another.
"""

import numpy as np


def generalised_advantages(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    ended: np.ndarray,
    discount: float,
    trace: float,
) -> np.ndarray:
    """Generalised advantage estimates.

        δ_t = r_t + γ V(s_{t+1}) − V(s_t),   A_t = δ_t + γ λ (1 − ended_t) A_{t+1}

    Schulman et al., arXiv 1506.02438, equation 16. The return to regress on is A + value.

    Args:
        reward, value: (N, T) of step t, and V of what was seen before it.
        next_value: (N, T) V of what step t led to, before any reset: 0 where the episode
            terminated there, and where it was truncated that of its own last observation.
        ended: (N, T) bool, the episode ended with step t, either way.
        discount, trace: γ and λ, in [0, 1].
    """
    delta = reward + discount * next_value - value
    decay = discount * trace * ~ended
    advantage = np.zeros_like(delta)
    after = np.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        after = advantage[:, t] = delta[:, t] + decay[:, t] * after
    return advantage


def next_values(
    value: np.ndarray, last_value: np.ndarray, cut_value: np.ndarray, ended: np.ndarray
) -> np.ndarray:
    """V(s_{t+1}) for `generalised_advantages`: (N, T).

    `last_value` (N,) is that of what is seen after step T - 1; `cut_value` (N, T) that of an
    episode's own last observation where it was truncated, 0 elsewhere.
    """
    following = np.concatenate([value[:, 1:], last_value[:, None]], 1)
    return np.where(ended, cut_value, following)


def discounted_sums(
    before: np.ndarray, reward: np.ndarray, ended: np.ndarray, discount: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of past rewards, G_t = γ G_{t−1} + r_t, anew after an episode's end: (N, T).

    Also the (N,) to go on with; `before` (N,) is that of the last call. Their deviation is the
    scale by which stable-baselines3 divides rewards.
    """
    sums = np.zeros_like(reward)
    for t in range(reward.shape[1]):
        sums[:, t] = discount * before + reward[:, t]
        before = sums[:, t] * ~ended[:, t]
    return sums, before
