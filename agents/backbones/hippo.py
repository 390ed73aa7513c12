"""HiPPO-LegS, the initialisation that remembers: normal plus low rank, in its eigenbasis.

Gu, Dao, Ermon, Rudra, Ré, "HiPPO: Recurrent Memory with Optimal Polynomial Projections",
arXiv 2008.07669; the normal-plus-low-rank form: arXiv 2111.00396, appendix C.
"""

from typing import NamedTuple

import numpy as np


class NormalPlusLowRank(NamedTuple):
    """A = V (diag(a) − p p*) V*: every field (N/2,) complex128, one of each conjugate pair."""

    a: np.ndarray
    p: np.ndarray
    b: np.ndarray


def legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A (N, N) and B (N,): A_nk = −sqrt((2n+1)(2k+1)) below the diagonal, −(n+1) on it."""
    root = np.sqrt(2 * np.arange(size) + 1.0)
    a = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(size) + 1.0)
    return a, root


def normal_plus_low_rank(size: int) -> NormalPlusLowRank:
    """HiPPO-LegS of even size N, diagonalised: A + p pᵀ = −1/2 I + skew is normal."""
    a, b = legs(size)
    p = np.sqrt(np.arange(size) + 0.5)
    skew = a + np.outer(p, p) + 0.5 * np.eye(size)
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    half = slice(size // 2, None)  # eigh sorts: the upper half holds the positive frequencies
    basis = vectors[:, half].conj().T
    return NormalPlusLowRank(-0.5 + 1j * frequencies[half], basis @ p, basis @ b)
