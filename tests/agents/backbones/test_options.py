"""Options that make no sense are refused by name and in one line, for every backbone."""

import dataclasses

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS, family_of
from decision_s4.envs.errors import UserError

D = 8
ALL = {**BACKBONES, **MEMORYLESS}
SILLY = {int: (0, -1, 7, 2**70), float: (0.0, -1.0, 1e300, float("nan"), float("inf"))}
SILLY |= {bool: (0,), str: ("", "many")}
names = pytest.mark.parametrize("name", sorted(ALL))


def options(name):
    return [
        (field.name, type(field.default)) for field in dataclasses.fields(family_of(name).Options)
    ]


@names
def test_a_silly_value_is_refused_by_name_or_works(name):
    x = torch.randn(1, 5, D)
    for option, kind in options(name):
        for value in (*SILLY[kind], None, [1]):
            try:
                y, _ = make_backbone(name, D, n_layers=1, **{option: value})(x)
            except UserError as error:
                assert option in str(error) and "\n" not in str(error)
            else:
                assert y.isfinite().all(), f"{option} {value}"


@names
def test_what_is_of_another_type_or_too_large_is_always_refused(name):
    for option, kind in options(name):
        wrong = [None, [1]] + ([] if kind is str else ["many"]) + ([2**70] if kind is int else [])
        for value in wrong:
            with pytest.raises(UserError, match=f"backbone option {option} "):
                make_backbone(name, D, n_layers=1, **{option: value})


@pytest.mark.parametrize("sizes", [{"d_model": 2**40}, {"n_layers": 10**6}], ids=str)
def test_stacks_too_large_are_refused(sizes):
    with pytest.raises(UserError, match="go to"):
        make_backbone("s4", **({"d_model": D} | sizes))


def test_what_no_memory_holds_is_said(monkeypatch):
    def fail(*given):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: 4 TB\nand more")

    monkeypatch.setattr(BACKBONES["gru"], "layers", fail)
    with pytest.raises(
        UserError, match=r"'gru' does not fit in memory with d_model 8, .* d_state 9"
    ):
        make_backbone("gru", D, d_state=9)
