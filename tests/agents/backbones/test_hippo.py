"""HiPPO-LegS against closed forms: its matrix, its basis functions, its diagonal form."""

import math

import numpy as np
import pytest
import torch

from decision_s4.agents.backbones.hippo import legs, normal_plus_low_rank

sizes = pytest.mark.parametrize("size", [2, 4, 64])


def full(half: np.ndarray) -> np.ndarray:
    """Both of each conjugate pair."""
    return np.concatenate([half, half.conj()])


def test_the_matrix_by_hand():
    a, b = legs(3)
    three, five, fifteen = np.sqrt([3, 5, 15])
    np.testing.assert_allclose(a, [[-1, 0, 0], [-three, -2, 0], [-five, -fifteen, -3]])
    np.testing.assert_allclose(b, [1, three, five])


def test_the_size_two_form_by_hand():
    """A + p pᵀ = [[-1/2, √3/2], [-√3/2, -1/2]]: eigenvalues -1/2 ± i √3/2."""
    form = normal_plus_low_rank(2)
    np.testing.assert_allclose(form.a, [-0.5 + 1j * math.sqrt(3) / 2])
    np.testing.assert_allclose(np.abs(form.p), [1])  # |p|² is half of 1/2 + 3/2, as the pair halves
    np.testing.assert_allclose(np.abs(form.b), [math.sqrt(2)])


@sizes
def test_one_half_of_each_conjugate_pair_is_kept(size):
    form = normal_plus_low_rank(size)
    assert all(part.shape == (size // 2,) and part.dtype == np.complex128 for part in form)
    assert (form.a.imag > 0).all()
    np.testing.assert_array_equal(form.a.real, -0.5)


@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_the_form_is_similar_to_the_matrix(size):
    """Bᵀ (s − A)⁻¹ B and pᵀ (s − A)⁻¹ B, at 2N values of s, do not depend on the basis."""
    a, b = legs(size)
    p = np.sqrt(np.arange(size) + 0.5)
    form = normal_plus_low_rank(size)
    p_, b_ = full(form.p), full(form.b)
    a_ = np.diag(full(form.a)) - np.outer(p_, p_.conj())
    for s in 1 + 1j * np.geomspace(0.01, 10 * size, 2 * size):
        x, x_ = (np.linalg.solve(s * np.eye(size) - m, v) for m, v in ((a, b), (a_, b_)))
        np.testing.assert_allclose([b_.conj() @ x_, p_.conj() @ x_], [b @ x, p @ x], rtol=1e-9)


def test_the_impulse_response_is_legendre_on_an_exponential_clock():
    """e^(At) B = √(2n+1) e^(−t) P_n(2 e^(−t) − 1)."""
    a, b = (torch.from_numpy(part) for part in legs(6))
    legendre = np.polynomial.legendre.Legendre.basis
    for t in (0.0, 0.3, 1.0, 4.0):
        found = torch.linalg.matrix_exp(a * t) @ b
        clock = math.exp(-t)
        expected = [math.sqrt(2 * n + 1) * clock * legendre(n)(2 * clock - 1) for n in range(6)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_constant_input_is_its_own_first_coefficient():
    """The fixed point of x' = A x + B u with u = 1 is (1, 0, 0, …): the constant polynomial."""
    a, b = legs(8)
    np.testing.assert_allclose(np.linalg.solve(-a, b), np.eye(8)[0], atol=1e-12)
