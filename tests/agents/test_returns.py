"""Targets from rewards and values, by hand."""

import numpy as np

from decision_s4.agents.returns import discounted_sums, generalised_advantages, next_values

NO, YES = False, True


def advantages(reward, value, last, cut, ended, discount=0.5, trace=0.5):
    held = np.array([value], float)
    after = next_values(held, np.array([last]), np.array([cut], float), np.array([ended]))
    given = np.array([reward], float), held, after, np.array([ended])
    return generalised_advantages(*given, discount, trace)[0].tolist()


def test_an_episode_that_goes_on_counts_on_the_last_value():
    # δ = (1 + 2 − 2, 1 + 4 − 4), A_1 = 1, A_0 = 1 + 1/4
    assert advantages([1, 1], [2, 4], 8, [0, 0], [NO, NO]) == [1.25, 1]


def test_termination_ends_both_value_and_trace():
    # δ = (1 + 0 − 2, 1 + 4 − 4): nothing flows from the second episode to the first
    assert advantages([1, 1], [2, 4], 8, [0, 0], [YES, NO]) == [-1, 1]


def test_truncation_counts_on_the_value_of_its_own_last_observation():
    # δ_0 = 1 + 6/2 − 2; the next episode's first value, 4, has no say
    assert advantages([1, 1], [2, 4], 8, [6, 0], [YES, NO]) == [2, 1]


def test_a_trace_of_one_is_the_return_minus_the_value():
    # G_0 = 1 + 1/2 (3 + 1/2 · 8)
    assert advantages([1, 3], [2, 4], 8, [0, 0], [NO, NO], trace=1) == [4.5 - 2, 7 - 4]


def test_discounted_sums_begin_anew_after_an_end():
    reward, ended = np.array([[1.0, 1.0, 1.0]]), np.array([[NO, YES, NO]])
    sums, after = discounted_sums(np.array([4.0]), reward, ended, 0.5)
    assert (sums[0].tolist(), after.tolist()) == ([3, 2.5, 1], [1])
