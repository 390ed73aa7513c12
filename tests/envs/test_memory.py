"""Memory tasks: the arrays are the games that their definitions and Gymnasium tell."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

from decision_s4.envs.errors import UserError
from decision_s4.envs.make import make
from decision_s4.envs.memory import CONTROL, TASKS, batch_rows
from decision_s4.envs.memory.cards import CountRecall, RepeatFirst, RepeatPrevious
from decision_s4.envs.memory.pixels import frame
from decision_s4.envs.memory.tmaze import (
    DOWN,
    JUNCTION,
    NOTHING,
    RIGHT,
    SIGN_DOWN,
    SIGN_UP,
    UP,
    TMaze,
)

HIDDEN = ("HopperNoVel-v5", "HalfCheetahNoVel-v5", "Walker2dNoVel-v5", "AntNoVel-v5")
ROW = np.zeros(1, np.int64)


def begin(batch, seed: int = 0):
    return batch.reset(ROW, [seeding.np_random(seed)[0]])


def play(batch, choose, seed: int = 0) -> tuple[float, int]:
    """Return and length of one episode; `choose` takes (batch, what was seen so far)."""
    seen, total = [begin(batch, seed)[0]], 0.0
    while True:
        outcome = batch.step(ROW, np.array([choose(batch, seen)]))
        total += outcome.reward[0]
        if outcome.terminated[0] or outcome.truncated[0]:
            return total, len(seen)
        seen.append(outcome.observation[0])


@pytest.mark.parametrize("env_id", [*TASKS, *CONTROL, *HIDDEN])
def test_gymnasiums_checker_passes(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(
            make(env_id).unwrapped if env_id in TASKS else make(env_id), skip_render_check=True
        )


@pytest.mark.parametrize(
    ("task", "recall"),
    [
        (RepeatFirst, lambda batch, seen: seen[0]),
        (RepeatPrevious, lambda batch, seen: seen[max(len(seen) - batch.k, 0)]),
        (CountRecall, lambda batch, seen: sum(card == seen[-1][1] for card, _ in seen)),
    ],
)
def test_who_remembers_all_the_cards_earns_1(task, recall):
    returns, length = play(task(1), recall)
    assert (returns, length) == (pytest.approx(1), 51)


def test_a_wrong_suit_costs_what_a_right_one_earns():
    returns, _ = play(RepeatFirst(1), lambda batch, seen: (seen[0] + 1) % 4)
    assert returns == pytest.approx(-1)


def test_each_suit_is_as_often_in_a_deck():
    batch = RepeatFirst(1, decks=2)
    begin(batch)
    assert np.bincount(batch.suits[0]).tolist() == [26] * 4


@pytest.mark.parametrize("seed", range(4))
def test_the_maze_shows_its_sign_once_and_rewards_the_turn(seed):
    sights = []

    def walk(batch, seen):
        sights[:] = seen
        if seen[-1] != JUNCTION:
            return RIGHT
        return UP if seen[0] == SIGN_UP else DOWN

    assert play(TMaze(1, length=5), walk, seed) == (1.0, 6)
    assert sights[0] in (SIGN_UP, SIGN_DOWN)
    assert sights[1:] == [NOTHING] * 4 + [JUNCTION]


def test_standing_in_the_maze_costs_1_in_all():
    assert play(TMaze(1, length=5), lambda batch, seen: UP) == (pytest.approx(-1), 6)


@pytest.mark.parametrize("env_id", [*CONTROL, *TASKS])
def test_arrays_are_the_single_environments(env_id):
    """Three seeds, 120 steps of the same actions; Gymnasium's own code is the oracle of control."""
    rows, envs = batch_rows(env_id, 3), [make(env_id) for _ in range(3)]
    seen = rows.reset([5, 6, 7])
    alone = [env.reset(seed=seed)[0] for env, seed in zip(envs, (5, 6, 7), strict=True)]
    np.testing.assert_allclose(seen, np.stack(alone), atol=1e-6)
    rows.action_space.seed(0)
    running = np.arange(3)
    for _ in range(120):
        action = np.stack([rows.action_space.sample() for _ in running])
        outcome = rows.step(running, action)
        steps = [envs[row].step(a) for row, a in zip(running, action, strict=True)]
        for ours, theirs in zip(outcome, list(zip(*steps, strict=True))[:4], strict=True):
            np.testing.assert_allclose(ours, np.stack(theirs), atol=1e-3)
        running = running[~(outcome.terminated | outcome.truncated)]
        if not len(running):
            break


def test_a_row_begins_anew_without_its_neighbours():
    rows = batch_rows("CartPoleNoVel-v1", 3)
    before = rows.reset([1, 2, 3])
    after = rows.reset([2], np.array([2]))
    np.testing.assert_array_equal(after[0], before[1])
    np.testing.assert_array_equal(rows.batch.observe(np.arange(2)), before[:2])


def test_velocities_are_hidden_and_noise_is_seeded():
    full, masked = gym.make("Hopper-v5"), make("HopperNoVel-v5")
    seen, _ = full.reset(seed=3)
    np.testing.assert_array_equal(masked.reset(seed=3)[0], seen[:5])
    noisy = make("CartPoleNoVel-v1", noise=0.5)
    first, again = (noisy.reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first).max() > 0.06


def test_pixels_show_where_cart_and_pole_are_and_nothing_else():
    plain, seen = gym.make("CartPole-v1"), make("CartPolePixels-v1")
    state, _ = plain.reset(seed=3)
    image, _ = seen.reset(seed=3)
    assert seen.observation_space.contains(image)
    np.testing.assert_array_equal(image, frame(state))
    np.testing.assert_array_equal(image, frame([*state[:1], 9, state[2], 9]))
    left, middle, right = (frame([x, 0, 0, 0])[..., 0].astype(int) for x in (-1, 0, 1))
    places = [(row.sum(0) * np.arange(24)).sum() / row.sum() for row in (left, middle, right)]
    np.testing.assert_allclose(np.diff(places), 5, atol=0.2)  # a metre is five pixels
    for change in ([0.05, 0, 0, 0], [0, 0, 0.02, 0]):
        assert (frame(change) != frame([0, 0, 0, 0])).any()


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'TMaze-v0'"):
        make("TMase-v0")


@pytest.mark.parametrize(
    ("env_id", "options", "words"),
    [
        ("TMaze-v0", {"length": -3}, "length is -3; use a whole number from 1 to"),
        ("TMaze-v0", {"length": 2.5}, "length is 2.5"),
        ("RepeatFirst-v0", {"decks": 0}, "decks is 0; use a whole number from 1"),
        ("CountRecall-v0", {"decks": True}, "decks is True"),
        ("RepeatPrevious-v0", {"k": 52}, "k is 52; use a whole number from 1 to 51"),
    ],
)
def test_sizes_without_episodes_are_refused(env_id, options, words):
    with pytest.raises(UserError, match=words):
        make(env_id, **options)
