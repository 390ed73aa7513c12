"""Which layer of a hybrid is which, and whose option is whose; the laws prove the rest."""

import pytest
import torch

from decision_s4.agents.backbones import BACKBONES, make_backbone
from decision_s4.agents.backbones.s4 import S4, S4D
from decision_s4.agents.backbones.transformer import Transformer
from decision_s4.envs.errors import UserError


def mixers(n_layers: int, **options) -> list:
    backbone = make_backbone("hybrid", 8, n_layers, **options)
    return [block.mixer for block in backbone.blocks]


@pytest.mark.parametrize(
    ("n_layers", "ratio", "layers"),
    [
        (4, 3, "sssT"),
        (8, 3, "sssTsssT"),
        (5, 3, "sssTs"),
        (4, 1, "sTsT"),
        (3, 3, "ssT"),  # too few for the ratio: the last one is full
        (1, 3, "T"),
    ],
)
def test_the_ratio_places_the_full_layers(n_layers, ratio, layers):
    kinds = {S4D: "s", Transformer: "T"}
    assert "".join(kinds[type(mixer)] for mixer in mixers(n_layers, ratio=ratio)) == layers


def test_each_kind_has_its_own_options():
    linear, _, full = mixers(3, linear="s4", ratio=2, linear_d_state=6, full_window=7)
    assert isinstance(linear, S4)
    assert linear.shape == (8, 3)
    assert full.context == 7


def test_layers_do_not_share_parameters():
    first, second, *_ = mixers(4)
    assert first is not second
    assert first.log_dt is not second.log_dt


def test_its_state_is_recurrent_unless_all_of_it_is_windowed():
    assert make_backbone("hybrid", 8, 4).context is None
    windows = {"linear_window": 5, "full_window": 9}
    assert make_backbone("hybrid", 8, 4, linear="transformer", **windows).context == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": "s4dd"}, "backbone 's4dd' is unknown; did you mean 's4d'"),
        ({"full_windo": 3}, "'transformer' has no option 'windo'; did you mean 'window'"),
        ({"linear_d_state": "many"}, "d_state is 'many'; it needs int"),
        ({"linear_options": 3}, "'s4d' has no option 'options'"),
        ({"rati": 3}, "'hybrid' has no option 'rati'; did you mean 'ratio'"),
        ({"ratio": 0}, "ratio 0"),
        ({"linear": "hybrid"}, "linear 'hybrid' is a mixture itself"),
        ({"full": "hybrid", "full_ratio": 1}, "full 'hybrid' is a mixture itself"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("hybrid", 8, **options)


@pytest.mark.parametrize("linear", sorted(set(BACKBONES) - {"hybrid"}))
def test_any_layer_may_be_the_linear_one(linear):
    torch.manual_seed(0)
    backbone = make_backbone("hybrid", 8, n_layers=5, linear=linear, ratio=4).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    start = torch.zeros(2, 9, dtype=torch.bool)
    start[0, 4] = True
    y, _ = backbone(x, start=start)
    state, outputs = backbone.initial_state(2), []
    for x_t, start_t in zip(x.unbind(1), start.unbind(1), strict=True):
        y_t, state = backbone.step(x_t, state, start_t)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), y)
