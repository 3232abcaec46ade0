"""Prices against published numbers, Greeks against differentiation, premiums against simulation, and every edge."""
import math

import numpy as np
import pytest
import QuantLib as ql
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from hirm import pricing
from hirm.history import Windows
from hirm.markets import GBM, SABR, Heston, Jumps, Momentum, Paths
from hirm.pricing import EuropeanCall, black_scholes, delta, gamma, heston_greeks, implied_vol, premium, theta, variance_swap_rate, vega

QUARTER = 60 / 252
BUEHLER = Heston(v0=0.04, kappa=1, theta=0.04, xi=2, rho=-0.7)
SABR_CALM = SABR(alpha=0.18, beta=1, nu=0.7, rho=-0.3)
SABR_CRISIS = SABR(alpha=0.55, beta=1, nu=1.5, rho=-0.4)
BATES = Jumps(Heston(v0=0.08, kappa=2.5, theta=0.09, xi=0.6, rho=-0.7), intensity=1, mean=-0.05, sd=0.08)
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def doubles(*values): return torch.tensor(values, dtype=torch.float64)


def generator(seed=0): return torch.Generator().manual_seed(seed)


# Black-Scholes

def test_black_scholes_matches_haug_with_interest_in_the_forward():
    growth = math.exp(0.08 * 0.25)
    assert abs(black_scholes(60 * growth, 65, 0.25, 0.30).item() / growth - 2.13336844) < 1e-8


def test_black_scholes_matches_recomputed_price():
    assert abs(black_scholes(100, 100, QUARTER, 0.2).item() - 3.89173361) < 1e-8


def test_black_scholes_keeps_relative_accuracy_far_out_of_the_money():
    for strike in (1.2, 1.6, 2.5):
        d1 = -math.log(strike) / 0.08 + 0.04  # up to 11 standard deviations out
        exact = ndtr(d1) - strike * ndtr(d1 - 0.08)
        assert exact < 0.01 and abs(black_scholes(1.0, strike, 1.0, 0.08).item() / exact - 1) < 1e-10


def test_parity_whatever_the_moneyness():
    spot = torch.logspace(-1, 1, 41, dtype=torch.float64)
    for tau, vol in ((0.0, 0.2), (1 / 252, 0.08), (QUARTER, 0.55), (10.0, 1.0)):
        call, put = black_scholes(spot, 1.0, tau, vol), black_scholes(1.0, spot, tau, vol)
        torch.testing.assert_close(call - put, spot - 1, rtol=0, atol=1e-14)


def test_price_rises_with_life_and_vol_within_its_bounds():
    spot, vol = torch.linspace(0.6, 1.5, 10, dtype=torch.float64)[:, None], torch.linspace(0, 2, 40, dtype=torch.float64)
    for price in (black_scholes(spot, 1.0, QUARTER, vol), black_scholes(spot, 1.0, vol, 0.3)):
        assert (price.diff(dim=-1) > -1e-15).all() and (price < spot).all() and (price > (spot - 1).clamp(min=0) - 1e-15).all()


@BOTH
@pytest.mark.parametrize("function", [black_scholes, delta, gamma, vega, theta])
def test_negative_life_and_vol_are_refused(function, dtype):
    spot = torch.tensor([0.9, 1.0, 1.1], dtype=dtype)
    for tau, vol, message in ((-0.25, 0.2, "tau must not be negative, got -0.25; a call that has expired"), (0.25, -0.2, "vol must not be negative, got -0.2; annualised"),
                              (torch.tensor([0.1, 0.0, -0.1]), 0.2, "tau must not be negative, got -0.1"), (0.0, torch.tensor([0.1, -1.0, 0.1]), "vol .* got -1"),
                              (-0.25, -0.2, "tau must not be negative"), (-1e-12, 0.2, "tau must not be negative"), (0.25, -1e-12, "vol must not be negative")):
        with pytest.raises(ValueError, match=message):
            function(spot, 1.0, tau, vol)
    assert function(spot, 1.0, 0.25, math.nan).isnan().all()
    with pytest.raises(ValueError, match="vol must not be negative"):
        function(spot, 1.0, 0.25, torch.tensor([math.nan, 0.1, -0.1], dtype=dtype))  # NaN hides nothing
    assert function(spot[:0], 1.0, 0.25, 0.2).shape == (0,)


def test_where_values_are_not_looked_at_negative_life_and_vol_give_nan():
    "On a GPU a look would make it wait: what the formulas share makes NaN of them."
    for tau, vol in ((-0.25, 0.2), (0.25, -0.2), (-1e-4, 0.2)):
        d1, total_vol, expired = pricing._d1(*doubles(1.0, 1.0, tau, vol))
        assert total_vol.isnan() and not expired


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_are_numbers(dtype):
    """A strike or a vol must not be cut to a whole number because the spots are."""
    spot = torch.tensor([0, 1]).to(dtype) if dtype == torch.bool else torch.tensor([1, 2], dtype=dtype)
    exact = spot.double()
    torch.testing.assert_close(EuropeanCall(1.1).payoff(spot), (exact - 1.1).clamp(min=0))
    for function in (black_scholes, delta, gamma, vega, theta):
        torch.testing.assert_close(function(spot[1:], 1.1, 0.25, 0.2), function(exact[1:], 1.1, 0.25, 0.2))
        assert function(spot[1:], torch.tensor(1.1), 0.25, 0.2).dtype == torch.float32  # the first tensor of fractions
    assert implied_vol(0.3, torch.tensor(1).to(dtype), 1, 1) == implied_vol(0.3, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype):
    spot = torch.tensor([0.9, 1.0, 1.1], dtype=dtype)
    assert EuropeanCall(1.05).payoff(spot).dtype == dtype and black_scholes(spot, 1.0, 0.25, 0.2).dtype == dtype
    assert (black_scholes(spot, 1.0, 0.25, 0.2).double() - black_scholes(spot.double(), 1.0, 0.25, 0.2)).abs().max() < torch.finfo(dtype).eps


