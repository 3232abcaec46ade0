"What the hedger knows: yesterday's return in units of the quote, from the past on, and nothing of tomorrow."
from dataclasses import replace

import pytest
import torch

from hirm.environments import ENVIRONMENTS
from hirm.features import COLUMNS, USUAL, features


def episode(name="medium", n_paths=5):
    return ENVIRONMENTS[name].episode(n_paths, torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_last_return_is_yesterdays_in_units_of_the_quote():
    trade = episode()
    paths, value = trade.paths, features(trade, ("last_return",))[..., 0]
    assert torch.allclose(value[..., 0], paths.past[..., -1] / (paths.iv[..., 0] / 252**0.5))
    step = (paths.spot[..., 7] / paths.spot[..., 6]).log()
    assert torch.allclose(value[..., 7], step / (paths.iv[..., 7] / 252**0.5))


def test_the_last_return_is_free_of_scale():
    calm, crisis = (features(episode(name, 4000), ("last_return",)) for name in ("low", "crisis"))
    assert calm.std().item() == pytest.approx(1, abs=0.1) and crisis.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", COLUMNS)
def test_no_column_knows_the_future(name):
    trade = episode()
    later = torch.where(torch.arange(61) > 30, 2.0, 1.0)
    changed = replace(trade, paths=replace(trade.paths, spot=trade.paths.spot * later))
    moved = (features(trade, (name,)) != features(changed, (name,)))[..., 0].any(0).any(0)
    assert not moved[:31].any() and (name == "tau" or moved[31:].any())


def test_what_is_usual_leaves_the_planted_column_out():
    assert USUAL == ("delta", "gamma", "tau", "realized_vol") and set(USUAL) < set(COLUMNS)
