"""Card games of memory, as POPGym defines them (Morad et al., arXiv 2303.01859, appendix A).

A shuffled deck is dealt one card a step, and shows suits (count-recall: colours). Returns span
[-1, 1]. Where POPGym truncates at the deck's end, these terminate: nothing could follow.
"""

import numpy as np
from gymnasium import spaces

from decision_s4.envs.memory.batch import Batch, check_size

CARDS, SUITS, COLOURS = 52, 4, 2
MOST_DECKS = 10_000


def shuffled(generator: np.random.Generator, cards: int, kinds: int) -> np.ndarray:
    """The kinds 0 … kinds - 1 of a shuffled deck's cards, each as often: (cards,)."""
    return generator.permutation(np.arange(cards) % kinds)


class Cards(Batch):
    """What the games of suits share; `decks` of 52 cards."""

    def __init__(self, count: int, decks: int = 1):
        super().__init__(count)
        check_size("decks", decks, 1, MOST_DECKS)
        self.observation_space = spaces.Discrete(SUITS)
        self.action_space = spaces.Discrete(SUITS)
        self.length = decks * CARDS
        self.suits = np.zeros((count, self.length), np.int64)

    def draw(self, row: int, generator: np.random.Generator) -> None:
        self.suits[row] = shuffled(generator, self.length, SUITS)

    def observe(self, rows: np.ndarray) -> np.ndarray:
        return self.suits[rows, self.time[rows]]

    def last(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: does this step deal the last card?"""
        return self.time[rows] == self.length - 2


class RepeatFirst(Cards):
    """Name the suit of the first card, at every step."""

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right = action == self.suits[rows, 0]
        return np.where(right, 1.0, -1.0) / (self.length - 1), self.last(rows)


class RepeatPrevious(Cards):
    """Name the suit of the card seen k - 1 steps ago; k = 1 is the one in sight."""

    def __init__(self, count: int, decks: int = 1, k: int = 4):
        super().__init__(count, decks)
        check_size("k", k, 1, self.length - 1)
        self.k = k

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked = self.time[rows] + 1 - self.k
        right = action == self.suits[rows, np.maximum(asked, 0)]
        reward = np.where(asked >= 0, np.where(right, 1.0, -1.0), 0.0) / (self.length - self.k)
        return reward, self.last(rows)


class CountRecall(Batch):
    """Say how many cards of the colour asked for were dealt so far, this one included.

    It sees (the card dealt, the card asked for); each comes from a deck of its own.
    """

    def __init__(self, count: int, decks: int = 1):
        super().__init__(count)
        check_size("decks", decks, 1, MOST_DECKS)
        self.length = decks * CARDS
        self.observation_space = spaces.MultiDiscrete([COLOURS, COLOURS])
        self.action_space = spaces.Discrete(self.length // COLOURS + 1)
        self.cards = np.zeros((count, self.length, 2), np.int64)

    def draw(self, row: int, generator: np.random.Generator) -> None:
        for deck in range(2):
            self.cards[row, :, deck] = shuffled(generator, self.length, COLOURS)

    def observe(self, rows: np.ndarray) -> np.ndarray:
        return self.cards[rows, self.time[rows]]

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time = self.time[rows]
        asked = self.cards[rows, time, 1]
        dealt = np.arange(self.length) <= time[:, None]
        counted = (dealt & (self.cards[rows, :, 0] == asked[:, None])).sum(1)
        reward = np.where(action == counted, 1.0, -1.0) / (self.length - 1)
        return reward, time == self.length - 2