# the last day

@BOTH
@pytest.mark.parametrize("tau, vol", [(0.0, 0.2), (QUARTER, 0.0), (0.0, 0.0)])
def test_expired_price_and_greeks_are_exact(dtype, tau, vol):
    spot = torch.tensor([0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 2.0], dtype=dtype)
    assert torch.equal(black_scholes(spot, 1.0, tau, vol), (spot - 1).clamp(min=0))
    assert delta(spot, 1.0, tau, vol).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    for greek in (gamma, vega, theta):
        assert torch.equal(greek(spot, 1.0, tau, vol), torch.zeros_like(spot))


@BOTH
def test_gradients_are_finite_on_every_date_to_second_order(dtype):
    spot = torch.tensor([0.3, 0.97, 1.0, 1.03, 3.0], dtype=dtype).expand(8, 5).clone().requires_grad_()
    tau = torch.tensor([0, 1e-12, 1e-6, 1 / 252, 2 / 252, QUARTER, 1, 30], dtype=dtype)[:, None].clone().requires_grad_()
    vol = torch.full((8, 5), 0.2, dtype=dtype, requires_grad=True)
    for value in (black_scholes(spot, 1.0, tau, vol), delta(spot, 1.0, tau, vol), gamma(spot, 1.0, tau, vol)):
        first = torch.autograd.grad(value.sum(), (spot, tau, vol), create_graph=True, allow_unused=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), (spot, tau, vol), allow_unused=True)
        for g in (value, *first, *second):
            assert g.isfinite().all()
    (slope,) = torch.autograd.grad(black_scholes(spot, 1.0, tau, vol).sum(), spot)
    assert slope[0].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_delta_tends_to_its_value_at_expiry():
    spot = doubles(0.99, 1.0, 1.01)
    torch.testing.assert_close(delta(spot, 1.0, 1e-9, 0.2), delta(spot, 1.0, 0.0, 0.2), rtol=0, atol=1e-5)


# Greeks

def test_greeks_equal_autograd():
    spot, tau, vol = (x.clone().requires_grad_() for x in torch.broadcast_tensors(
        torch.linspace(0.6, 1.6, 21, dtype=torch.float64)[:, None, None], doubles(1 / 252, QUARTER, 2.0)[:, None], doubles(0.08, 0.2, 0.8)))
    first = torch.autograd.grad(black_scholes(spot, 1.0, tau, vol).sum(), (spot, tau, vol), create_graph=True)
    (bend,) = torch.autograd.grad(first[0].sum(), spot)
    for ours, autograd in ((delta, first[0]), (gamma, bend), (vega, first[2]), (theta, -first[1])):
        torch.testing.assert_close(ours(spot, 1.0, tau, vol), autograd, rtol=1e-9, atol=1e-12)


def test_theta_pays_for_gamma():
    spot = torch.linspace(0.6, 1.6, 21, dtype=torch.float64)
    torch.testing.assert_close(theta(spot, 1.0, 0.3, 0.25), -0.5 * 0.25**2 * spot**2 * gamma(spot, 1.0, 0.3, 0.25))


def test_discrete_hedging_error_follows_from_vega():
    error = math.sqrt(math.pi / 4) * vega(100, 100, 1 / 12, 0.2).item() * 0.2 / math.sqrt(21)
    assert abs(error - 0.4452) < 1e-4  # Derman & Kamal 1999


# dtype, shape, the call

def test_float32_is_as_good_as_float32_can_be():
    spot = torch.linspace(0.5, 2.0, 151, dtype=torch.float64)[:, None]
    tau = torch.arange(61, dtype=torch.float64) / 252
    for function, scale in ((black_scholes, 2.0), (delta, 1.0), (gamma, 50.0), (vega, 1.0), (theta, 1.0)):
        single = function(spot.float(), 1.0, tau.float(), 0.2)
        assert single.dtype == torch.float32 and single.shape == (151, 61)
        # delta at the strike moves by gamma times a rounding error of the spot
        assert (single.double() - function(spot.float().double(), 1.0, tau, 0.2)).abs().max() < 3e-6 * scale


def test_everything_follows_the_first_tensor():
    spot = torch.ones(3, dtype=torch.float32)
    assert black_scholes(spot, 1.0, doubles(0.1), 0.2).dtype == torch.float32
    assert black_scholes(1.0, 1.0, 0.1, 0.2).dtype == torch.float64
    assert EuropeanCall().delta(spot, torch.zeros(3), 0.2).dtype == torch.float32


def test_call_agrees_with_the_functions_and_pays_its_payoff():
    call, spot = EuropeanCall(1.1), doubles(0.9, 1.1, 1.5)
    for name in ("delta", "gamma", "vega"):
        assert torch.equal(getattr(call, name)(spot, 0.1, 0.3), getattr(pricing, name)(spot, 1.1, 0.1, 0.3))
    assert torch.equal(call.price(spot, 0.1, 0.3), black_scholes(spot, 1.1, 0.1, 0.3))
    torch.testing.assert_close(call.payoff(spot), doubles(0.0, 0.0, 0.4))


