"""Costs by hand, causality, composition and stress, and a crisis that costs more."""
import math

import pytest
import torch

from hirm.frictions import Friction, Liquidity, Proportional, Quadratic, Stressed, Sum
from hirm.markets import GBM, Heston, Paths
from hirm.pricing import EuropeanCall, vega

MEDIUM = Heston(v0=0.18**2, kappa=3, theta=0.18**2, xi=0.22, rho=-0.7)
CRISIS = Heston(v0=0.55**2, kappa=3, theta=0.55**2, xi=0.66, rho=-0.7)
KINDS = [
    Proportional(2e-4), Proportional((1e-4, 3e-4)), Quadratic(5e-4), Quadratic((0.0, 1e-3)), Liquidity(1e-3, 0.3), Liquidity((1e-3, 2e-3), 0.18, 0.5),
    Proportional(2e-4) + Quadratic(5e-4) + Liquidity(1e-3, 0.3), 1.5 * (Proportional(2e-4) + Quadratic(5e-4)),
]
EACH = pytest.mark.parametrize("friction", KINDS, ids=str)


def world(market=CRISIS, n_paths=7, n_steps=9, members=3, dtype=torch.float64):
    "Paths, and a random trade path in two instruments with its prices."
    generators = [torch.Generator().manual_seed(i) for i in range(members)]
    paths = market.simulate(n_paths, n_steps, 1 / 252, generators, dtype=dtype)
    trade = torch.randn(members, n_paths, n_steps + 1, 2, generator=generators[0], dtype=dtype)
    return trade, torch.stack([paths.spot, paths.variance_swap()], dim=-1), paths


def test_proportional_cost_by_hand():
    paths = Paths(*torch.ones(3, 1, 1, 3), past=torch.zeros(1, 1, 20), dt=1 / 252)
    trade = torch.tensor([0.5, 0.25, -0.75])[None, None, :, None]
    price = torch.tensor([1.0, 2.0, 4.0])[None, None, :, None]
    assert Proportional(0.01).cost(trade, price, paths).flatten().tolist() == pytest.approx([0.005, 0.005, 0.03])
    assert Quadratic(0.01).cost(trade, price, paths).flatten().tolist() == pytest.approx([0.0025, 0.00125, 0.0225])


def test_liquidity_widens_above_its_reference_only():
    variance = torch.tensor([0.1, 0.3, 0.6, 0.9])[None, None] ** 2
    paths = Paths(torch.ones(1, 1, 4), variance, variance.sqrt(), torch.zeros(1, 1, 20), 1 / 252)
    one = torch.ones(1, 1, 4, 1)
    assert Liquidity(1e-3, 0.3).cost(one, one, paths).flatten().tolist() == pytest.approx([1e-3, 1e-3, 4e-3, 9e-3])
    assert Liquidity(1e-3, 0.3, exponent=0.5).cost(one, one, paths).flatten().tolist() == pytest.approx([1e-3, 1e-3, 2e-3, 3e-3])


@EACH
def test_cost_has_the_trades_shape_and_dtype_and_is_never_negative(friction):
    for dtype in (torch.float32, torch.float64):
        trade, price, paths = world(dtype=dtype)
        cost = friction.cost(trade, price, paths)
        assert cost.shape == trade.shape and cost.dtype == dtype and (cost >= 0).all() and cost.sum() > 0
        assert friction.cost(trade * 0, price, paths).abs().max() == 0
        assert torch.equal(cost, friction.cost(-trade, price, paths))


@EACH
def test_doubling_the_future_leaves_earlier_costs(friction):
    trade, price, paths = world()
    before = friction.cost(trade, price, paths)
    for date in range(1, 10):
        later = (torch.arange(10) >= date).double() + 1
        changed = Paths(paths.spot * later, paths.variance * later, paths.iv * later, paths.past, paths.dt)
        after = friction.cost(trade * later[:, None], price * later[:, None], changed)
        assert torch.equal(after[..., :date, :], before[..., :date, :])
        assert (after[..., date, :] >= before[..., date, :]).all() and after[..., date, :].sum() > before[..., date, :].sum()


@EACH
@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0, 1.5, 3])
def test_stress_multiplies_cost_exactly(friction, factor):
    trade, price, paths = world()
    for stressed in (factor * friction, friction * factor):
        assert torch.equal(stressed.cost(trade, price, paths), factor * friction.cost(trade, price, paths))
        assert torch.equal(stressed.half_spread(paths, trade), factor * friction.half_spread(paths, trade))


def test_sum_costs_the_sum():
    trade, price, paths = world()
    a, b, c = Proportional(2e-4), Quadratic(5e-4), Liquidity(1e-3, 0.3)
    alone = a.cost(trade, price, paths) + b.cost(trade, price, paths) + c.cost(trade, price, paths)
    assert torch.equal((a + b + c).cost(trade, price, paths), alone)
    torch.testing.assert_close((a + (b + c)).cost(trade, price, paths), alone)
    assert (a + b) + c == a + (b + c) == Sum((a, b, c)) and hash(a + b) == hash(Sum((a, b)))


