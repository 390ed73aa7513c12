"""Sequences of symbols that can be answered only by what went by; every batch is new.

    recall      pairs of a key and a value, then noise, then the keys in another order: their values
                (multi-query associative recall: Zoology, arXiv 2312.04927)
    induction   noise in which what follows one marked symbol is always the same: what follows?
                (induction heads: H3, arXiv 2212.14052)
    parity      bits: whether the ones so far are odd
    sum         digits: their sum so far, modulo 5
    carry       two numbers, a digit of each at a step, the last digits first: digits of their sum

Parity and sum need eigenvalues that are not positive reals, in a layer whose transition is diagonal
(Grazzi et al., arXiv 2411.12537). A carry is forgotten at every column that settles it.
Shapes: B rows, T steps. An answer of NONE is not asked for.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NONE = -100  # what torch's cross-entropy ignores
PAIRS, KEYS, VALUES = 12, 32, 32
SYMBOLS, QUERIES = 16, 4
MODULUS = 5
NINES = 0.75  # share of columns that pass a carry on: their digits add up to 9


class Task(NamedTuple):
    """How its sequences are drawn: (rows, steps) -> symbols and answers (B, T) int64."""

    draw: Callable[[int, int], tuple[Tensor, Tensor]]
    symbols: int
    answers: int


def recall(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """2 · PAIRS steps of pairs, noise (one symbol), and at the end PAIRS queries."""
    keys = torch.rand(rows, KEYS).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (rows, PAIRS))
    order = torch.rand(rows, PAIRS).argsort(1)
    x = torch.full((rows, steps), KEYS + VALUES)
    x[:, 0 : 2 * PAIRS : 2], x[:, 1 : 2 * PAIRS : 2] = keys, KEYS + values
    x[:, -PAIRS:] = keys.gather(1, order)
    y = torch.full_like(x, NONE)
    y[:, -PAIRS:] = values.gather(1, order)
    return x, y


def induction(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """The mark stands once in the first quarter and QUERIES times, with gaps, in the last half."""
    x = torch.randint(SYMBOLS, (rows, steps))
    answer = torch.randint(SYMBOLS, (rows, 1))
    places = steps // 2 + 2 * torch.rand(rows, steps // 4).argsort(1)[:, :QUERIES]
    marks = torch.cat([torch.randint(steps // 4, (rows, 1)), places], 1)
    x.scatter_(1, marks, SYMBOLS)
    x.scatter_(1, marks + 1, answer.expand_as(marks))
    y = torch.full_like(x, NONE)
    return x, y.scatter_(1, places, answer.expand_as(places))


def parity(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(2, (rows, steps))
    return x, x.cumsum(1) % 2


def running_sum(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(MODULUS, (rows, steps))
    return x, x.cumsum(1) % MODULUS


def carry(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """A symbol is 10 a + b."""
    a, b = torch.randint(10, (2, rows, steps))
    b = b.where(torch.rand(rows, steps) >= NINES, 9 - a)
    carried, digits = torch.zeros(rows, dtype=torch.long), []
    for column in (a + b).unbind(1):
        digits.append((column + carried) % 10)
        carried = (column + carried) // 10
    return 10 * a + b, torch.stack(digits, 1)


TASKS = {
    "recall": Task(recall, KEYS + VALUES + 1, VALUES),
    "induction": Task(induction, SYMBOLS + 1, SYMBOLS),
    "parity": Task(parity, 2, 2),
    "sum": Task(running_sum, MODULUS, MODULUS),
    "carry": Task(carry, 100, 10),
}