@pytest.mark.parametrize("strike", [0, -1.0, math.nan, math.inf])
def test_call_refuses_a_strike_that_is_no_price(strike):
    with pytest.raises(ValueError, match="strike must be positive and finite, got"):
        EuropeanCall(strike)


# implied vol

def grid():
    strike = torch.logspace(-1, 1, 61, dtype=torch.float64)[:, None, None]
    tau = doubles(1 / 252, 5 / 252, QUARTER, 1, 5, 30)[:, None]
    vol = doubles(0.005, 0.02, 0.08, 0.2, 0.55, 1.0, 2.0, 4.0)
    price = black_scholes(1.0, strike, tau, vol)
    strike, tau, vol = (x.expand(price.shape) for x in (strike, tau, vol))
    # one unit in the last place of the price (of spot and strike too, where it is mostly intrinsic value), in vol
    last_digit = torch.finfo(torch.float64).eps * torch.where(strike < 1, 1.0, price)
    knowable = (last_digit / vega(1.0, strike, tau, vol) < 1e-9) & (price < 1) & (price > 1e-290)
    return tuple(x[knowable] for x in (price, strike, tau, vol))


def test_implied_vol_inverts_the_grid():
    price, strike, tau, vol = grid()
    assert len(price) > 1200 and price.min() < 1e-250 and (price > 0.99).any()  # the corners are in
    assert (implied_vol(price, 1.0, strike, tau) - vol).abs().max() < 1e-8


def test_implied_vol_is_free_of_units():
    price, strike, tau, vol = grid()
    assert (implied_vol(4321.0 * price, 4321.0, 4321.0 * strike, tau) - vol).abs().max() < 1e-7


def test_implied_vol_in_float32_is_right_where_vega_allows():
    spot, vol = torch.linspace(0.9, 1.1, 21), torch.tensor([0.08, 0.2, 0.55])[:, None]
    found = implied_vol(black_scholes(spot, 1.0, QUARTER, vol), spot, 1.0, QUARTER)
    assert found.dtype == torch.float32
    slack = 4e-7 / vega(spot, 1.0, QUARTER, vol)
    assert ((found - vol).abs() < slack + 1e-6).all()


