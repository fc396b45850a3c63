"""The average of the weights against its closed form."""

import pytest
import torch
from torch import nn

from instructlit.errors import UserError
from instructlit.models.ema import EMA


def one_weight(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer


def set_weight(layer: nn.Linear, value: float) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)


def average(ema: EMA) -> float:
    return float(ema.state_dict()["average"]["weight"])


def test_three_updates_give_the_closed_form() -> None:
    layer = one_weight(10.0)
    ema = EMA(layer, decay=0.5)
    for value in (20.0, 40.0, 80.0):
        set_weight(layer, value)
        ema.update()
    # 10/8 + 20/8 + 40/4 + 80/2
    assert average(ema) == pytest.approx(53.75, abs=1e-6)
    assert ema.updates == 3


def test_the_papers_decay_keeps_most_of_the_old_average() -> None:
    layer = one_weight(0.0)
    ema = EMA(layer)
    set_weight(layer, 1.0)
    for _ in range(3):
        ema.update()
    assert average(ema) == pytest.approx(1 - 0.992**3, rel=1e-5)


def test_a_16_bit_model_has_a_float32_average_that_keeps_moving() -> None:
    layer = one_weight(1.0, torch.bfloat16)
    ema = EMA(layer, decay=0.992)
    set_weight(layer, 1.0078125)  # the next bfloat16 after 1: in 16 bits the average would never leave 1
    for _ in range(100):
        ema.update()
    assert ema.state_dict()["average"]["weight"].dtype == torch.float32
    assert average(ema) == pytest.approx(1 + 0.0078125 * (1 - 0.992**100), abs=1e-6)


def test_swapped_shows_the_average_and_gives_back_the_very_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    ema = EMA(layer, decay=0.9)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
    ema.update()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    expected = ema.state_dict()["average"]["weight"].clone()
    with ema.swapped():
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=0)
    for name, p in layer.named_parameters():
        assert torch.equal(p, before[name]), name
    with pytest.raises(RuntimeError, match="inside"), ema.swapped():
        raise RuntimeError("inside")
    for name, p in layer.named_parameters():
        assert torch.equal(p, before[name]), name


def test_only_trainable_parameters_are_averaged() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert list(EMA(layer).state_dict()["average"]) == ["weight"]


def test_a_restored_average_goes_on_as_if_never_stopped() -> None:
    straight, first = one_weight(1.0), one_weight(1.0)
    whole, half = EMA(straight, 0.9), EMA(first, 0.9)
    for value in (2.0, 3.0):
        set_weight(straight, value)
        whole.update()
    set_weight(first, 2.0)
    half.update()
    resumed_layer = one_weight(2.0)
    resumed = EMA(resumed_layer, 0.9)
    resumed.load_state_dict(half.state_dict())
    set_weight(resumed_layer, 3.0)
    resumed.update()
    assert average(resumed) == average(whole)
    assert resumed.updates == whole.updates == 2


def test_a_restored_average_goes_on_with_its_own_decay() -> None:
    layer = one_weight(1.0)
    resumed = EMA(layer, decay=0.5)
    resumed.load_state_dict(EMA(one_weight(3.0), decay=0.9).state_dict())
    resumed.update()
    assert average(resumed) == 2.0  # half of 3 and half of 1


def test_a_state_of_other_parameters_and_a_decay_of_one_are_refused() -> None:
    with pytest.raises(UserError, match="bias"):
        EMA(nn.Linear(1, 1)).load_state_dict(EMA(one_weight(1.0)).state_dict())
    with pytest.raises(UserError, match=r"decay: found 1\.0"):
        EMA(one_weight(1.0), decay=1.0)