def test_half_spread_is_the_cost_of_a_small_trade():
    trade, price, paths = world()
    for friction in KINDS:
        small = 1e-9 * trade
        part = friction.cost(small, price, paths) / (small.abs() * price)
        torch.testing.assert_close(part, friction.half_spread(paths, trade).expand_as(part), rtol=1e-5, atol=1e-11)


def test_instruments_may_have_rates_of_their_own():
    trade, price, paths = world()
    both = Proportional((1e-4, 3e-4)).cost(trade, price, paths)
    assert torch.equal(both[..., 1], Proportional(3e-4).cost(trade, price, paths)[..., 1])
    with pytest.raises(ValueError, match="got 3 rates for 2 instruments; write a tuple of 2"):
        Proportional((1e-4, 1e-4, 1e-4)).cost(trade, price, paths)


@EACH
def test_members_pay_what_they_would_pay_alone(friction):
    trade, price, paths = world()
    alone = Paths(paths.spot[1:2], paths.variance[1:2], paths.iv[1:2], paths.past[1:2], paths.dt)
    assert torch.equal(friction.cost(trade, price, paths)[1:2], friction.cost(trade[1:2], price[1:2], alone))


@EACH
def test_gradient_is_finite_where_nothing_is_traded(friction):
    trade, price, paths = world()
    trade = (trade * (trade > 0)).requires_grad_()
    (slope,) = torch.autograd.grad(friction.cost(trade, price, paths).sum(), trade)
    assert slope.isfinite().all() and slope.abs().sum() > 0


def delta_hedge_cost(market, friction, n_paths=4000):
    paths = market.simulate(n_paths, 60, 1 / 252, torch.Generator().manual_seed(0), dtype=torch.float64)
    position = EuropeanCall().delta(paths.spot, paths.tau, paths.iv)
    position = torch.cat([position[..., :-1], torch.zeros_like(position[..., :1])], dim=-1)
    trade = position.diff(dim=-1, prepend=torch.zeros_like(position[..., :1]))
    cost = friction.cost(trade[..., None], paths.spot[..., None], paths).sum(dim=(-2, -1))
    return cost.mean().item(), cost.std().item() / math.sqrt(n_paths)


def test_crisis_really_costs_more():
    kernel = Liquidity(2e-4, reference_vol=0.18)
    (calm, calm_error), (crisis, crisis_error) = delta_hedge_cost(MEDIUM, kernel), delta_hedge_cost(CRISIS, kernel)
    assert crisis - 6 * calm > 4 * math.hypot(crisis_error, 6 * calm_error)
    constant, widening = delta_hedge_cost(CRISIS, Proportional(1e-3))[0], delta_hedge_cost(CRISIS, Liquidity(1e-3, reference_vol=0.55))[0]
    assert widening > 1.05 * constant


def test_rebalancing_cost_follows_leland():
    for n_steps in (60, 240):
        paths = GBM(0.2).simulate(8000, n_steps, 60 / 252 / n_steps, torch.Generator().manual_seed(0), dtype=torch.float64)
        position = EuropeanCall().delta(paths.spot, paths.tau, 0.2)[..., :-1]
        cost = Proportional(1e-4).cost(position.diff(dim=-1)[..., None], paths.spot[..., 1:-1, None], paths).sum(dim=(-2, -1))
        formula = 1e-4 * math.sqrt(2 / math.pi) * vega(1.0, 1.0, 60 / 252, 0.2).item() * math.sqrt(n_steps / (60 / 252))
        assert abs(cost.mean().item() / formula - 1) < 0.03


@pytest.mark.parametrize("build, message", [
    (lambda: Proportional(-1e-4), "rate must be at least 0 and below 1, got -0.0001; a half-spread of 2 bp is 2e-4"),
    (lambda: Proportional((1e-4, -1e-4)), "rate must be at least 0"),
    (lambda: Proportional(2), "rate must be at least 0 and below 1, got 2; a half-spread of 2 bp is 2e-4"), (lambda: Liquidity(10, 0.2), "below 1, got 10; a half-spread of 10 bp"),
    (lambda: Proportional(math.nan), "rate must be at least 0 and below 1, got nan"),
    (lambda: Quadratic(math.inf), "rate must be at least 0 and finite, got inf"),
    (lambda: Liquidity(-1.0, 0.2), "rate must be at least 0"),
    (lambda: Liquidity(1e-3, 0.0), "reference_vol must be positive and finite, got 0.0; a calm year's 18 % is 0.18"),
    (lambda: Liquidity(1e-3, 0.2, -1.0), "exponent must be at least 0"),
    (lambda: -1.0 * Proportional(1e-4), "factor must be at least 0 and finite, got -1.0; a stress of 1.5"),
    (lambda: Stressed(math.nan, Proportional(1e-4)), "factor must be at least 0"),
])
def test_bad_parameters_are_refused_at_the_door(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_only_frictions_add_up():
    with pytest.raises(TypeError):
        Proportional(1e-4) + 1.0
    assert isinstance(Proportional(1e-4) + Proportional(1e-4), Friction)