def test_implied_vol_of_intrinsic_value_is_zero():
    assert implied_vol(doubles(0.0, 0.0, 0.25), doubles(0.8, 1.0, 1.25), 1.0, 0.3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("price, spot, strike, tau, message", [
    (1.2, 1.0, 1.0, 0.5, "price must lie between .* got 1.2; check"),
    (1.0, 1.0, 1.0, 0.5, "price must lie between"),
    (-0.01, 1.0, 1.0, 0.5, "price must lie between .* got -0.01"),
    (0.05, 1.2, 1.0, 0.5, "price must lie between .* got 0.05"),
    (math.nan, 1.0, 1.0, 0.5, "price must lie between .* got nan"),
    (0.1, 1.0, 1.0, 0.0, "tau must be positive .* got 0; an expired call"),
    (0.1, -1.0, 1.0, 0.5, "spot must be positive"),
    (0.1, 1.0, math.nan, 0.5, "strike must be positive"),
])
def test_implied_vol_refuses_arbitrage(price, spot, strike, tau, message):
    with pytest.raises(ValueError, match=message):
        implied_vol(doubles(0.1, price), doubles(1.0, spot), doubles(1.0, strike), doubles(0.5, tau))


@BOTH
def test_impossible_quotes_of_a_chain_are_nan_on_request(dtype):
    strike = torch.tensor([0.8, 0.9, 1.0, 1.1, 1.2, 1.0, 1.0, -1.0], dtype=dtype)
    tau = torch.tensor([0.25] * 6 + [0.0, 0.25], dtype=dtype)
    price = black_scholes(torch.ones_like(strike), strike.abs(), 0.25, 0.3)
    price[1], price[3], price[5] = 0.05, 1.5, math.nan  # below intrinsic, above the spot, missing
    found = implied_vol(price, 1.0, strike, tau, impossible="nan")
    assert found.dtype == dtype and found.isnan().tolist() == [False, True, False, True, False, True, True, True]
    assert (found[[0, 2, 4]] - 0.3).abs().max() < (1e-4 if dtype == torch.float32 else 1e-12)
    fine = [0, 2, 4]
    assert torch.equal(implied_vol(price[fine], 1.0, strike[fine], tau[fine]), found[fine])  # the others are what they are alone
    assert implied_vol(0.0, 0.8, 1.0, 0.25, impossible="nan") == 0 and implied_vol(-1.0, 0.8, 1.0, 0.25, impossible="nan").isnan()
    with pytest.raises(ValueError, match="price must lie between .*or ask for impossible='nan'"):
        implied_vol(price[:3], 1.0, strike[:3], tau[:3])
    with pytest.raises(ValueError, match="impossible must be 'raise' or 'nan', got 'NaN'"):
        implied_vol(price, 1.0, strike, tau, impossible="NaN")


# premiums

@pytest.mark.parametrize("market, maturity, price", [
    (GBM(0.2), QUARTER, 3.89173361),
    (BUEHLER, 30 / 365, 1.69183393),
    (Jumps(GBM(0.2), intensity=1, mean=-0.05, sd=0.08), QUARTER, 4.23000799),
    (BATES, QUARTER, 5.66455649),
])
def test_premium_matches_reference(market, maturity, price):
    assert abs(100 * premium(market, EuropeanCall(), maturity) - price) < 1e-7


def test_heston_premium_matches_lewis_with_interest_in_the_forward():
    growth, discount = math.exp(0.01 - 0.02), math.exp(-0.01)
    market = Heston(v0=0.04, kappa=4, theta=0.25, xi=1, rho=-0.5)
    assert abs(100 * discount * growth * premium(market, EuropeanCall(1 / growth), 1.0) - 16.070154917028834) < 1e-10


def test_premium_agrees_with_black_scholes_at_any_fraction_of_a_day():
    for maturity in (0.3 / 252, 1 / 252, 59.5 / 252, QUARTER, 7.77):
        assert abs(premium(GBM(0.3), EuropeanCall(1.05), maturity) - black_scholes(1.0, 1.05, maturity, 0.3).item()) < 1e-13


def test_merton_series_matches_bates_engine_with_still_variance():
    for jumps in ((4, -0.06, 0.05), (30, 0.02, 0.1), (0.1, -0.5, 0.2)):
        still = Jumps(Heston(v0=0.04, kappa=1e-6, theta=0.04, xi=1e-4, rho=0.0), *jumps)
        for strike in (0.8, 1.0, 1.2):
            assert abs(premium(Jumps(GBM(0.2), *jumps), EuropeanCall(strike), 1.0) - premium(still, EuropeanCall(strike), 1.0)) < 1e-7


@pytest.mark.parametrize("limit, plain", [
    (Jumps(GBM(0.2), 0, -0.05, 0.1), GBM(0.2)),
    (Jumps(GBM(0.2), 5, 0.0, 0.0), GBM(0.2)),
    (Jumps(BUEHLER, 0, -0.05, 0.1), BUEHLER),
    (Jumps(BUEHLER, 5, 0.0, 0.0), BUEHLER),
    (SABR(0.2, 1, 0.0, 0.5), GBM(0.2)),
    (Heston(0.04, 1, 0.04, 1e-4, -0.5), GBM(0.2)),
])
def test_limits_of_the_models(limit, plain):
    tolerance = 2e-5 if isinstance(limit, SABR) else 1e-6
    for strike in (0.9, 1.0, 1.1):
        assert abs(premium(limit, EuropeanCall(strike), QUARTER) - premium(plain, EuropeanCall(strike), QUARTER)) < tolerance


@pytest.mark.parametrize("xi", [1e-2, 1e-4, 1e-6, 3e-7, 1e-8, 1e-10, 1e-14])
@pytest.mark.parametrize("kappa", [3, 1e-6])
def test_heston_goes_to_black_scholes_with_the_vol_of_variance(xi, kappa):
    "Where the variance stands still the price is Black-Scholes at its average; Bates goes to Merton."
    market = Heston(0.04, kappa, 0.05, xi, -0.7)
    average = GBM(math.sqrt(variance_swap_rate(market, QUARTER)))
    for strike in (0.9, 1.0, 1.1):
        call = EuropeanCall(strike)
        assert abs(premium(market, call, QUARTER) - premium(average, call, QUARTER)) < 0.02 * xi + 1e-8
        assert abs(heston_greeks(market, call, 1.0, QUARTER, 0.04)[0] - premium(average, call, QUARTER)) < 0.02 * xi + 1e-8
        jumps = premium(Jumps(market, 4, -0.06, 0.05), call, QUARTER), premium(Jumps(average, 4, -0.06, 0.05), call, QUARTER)
        assert abs(jumps[0] - jumps[1]) < 0.02 * xi + 1e-8


@pytest.mark.parametrize("market", [BUEHLER, Heston(0.04, 1e-6, 0.05, 1e-3, -0.7), Heston(0.04, 3, 0.05, 1e-5, -0.9), Heston(0.0, 12, 0.3, 2, 0.9)])
def test_bates_with_jumps_of_one_size_is_a_mixture_of_hestons(market):
    """Given their number the jumps only move the forward: the engine against our own integral."""
    jumps, count = Jumps(market, 4, -0.06, 0.0), torch.arange(40, dtype=torch.float64)
    expected = jumps.intensity * QUARTER
    forward = torch.exp(count * jumps.mean - expected * math.expm1(jumps.mean))
    weight = torch.exp(count * math.log(expected) - expected - torch.lgamma(count + 1))
    for strike in (0.8, 1.0, 1.2):
        mixture = weight @ heston_greeks(market, EuropeanCall(strike), forward, QUARTER, max(market.v0, 1e-12))[0]
        assert abs(premium(jumps, EuropeanCall(strike), QUARTER) - mixture) < 1e-7


@pytest.mark.parametrize("market", [
    Heston(0.0, 30, 1e-6, 0.05, 0.0), Heston(0.04, 1e-8, 0.04, 3, -0.99), Heston(1e-6, 3, 0.5, 10, 0.9), Heston(0.5, 0.1, 1e-6, 0.05, -0.999), Heston(0.04, 3, 0.04, 1e-7, 0.999)])
def test_heston_at_its_edges_has_a_price_of_a_call(market):
    for maturity in (1 / 252, QUARTER, 5.0):
        for strike in (0.5, 1.0, 1.3):
            price, integral = premium(market, EuropeanCall(strike), maturity), heston_greeks(market, EuropeanCall(strike), 1.0, maturity, max(market.v0, 1e-12))[0].item()
            assert max(1 - strike, 0) <= price <= 1 and abs(price - integral) < 5e-5


def test_a_price_that_is_none_is_not_given(monkeypatch):
    for wrong in (math.nan, 0.1, 1.5, -0.2):
        monkeypatch.setattr(pricing, "_gbm_premium", lambda *_: wrong)
        with pytest.raises(ValueError, match="the price of a call must lie between 0.2 and 1, got .* for a strike of 0.8 in GBM"):
            premium(GBM(0.2 + abs(wrong if wrong == wrong else 4)), EuropeanCall(0.8), QUARTER)
    def fails(*_):
        raise RuntimeError("max number of iterations reached")
    monkeypatch.setattr(pricing, "_engine_price", fails)
    with pytest.raises(ValueError, match="QuantLib finds no price of a call struck at 0.8 in Jumps.* got 'max number of iterations reached'; price it by Monte Carlo"):
        premium(Jumps(Heston(0.04, 3, 0.04, 0.21, -0.7), 1, 0.0, 0.1), EuropeanCall(0.8), QUARTER)


def test_zero_variance_today_has_a_premium():
    assert 0 < premium(Heston(0.0, 1, 0.04, 0.5, -0.5), EuropeanCall(), QUARTER) < premium(Heston(0.01, 1, 0.04, 0.5, -0.5), EuropeanCall(), QUARTER)


@pytest.mark.parametrize("market", [SABR_CALM, SABR_CRISIS])
def test_sabr_premium_agrees_with_conditional_monte_carlo(market):
    steps, strike, values = 120, doubles(0.8, 0.9, 1.0, 1.1, 1.25), []
    for seed in range(8):
        noise = torch.randn(10_000, steps, generator=generator(seed), dtype=torch.float64)
        noise = torch.cat([noise, -noise]).cumsum(-1) * math.sqrt(QUARTER / steps)
        vol = market.alpha * torch.exp(market.nu * noise - market.nu**2 / 2 * torch.arange(1, steps + 1) * QUARTER / steps)
        vol = torch.cat([torch.full((20_000, 1), market.alpha), vol], dim=-1)
        total = torch.trapezoid(vol**2, dx=QUARTER / steps)
        forward = torch.exp(market.rho / market.nu * (vol[:, -1] - market.alpha) - market.rho**2 / 2 * total)
        value = black_scholes(forward[:, None], strike, 1.0, ((1 - market.rho**2) * total).sqrt()[:, None]).view(2, -1, 5).mean(0)
        control = forward.view(2, -1).mean(0)[:, None] - 1  # the spot itself, whose mean is known
        values.append(value - control * (value * control).mean(0) / (control**2).mean())
    value = torch.cat(values)
    price = doubles(*(premium(market, EuropeanCall(k), QUARTER) for k in strike.tolist()))
    assert ((price - value.mean(0)).abs() < 2e-5 + 3 * value.std(0) / math.sqrt(len(value))).all()
    assert 1e4 * (3 * value.std(0) / math.sqrt(len(value))).max() < 1.2  # the check has the power to see a basis point


def test_sabr_environments_keep_the_price_of_quantlibs_engine():
    "To the last bit: results in print were sold at these."
    assert premium(SABR_CALM, EuropeanCall(), QUARTER) == 0.03523902020055137 and premium(SABR_CRISIS, EuropeanCall(), QUARTER) == 0.10751789010140325


def mixed(market, strike, maturity, n_steps=128, n_paths=2**14):
    "Lognormal SABR by mixing Black's formula over vol paths, from scrambled Sobol points along Brownian bridges (Romano & Touzi 1997)."
    normal = ndtri(qmc.Sobol(n_steps, seed=0).random(n_paths).clip(1e-15, 1 - 1e-15))
    noise, column, gap = np.zeros((n_paths, n_steps + 1)), 1, n_steps
    noise[:, -1] = math.sqrt(maturity) * normal[:, 0]
    while gap > 1:
        half = gap // 2
        for start in range(0, n_steps, gap):
            middle = (noise[:, start] + noise[:, start + gap]) / 2
            noise[:, start + half] = middle + math.sqrt(maturity * gap / n_steps) / 2 * normal[:, column]
            column += 1
        gap = half
    vol = market.alpha * np.exp(market.nu * noise - market.nu**2 * np.linspace(0, maturity, n_steps + 1) / 2)
    total = np.trapezoid(vol**2, dx=maturity / n_steps, axis=1)
    forward = np.exp(market.rho / market.nu * (vol[:, -1] - market.alpha) - market.rho**2 * total / 2)
    left = np.sqrt((1 - market.rho**2) * total)
    d1 = np.log(np.maximum(forward, 1e-300) / strike) / left + left / 2
    put = strike * ndtr(left - d1) - forward * ndtr(-d1)  # bounded, so that parity holds the call
    return put.mean() + 1 - strike


@pytest.mark.parametrize("alpha, nu, rho, maturity, slack", [
    (0.1, 0.2, -0.7, 20 / 252, 1e-5), (0.18, 0.7, -0.3, QUARTER, 1e-5), (0.55, 1.5, -0.4, QUARTER, 1e-5), (0.3, 1.5, 0.3, QUARTER, 1e-5), (0.55, 0.7, 0.0, 1.0, 3e-5),
    (0.3, 1.5, -0.7, 2.0, 1e-4), (0.18, 2.0, 0.0, 1.0, 1e-4), (0.3, 0.7, 0.3, 1.0, 3e-5),
])
def test_lognormal_sabr_is_right_within_a_basis_point(alpha, nu, rho, maturity, slack):
    market = SABR(alpha, 1, nu, rho)
    for strike in (0.8, 1.0, 1.2):
        assert abs(premium(market, EuropeanCall(strike), maturity) - mixed(market, strike, maturity)) < 3e-5 + slack, strike


def test_sabr_whose_vol_is_shaken_by_400_per_cent():
    """The ready engine says .0503; the price is that of the mixing formula, which 1,024 steps bring to .0416."""
    assert abs(premium(SABR(0.18, 1.0, 4.0, -0.9), EuropeanCall(), 1.0) - 0.0416) < 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("alpha, strike, maturity", [(0.2, 0.9, QUARTER), (0.2, 1.2, 1.0), (0.55, 1.0, QUARTER), (0.55, 1.2, 1.0)])
def test_sabr_with_still_vol_is_cev(alpha, beta, strike, maturity):
    curve = ql.YieldTermStructureHandle(ql.FlatForward(ql.Settings.instance().evaluationDate, 0.0, ql.Actual365Fixed()))
    if beta:
        exact = pricing._engine_price(lambda *_: ql.AnalyticCEVEngine(1.0, alpha * math.sqrt(maturity), beta, curve), strike)
    else:  # Bachelier's price, less what is reflected where the price is absorbed at zero
        sd = alpha * math.sqrt(maturity)
        exact = ql.bachelierBlackFormula(ql.Option.Call, strike, 1.0, sd) - ql.bachelierBlackFormula(ql.Option.Call, strike, -1.0, sd)
    assert abs(premium(SABR(alpha, beta, 0.0, -0.5), EuropeanCall(strike), maturity) - exact) < 5e-5


@pytest.mark.parametrize("market, maturity", [(SABR(0.55, 0.5, 1.5, -0.4), QUARTER), (SABR(0.3, 0.9, 1.5, 0.0), 1.0), (SABR(0.18, 0.25, 0.7, 0.3), 2.0), (SABR(0.3, 0.0, 1.5, -0.4), QUARTER)])
def test_sabr_with_an_absorbed_price_is_the_mean_payoff(market, maturity, n_steps=120, n_paths=40_000):
    """Euler's steps in the price itself, absorbed at zero, antithetic, with the spot as control; sets among which QuantLib's engine breaks down or is 7 bp off."""
    rng, dt = np.random.default_rng(0), maturity / n_steps
    spot, noise = np.ones(n_paths), np.zeros(n_paths)
    for i in range(n_steps):
        half = rng.standard_normal((2, n_paths // 2)) * math.sqrt(dt)
        shock, other = np.concatenate([half, -half], axis=1)
        vol = market.alpha * np.exp(market.nu * noise - market.nu**2 * i * dt / 2)
        drive = market.rho * shock + math.sqrt(1 - market.rho**2) * other
        spot = np.where(spot > 0, np.maximum(spot + vol * np.maximum(spot, 0) ** market.beta * drive, 0), 0)
        noise = noise + shock
    for strike in (0.8, 1.0, 1.2):
        put, held = (x.reshape(2, -1).mean(0) for x in (np.maximum(strike - spot, 0), spot - 1))
        put = put - held * np.cov(put, held)[0, 1] / held.var()
        assert abs(premium(market, EuropeanCall(strike), maturity) - (put.mean() + 1 - strike)) < 1e-4 + 3 * put.std() / math.sqrt(len(put)), strike


def test_sabr_is_never_below_intrinsic_value_nor_guessed():
    for alpha, beta, nu, rho, strike, maturity in ((0.02, 0.5, 1.0, -0.7, 0.9, 1 / 252), (0.1, 1.0, 0.2, -0.7, 0.8, 20 / 252), (0.3, 0.3, 2.0, -0.7, 2.0, 20 / 252),
                                                   (0.55, 0.5, 1.5, -0.7, 1.2, 20 / 252), (0.02, 1.0, 4.0, 0.6, 0.5, 20 / 252)):
        price = premium(SABR(alpha, beta, nu, rho), EuropeanCall(strike), maturity)
        assert max(1 - strike, 0) <= price < 1
    with pytest.raises(ValueError, match="no grid settles the price of a call struck at 1 in SABR.* got .*; price it by Monte Carlo"):
        premium(SABR(1.0, 0.0, 1.0, 0.6), EuropeanCall(), 5.0)


@pytest.mark.parametrize("alpha, beta, nu, rho, days, simulated, error", [
    (0.1, 0.5, 0.3, -0.7, 20, 0.01119, 3e-5), (0.6, 0.5, 1.5, 0.2, 250, 0.24858, 2e-3), (0.3, 0.75, 0.9, -0.2, 60, 0.05883, 2e-4),
    (0.3, 1.0, 1.5, -0.7, 60, 0.05765, 2e-4), (0.6, 1.0, 1.5, -0.7, 20, 0.06653, 2e-4)])
def test_ordinary_sabr_sets_have_the_price_of_80_000_paths(alpha, beta, nu, rho, days, simulated, error):
    """Sampled from 168 sets; simulated by the market itself on steps of a day or less, with the spot as control."""
    price = premium(SABR(alpha, beta, nu, rho), EuropeanCall(), days / 252)
    assert abs(price - simulated) < 3 * error and 0 < price < 1


def test_sabr_prices_fall_and_bend_with_the_strike():
    """No arbitrage across strikes, on either side of the engine's agreement: slopes between -1 and 0, and rising."""
    strikes = np.linspace(0.7, 1.4, 8)
    for market in (SABR(0.55, 0.5, 1.5, -0.4), SABR(0.3, 1, 1.5, -0.4)):
        prices = np.array([premium(market, EuropeanCall(float(k)), QUARTER) for k in strikes])
        slopes = np.diff(prices) / np.diff(strikes)
        assert (slopes > -1 - 1e-3).all() and (slopes < 1e-3).all() and (np.diff(slopes) > -1e-3).all()


def test_hagan_overprices_the_sabr_crisis():
    hagan = lambda m: black_scholes(1.0, 1.0, QUARTER, ql.sabrVolatility(1.0, 1.0, QUARTER, m.alpha, 1.0, m.nu, m.rho)).item()
    error = lambda m: 1e4 * (hagan(m) - premium(m, EuropeanCall(), QUARTER))
    assert abs(error(SABR_CALM)) < 0.2 and 6.5 < error(SABR_CRISIS) < 8.5  # why premiums use the grid


@pytest.mark.parametrize("market", [GBM(0.55), Heston(0.3025, 12, 0.3025, 2, -0.7), SABR_CRISIS, Jumps(GBM(0.18), 4, -0.06, 0.05), BATES])
def test_premium_is_the_mean_payoff(market):
    spot = market.simulate(50_000, 60, 1 / 252, generator(), dtype=torch.float64).spot[0, :, -1]
    for strike in (0.9, 1.0, 1.1):
        payoff = EuropeanCall(strike).payoff(spot)
        assert abs(payoff.mean() - premium(market, EuropeanCall(strike), QUARTER)) < 4 * payoff.std() / math.sqrt(50_000)


def test_premium_is_cached():
    market, before = GBM(0.123456), pricing._model_premium.cache_info().hits
    assert premium(market, EuropeanCall(), QUARTER) is premium(GBM(0.123456), EuropeanCall(1.0), QUARTER)
    assert pricing._model_premium.cache_info().hits == before + 1


def test_windows_premium_is_black_scholes_at_each_windows_own_quote():
    iv = torch.tensor([[0.1, 0.4]])[..., None].expand(1, 2, 61)
    paths = Paths(spot=torch.ones(1, 2, 61), variance=iv**2, iv=iv, past=torch.zeros(1, 2, 20), dt=1 / 252)
    paid = premium(Windows(), EuropeanCall(), QUARTER, paths)
    assert paid.dtype == torch.float32
    torch.testing.assert_close(paid, black_scholes(1.0, 1.0, QUARTER, torch.tensor([[0.1, 0.4]])))
    with pytest.raises(ValueError, match="got paths=None; pass the Paths"):
        premium(Windows(), EuropeanCall(), QUARTER)


@pytest.mark.parametrize("maturity", [0, -1.0, math.nan, math.inf])
def test_bad_maturity_is_refused(maturity):
    for ask in (lambda: premium(GBM(0.2), EuropeanCall(), maturity), lambda: variance_swap_rate(GBM(0.2), maturity)):
        with pytest.raises(ValueError, match="maturity must be positive and finite, got .*; 60 trading days"):
            ask()


@pytest.mark.parametrize("market, quoted", [
    (Momentum(BUEHLER, 0.3), BUEHLER), (Momentum(Momentum(BUEHLER, 0.3), -0.1), BUEHLER), (Jumps(Momentum(GBM(0.2), 0.3), 1, -0.05, 0.08), Jumps(GBM(0.2), 1, -0.05, 0.08)),
    (Momentum(BATES, 0.3), BATES), (Momentum(Jumps(Momentum(GBM(0.2), 0.1), 1, -0.05, 0.08), 0.2), Jumps(GBM(0.2), 1, -0.05, 0.08)), (Momentum(SABR_CALM, 0.3), SABR_CALM)])
def test_momentum_is_not_noticed_however_deep_it_sits(market, quoted):
    assert premium(market, EuropeanCall(), QUARTER) == premium(quoted, EuropeanCall(), QUARTER)
    assert variance_swap_rate(market, QUARTER) == variance_swap_rate(quoted, QUARTER)


def test_history_has_no_rate_of_its_own():
    with pytest.raises(TypeError, match="market must be .*; recorded windows carry"):
        variance_swap_rate(Windows(), QUARTER)


# the variance swap

def test_variance_swap_rates_in_closed_form():
    heston = Heston(v0=0.01, kappa=3, theta=0.09, xi=0.3, rho=-0.7)
    pull = 3 * QUARTER
    expected = 0.09 + (0.01 - 0.09) * (1 - math.exp(-pull)) / pull  # Buehler et al. 2019, section 5
    assert abs(variance_swap_rate(heston, QUARTER) - expected) < 1e-14
    assert abs(variance_swap_rate(Jumps(heston, 4, -0.06, 0.05), QUARTER) - expected - 4 * (0.06**2 + 0.05**2)) < 1e-14
    assert abs(variance_swap_rate(GBM(0.2), QUARTER) - 0.04) < 1e-15
    growth = 0.7**2 * QUARTER
    assert abs(variance_swap_rate(SABR_CALM, QUARTER) - 0.18**2 * math.expm1(growth) / growth) < 1e-14


@pytest.mark.parametrize("market", [GBM(0.2), Heston(v0=0.01, kappa=3, theta=0.09, xi=0.3, rho=-0.7), BUEHLER])
def test_strip_of_options_replicates_the_swap(market):
    log_strike = torch.linspace(-1.5, 1.0, 501, dtype=torch.float64)
    calls = doubles(*(premium(market, EuropeanCall(k), QUARTER) for k in log_strike.exp().tolist()))
    time_value = calls - (1 - log_strike.exp()).clamp(min=0)
    strip = 2 / QUARTER * torch.trapezoid(time_value / log_strike.exp(), log_strike).item()
    assert abs(strip / variance_swap_rate(market, QUARTER) - 1) < 2e-3


@pytest.mark.parametrize("market", [Heston(v0=0.01, kappa=3, theta=0.09, xi=0.3, rho=-0.7), Heston(0.3025, 12, 0.3025, 2, -0.7), BATES])
def test_variance_swap_is_a_martingale(market):
    swap = market.simulate(20_000, 60, 1 / 252, generator(1), dtype=torch.float64).variance_swap()[0]
    assert abs(swap[0, 0].item() - variance_swap_rate(market, QUARTER) * QUARTER) < 1e-12
    for day in (1, 20, 40, 60):
        gain = swap[:, day] - swap[:, 0]
        assert abs(gain.mean()) < 4 * gain.std() / math.sqrt(20_000)
    # a martingale's later gain is uncorrelated with what is known: here with the swap's own price
    known, gain = swap[:, 20] - swap[:, 20].mean(), swap[:, 60] - swap[:, 20]
    assert abs((known * gain).mean()) < 4 * (known * gain).std() / math.sqrt(20_000)


# Heston's own Greeks

HESTONS = [BUEHLER, BATES.base, Heston(v0=0.0064, kappa=3, theta=0.0064, xi=0.1, rho=-0.7), Heston(v0=0.3025, kappa=12, theta=0.3025, xi=2, rho=-0.7)]


@pytest.mark.parametrize("market", HESTONS)
@pytest.mark.parametrize("maturity", [1 / 365, 30 / 365, QUARTER, 1.0])
def test_heston_price_is_quantlibs(market, maturity):
    for strike in (0.8, 0.95, 1.0, 1.05, 1.3):
        price, _, _ = heston_greeks(market, EuropeanCall(strike), 1.0, maturity, market.v0)
        assert abs(price.item() - premium(market, EuropeanCall(strike), maturity)) < 1e-8


@pytest.mark.parametrize("market", HESTONS)
def test_heston_greeks_equal_finite_differences(market):
    spot, variance = doubles(0.9, 1.0, 1.1)[:, None], market.v0 * doubles(0.2, 1.0, 3.0)
    for tau in (5 / 365, QUARTER):
        greeks = lambda s, v: heston_greeks(market, EuropeanCall(), s, tau, v)
        move, nudge = 1e-5, 1e-4 * variance
        in_spot = (greeks(spot + move, variance)[0] - greeks(spot - move, variance)[0]) / (2 * move)
        in_variance = (greeks(spot, variance + nudge)[0] - greeks(spot, variance - nudge)[0]) / (2 * nudge)
        _, delta_, vega_ = greeks(spot, variance)
        torch.testing.assert_close(delta_, in_spot, atol=2e-6, rtol=1e-6)
        torch.testing.assert_close(vega_, in_variance, atol=2e-6, rtol=1e-5)


def test_heston_greeks_refuse_an_expired_call():
    with pytest.raises(ValueError, match="tau must be positive, got 0; at expiry use its payoff"):
        heston_greeks(BUEHLER, EuropeanCall(), 1.0, torch.tensor([0.1, 0.0]), 0.04)


@BOTH
@pytest.mark.parametrize("market, days", [(BUEHLER, 365), (HESTONS[2], 252), (Heston(v0=0.3025, kappa=3, theta=0.3025, xi=0.66, rho=-0.7), 252)])
def test_tables_hold_the_model_hedge(market, days, dtype):
    """Near expiry and zero variance the number of swaps is thousands, so it is compared by what it moves: times the swap's standard deviation."""
    paths = market.simulate(8, 30, 1 / days, generator(), dtype=dtype)
    shares, swaps = pricing.model_hedge(market, EuropeanCall(), paths)
    assert shares.dtype == dtype and shares.shape == swaps.shape == paths.spot[..., :-1].shape
    spot, variance, tau = (x[..., :-1].double() for x in (paths.spot, paths.variance, paths.tau))
    _, exact, in_variance = heston_greeks(market, EuropeanCall(), spot, tau, variance)
    total, reach = market.expected_variance(variance, tau) * tau, -torch.expm1(-market.kappa * tau) / market.kappa
    assert (shares - exact).abs().max() < 1e-3 and ((swaps - in_variance / reach) * total.sqrt()).abs().max() < 1e-3


def test_a_price_that_never_moves_asks_for_no_swaps():
    paths = GBM(0.0).simulate(5, 10, 1 / 252, generator(), dtype=torch.float64)
    shares, swaps = pricing.model_hedge(None, EuropeanCall(), paths)
    assert (shares == 0.5).all() and (swaps == 0).all()  # at the kink: half a share, and no variance to be insured


def test_heston_greeks_refuse_a_negative_variance():
    with pytest.raises(ValueError, match="variance must not be negative, got -0.04"):
        heston_greeks(BUEHLER, EuropeanCall(), 1.0, 0.1, -0.04)


def test_model_hedge_of_other_markets_is_by_the_quote():
    paths = BATES.simulate(5, 10, 1 / 252, generator(), dtype=torch.float64)
    shares, swaps = pricing.model_hedge(BATES, EuropeanCall(), paths)
    spot, tau, iv = paths.spot[..., :-1], paths.tau[:-1], paths.iv[..., :-1]
    torch.testing.assert_close(shares, delta(spot, 1.0, tau, iv))
    torch.testing.assert_close(swaps * 2 * iv * tau, vega(spot, 1.0, tau, iv))
