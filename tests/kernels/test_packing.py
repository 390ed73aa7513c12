"""Every valid step lies once in the chunks, in order, with its own episode only."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels.chunk_layout import widened
from decision_s4.kernels.packing import Packing


def bools(text: str) -> torch.Tensor:
    """One row a word, "x" is True."""
    return torch.tensor([[mark == "x" for mark in row] for row in text.split()])


def steps_of(layout, rank: int, place: int) -> list[int]:
    """Flat steps of a chunk, in time order."""
    row = layout.source[sum(layout.counts[:rank]) + place]
    return [step for step in row.flip(0).tolist() if step != len(layout.target)]


def chunks(layout) -> dict[tuple[int, int], list[int]]:
    """The steps of each chunk by (rank, place)."""
    places = [(rank, place) for rank, n in enumerate(layout.counts) for place in range(n)]
    return {each: steps_of(layout, *each) for each in places}


def episodes_by_hand(start: torch.Tensor, valid: torch.Tensor) -> list[list[int]]:
    """Flat steps of each episode; a row's first one begins at its first valid step."""
    episodes = []
    for row, (starts, valids) in enumerate(zip(start.tolist(), valid.tolist(), strict=True)):
        opened = False
        for t, (begins, counts) in enumerate(zip(starts, valids, strict=True)):
            if counts and (begins or not opened):
                episodes.append([])
                opened = True
            if counts:
                episodes[-1].append(row * len(starts) + t)
    return episodes


def test_a_layout_a_hand_can_check():
    """Episodes 0-2 (carried in), 3-4, 5-9 in chunks of two; 10 and 12 mean none."""
    layout = Packing(bools("...x. x....")).chunks(2)
    assert layout.counts == (3, 2, 1)  # longest episode first
    assert layout.source.tolist() == [[6, 5], [1, 0], [4, 3], [8, 7], [10, 2], [10, 9]]
    assert layout.target.tolist() == [2, 3, 8, 4, 5, 0, 1, 6, 7, 10]
    assert (layout.carry_rows.tolist(), layout.carry_chunks.tolist()) == ([0], [1])
    assert (layout.final_rows.tolist(), layout.final_chunks.tolist()) == ([0, 1], [2, 5])
    assert (layout.previous.tolist(), layout.final_episodes.tolist()) == ([0, 1, 3], [2, 0])
    assert layout.final_lengths.tolist() == [2, 1]
    assert layout.tail.tolist() == [[4, 3], [9, 10]]


def test_steps_that_are_not_valid_belong_nowhere():
    """Row 0 is one carried episode 0, 2; its start at the hole 1 means nothing. Row 1 is empty."""
    layout = Packing(bools(".x. x.."), bools("x.x ...")).chunks(4)
    assert layout.counts == (1,)
    assert layout.source.tolist() == [[6, 6, 2, 0]]
    assert layout.target.tolist() == [0, 4, 1, 4, 4, 4]
    assert layout.carry_rows.tolist() == layout.final_rows.tolist() == [0]
    assert layout.tail.tolist() == [[2, 0, 6, 6]]


def test_rows_without_a_valid_step():
    layout = Packing(bools("xx"), bools("..")).chunks(4)
    assert layout.counts == ()
    assert layout.target.tolist() == [0, 0]
    assert len(layout.final_rows) == len(layout.carry_rows) == len(layout.previous) == 0


def test_unbroken_rows_all_carry():
    layout = Packing.unbroken(3, 2).chunks(2)
    assert layout.carry_rows.tolist() == [0, 1, 2]
    assert layout.source.tolist() == [[1, 0], [3, 2], [5, 4]]


def test_a_layout_is_made_once_and_masks_stay_as_they_are():
    start, valid = bools("..x. x..."), bools(".xxx xxx.")
    packing = Packing(start, valid)
    assert packing.chunks(2) is packing.chunks(2)
    assert start.equal(bools("..x. x..."))
    assert valid.equal(bools(".xxx xxx."))


@st.composite
def masks(draw):
    rows, steps = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    return tuple(torch.tensor(draw(mask)).view(rows, steps) for _ in range(2))


@settings(deadline=None)
@given(masks(), st.sampled_from([1, 2, 4, 16]))
def test_any_rows_are_cut_by_episode(start_and_valid, length):
    start, valid = start_and_valid
    layout = Packing(start, valid).chunks(length)
    found = chunks(layout)
    cut = [
        (rank, episode[rank * length : (rank + 1) * length])
        for episode in episodes_by_hand(start, valid)
        for rank in range(-(-len(episode) // length))
    ]
    assert sorted((rank, steps) for (rank, _), steps in found.items()) == sorted(cut)
    for (rank, place), steps in found.items():  # a chunk goes on where the one before it ended
        if rank:
            assert len(found[rank - 1, place]) == length
            assert found[rank - 1, place][-1] < steps[0]
    by_time = [*layout.source.flip(1).flatten().tolist(), None]
    steps = [by_time[place] for place in layout.target.tolist()]
    assert steps == [i if counts else None for i, counts in enumerate(valid.flatten().tolist())]
    last = {step // start.shape[1]: step for step in range(valid.numel()) if steps[step] == step}
    assert layout.final_rows.tolist() == list(last)
    assert layout.tail[:, 0].tolist() == list(last.values())


@settings(deadline=None)
@given(masks(), st.sampled_from([1, 2, 4]), st.integers(0, 2), st.integers(0, 2))
def test_a_chunk_knows_the_one_before_it_and_a_row_its_last_episode(masks, length, more, ranks):
    layout = Packing(*masks).chunks(length)
    counts = (*(count + more for count in layout.counts), *[more] * ranks)
    for each in (layout, widened(layout, counts)):
        places = [(rank, i) for rank, n in enumerate(each.counts) for i in range(n)]
        before = [places.index((rank - 1, i)) for rank, i in places if rank]
        assert each.previous.tolist() == before
        ends = [places[chunk][1] for chunk in each.final_chunks.tolist()]
        assert each.final_episodes.tolist() == ends
