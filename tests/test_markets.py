"Markets against closed forms. HIRM_PATHS=1000000 asks for more paths than the default, which suits every push."
import functools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import QuantLib as ql
import torch
from scipy.stats import norm

from hirm.markets import BLOCK, GBM, SABR, Heston, Jumps, Market, Momentum, Paths, concat, normals, stack

N_PATHS = int(os.environ.get("HIRM_PATHS", 200_000))
DAY = 1 / 252
LOW, MEDIUM, CRISIS = (Heston(vol**2, 3, vol**2, xi, -0.7) for vol, xi in ((0.08, 0.10), (0.18, 0.22), (0.55, 0.66)))
BROKEN = Heston(0.3025, 12, 0.3025, 2, -0.7)
ROUGH = Heston(0.04, 0.5, 0.04, 1, -0.9) # 2 kappa theta is a twenty-fifth of xi²: the variance sits at zero
FALLS = dict(intensity=4, mean=-0.06, sd=0.05)
MARKETS = {
    "gbm": GBM(0.2), "low": LOW, "medium": MEDIUM, "high": Heston(0.1024, 3, 0.1024, 0.38, -0.7), "crisis": CRISIS,
    "crisis_jumps": Jumps(CRISIS, **FALLS), "crisis_broken": Jumps(BROKEN, **FALLS), "merton": Jumps(GBM(0.2), 20, -0.03, 0.04),
    "sabr_calm": SABR(0.18, 1, 0.7, -0.3), "sabr_crisis": SABR(0.55, 1, 1.5, -0.4), "cev": SABR(0.3, 0.5, 0.7, -0.3),
    "rough": ROUGH, "rough, rho > 0": replace(ROUGH, rho=0.9), "far from theta": Heston(0.5, 2, 0.04, 0.8, -0.5),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def standard_errors(sample, reference):
    "Distance of the sample's mean from the reference, in its standard errors."
    return ((sample.double().mean() - reference) / (sample.double().std() / math.sqrt(len(sample)))).item()


def last_spot(market, n_paths, n_steps, dt, seed=0, dtype=torch.float32):
    return torch.cat([p.spot[0, :, -1] for p in market.stream(n_paths, n_steps, dt, seeded(seed), n_past=0, dtype=dtype)])


# prices

def ql_price(market, strike, days):
    "Undiscounted call price in QuantLib's own words, S_0 = 1."
    today = ql.Date(1, 1, 2024)
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    spot = ql.QuoteHandle(ql.SimpleQuote(1.0))
    option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call, strike), ql.EuropeanExercise(today + days))
    match market:
        case GBM(vol):
            return ql.blackFormula(ql.Option.Call, strike, 1.0, vol * math.sqrt(days / 365))
        case Jumps(GBM(vol), intensity, mean, sd):
            years, lift = days / 365, math.exp(mean + sd**2 / 2)
            def given(n):
                forward = math.exp(-intensity * (lift - 1) * years) * lift**n
                weight = math.exp(n * math.log(intensity * years) - intensity * years - math.lgamma(n + 1))
                return weight * ql.blackFormula(ql.Option.Call, strike, forward, math.sqrt(vol**2 * years + n * sd**2))
            return sum(given(n) for n in range(150))
        case Heston(v0, kappa, theta, xi, rho):
            model = ql.HestonModel(ql.HestonProcess(flat, flat, spot, v0, kappa, theta, xi, rho))
            engine = ql.AnalyticHestonEngine(model, 1e-10, 100_000)
        case Jumps(Heston(v0, kappa, theta, xi, rho), intensity, mean, sd):
            process = ql.BatesProcess(flat, flat, spot, v0, kappa, theta, xi, rho, intensity, mean, sd)
            engine = ql.BatesEngine(ql.BatesModel(process), 1e-10, 100_000)
        case SABR(alpha, beta, nu, _) if nu == 0 and beta < 1:
            engine = ql.AnalyticCEVEngine(1.0, alpha, beta, flat)
        case SABR(alpha, 1, nu, rho):
            return mixed_price(alpha, nu, rho, strike, days / 365)
        case SABR(alpha, beta, nu, rho):
            engine = ql.FdSabrVanillaEngine(1.0, alpha, beta, nu, rho, flat, 50, 300, 60)
    option.setPricingEngine(engine)
    return option.NPV()


@functools.cache
def mixture(alpha, nu, rho, years, n_steps=240, n_paths=200_000):
    "Forward and standard deviation of the lognormal SABR spot given each of many fine vol paths, antithetic (Romano & Touzi 1997)."
    rng, dt = np.random.default_rng(1), years / n_steps
    noise, square = np.zeros(n_paths), -alpha**2 / 2
    for i in range(n_steps):
        square = square + (vol := alpha * np.exp(nu * noise - nu**2 * i * dt / 2))**2
        draw = rng.standard_normal(n_paths // 2) * math.sqrt(dt)
        noise = noise + np.concatenate([draw, -draw])
    vol = alpha * np.exp(nu * noise - nu**2 * years / 2)
    total = (square + vol**2 / 2) * dt
    pull = rho / nu * (vol - alpha) if nu else rho * alpha * noise
    return np.exp(pull - rho**2 * total / 2), np.sqrt((1 - rho**2) * total)


def mixed_price(alpha, nu, rho, strike, years):
    "Lognormal SABR by mixing Black's formula."
    forward, sd = mixture(alpha, nu, rho, years)
    upper = np.log(forward / strike) / sd + sd / 2
    return float(np.mean(forward * norm.cdf(upper) - strike * norm.cdf(upper - sd)))


# name: market, calendar days, dates of the simulation, strikes
PRICED = {
    "Black-Scholes": (GBM(0.2), 87, 60, (0.9, 1, 1.1)),
    "Black-Scholes, 10 years": (GBM(0.55), 3650, 4, (0.5, 1, 2)),
    "low": (LOW, 87, 60, (0.95, 1, 1.05)),
    "medium": (MEDIUM, 87, 60, (0.9, 1, 1.1)),
    "crisis": (CRISIS, 87, 60, (0.8, 1, 1.2)),
    "crisis_broken without jumps": (BROKEN, 87, 60, (0.8, 1, 1.2)),
    "Lewis": (Heston(0.04, 4, 0.25, 1, -0.5), 365, 252, (0.8, 1, 1.2)),
    "Buehler et al.": (Heston(0.04, 1, 0.04, 2, -0.7), 30, 30, (0.95, 1, 1.05)),
    "Andersen I, 10 years": (ROUGH, 3650, 320, (0.6, 1, 1.4)),
    "Andersen III, 5 years": (Heston(0.09, 1, 0.09, 1, -0.3), 1825, 160, (0.6, 1, 1.4)),
    "rho > 0": (Heston(0.04, 1, 0.09, 1, 0.5), 365, 126, (0.8, 1, 1.2)),
    "Merton": (Jumps(GBM(0.2), 1, -0.05, 0.08), 87, 60, (0.9, 1, 1.1)),
    "Merton, 20 jumps": (Jumps(GBM(0.2), 20, -0.03, 0.04), 365, 12, (0.8, 1, 1.2)),
    "Bates": (Jumps(Heston(0.08, 2.5, 0.09, 0.6, -0.7), 1, -0.05, 0.08), 87, 60, (0.9, 1, 1.1)),
    "crisis_jumps": (Jumps(CRISIS, **FALLS), 87, 60, (0.8, 1, 1.2)),
    "Bates, 8 jumps in 2 years": (Jumps(MEDIUM, **FALLS), 730, 200, (0.7, 1, 1.3)),
    "sabr_calm": (SABR(0.18, 1, 0.7, -0.3), 87, 60, (0.9, 1, 1.1)),
    "sabr_crisis": (SABR(0.55, 1, 1.5, -0.4), 87, 60, (0.8, 1, 1.2)),
    "sabr_crisis, 12 long steps": (SABR(0.55, 1, 1.5, -0.4), 365, 12, (0.8, 1, 1.2)),
    "SABR, nu = 0": (SABR(0.2, 1, 0, -0.3), 87, 60, (0.9, 1, 1.1)),
    "CEV, beta = 0.5": (SABR(0.3, 0.5, 0, 0), 365, 100, (0.8, 1, 1.2)),
    "SABR, beta = 0.5": (SABR(0.3, 0.5, 0.7, -0.3), 87, 60, (0.9, 1, 1.1)),
}


@pytest.mark.parametrize("name", PRICED)
def test_call_prices_match_the_closed_form(name):
    """Within 3 standard errors at each strike. A new seed would fail one of these 66 now and then: the seed is fixed, and was not searched for."""
    market, days, n_steps, strikes = PRICED[name]
    dtype = torch.float64 if n_steps <= 60 else torch.float32 # the long ones in float32, for time
    spot = last_spot(market, N_PATHS, n_steps, days / 365 / n_steps, dtype=dtype)
    apart = {strike: standard_errors((spot - strike).clamp_min(0), ql_price(market, strike, days)) for strike in strikes}
    assert all(abs(z) < 3 for z in apart.values()), apart


def test_printed_reference_prices():
    "Numbers from the literature, and recomputed ones, at spot = strike = 100."
    lewis = 100 * math.exp(-0.02) * ql_price(Heston(0.04, 4, 0.25, 1, -0.5), math.exp(0.02 - 0.01), 365) # rate 1 %, dividend 2 %
    assert lewis == pytest.approx(16.070154917028834, abs=1e-6)
    for market, maturity, n_steps, price in (
        (Heston(0.04, 1, 0.04, 2, -0.7), 30 / 365, 30, 1.69183393), # Buehler et al. 2019 print 1.69
        (Jumps(GBM(0.2), 1, -0.05, 0.08), 60 / 252, 60, 4.23000799),
        (Jumps(Heston(0.08, 2.5, 0.09, 0.6, -0.7), 1, -0.05, 0.08), 60 / 252, 60, 5.66455649),
    ):
        spot = 100 * last_spot(market, N_PATHS, n_steps, maturity / n_steps, seed=1)
        assert abs(standard_errors((spot - 100).clamp_min(0), price)) < 3, market


def test_sabr_agrees_loosely_with_hagan():
    for alpha, nu, rho in ((0.18, 0.7, -0.3), (0.55, 1.5, -0.4)):
        spot = last_spot(SABR(alpha, 1, nu, rho), N_PATHS, 60, DAY).double()
        for strike in (0.9, 1, 1.1):
            hagan = ql.sabrVolatility(strike, 1.0, 60 * DAY, alpha, 1.0, nu, rho)
            price = (spot - strike).clamp_min(0).mean().item()
            assert price == pytest.approx(ql.blackFormula(ql.Option.Call, strike, 1.0, hagan * math.sqrt(60 * DAY)), rel=0.03)


# the law of the paths

@pytest.mark.parametrize("name", MARKETS)
def test_price_is_a_martingale(name):
    assert abs(standard_errors(last_spot(MARKETS[name], N_PATHS, 60, DAY), 1)) < 3


@pytest.mark.parametrize("market", (CRISIS, BROKEN, ROUGH, replace(ROUGH, rho=0.5), Heston(0.09, 1, 0.09, 1, -0.9)))
def test_heston_is_a_martingale_at_long_steps(market):
    "The correction holds on the grid, not only in the limit: half-yearly steps, where the plain drift is off by many standard errors."
    assert abs(standard_errors(last_spot(market, N_PATHS, 4, 0.5, dtype=torch.float64), 1)) < 3


def page_cell(text):
    "What the page's cell that holds `text` defines."
    page = json.loads((Path(__file__).parents[1] / "nbs" / "01_markets.ipynb").read_text())
    (source,) = [source for source in map("".join, (cell["source"] for cell in page["cells"])) if text in source]
    names = {"math": math, "torch": torch}
    exec(source, names)
    return names


@pytest.mark.parametrize("market, dt", [
    (LOW, DAY), (MEDIUM, DAY), (CRISIS, DAY), (BROKEN, DAY), (ROUGH, DAY), (replace(ROUGH, rho=0.9), DAY), (Heston(0.5, 2, 0.04, 0.8, -0.5), DAY),
    (Heston(0.0, 3, 0.04, 0.5, 0.5), 1 / 52), (Heston(0.04, 3, 0.04, 1e-3, -0.7), DAY), (ROUGH, 0.5), (Heston(10, 40, 10, 21, 0.99), 1.0),
])
def test_fast_heston_is_andersens_scheme_path_by_path(market, dt):
    "Both branches, the atom at zero, and the plain drift where the correction does not exist: only rounding lies between the page's plain version and ours."
    fast = market.simulate(1024, 60, dt, seeded(0), n_past=0, dtype=torch.float64)
    variance, log_spot = page_cell("def andersen(")["andersen"](market, dt, *normals((2, 60, 1024), seeded(0), torch.float64)[0])
    torch.testing.assert_close(fast.variance[0], variance, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fast.spot[0].log(), log_spot, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("kappa", (3, 1e-3, 1e-12))
def test_variance_may_stand_nearly_still(dtype, kappa):
    """With xi going to zero Heston goes to Black-Scholes: the same draws lead to the same prices, and no digit of the mean is lost on the way."""
    prices = lambda xi: Heston(0.04, kappa, 0.04, xi, -0.7).simulate(5000, 60, DAY, seeded(0), dtype=dtype).spot[0].double()
    still = prices(1e-300)
    assert abs(standard_errors(still[:, -1], 1)) < 3
    assert still.log().diff().std().item() / DAY**0.5 == pytest.approx(0.2, rel=0.01)
    for xi in (1e-2, 1e-4, 1e-6, 1e-8, 1e-12):
        apart = (prices(xi) - still)[:, -1]
        assert abs(apart.mean()) < 0.01 * xi + 1e-6 and apart.std() < 0.2 * xi + 1e-6, xi


@pytest.mark.parametrize("nu", (1e-6, 1e-20, 1e-50, 0.0))
def test_vol_may_stand_nearly_still(nu):
    returns = SABR(0.2, 1, nu, -0.7).simulate(5000, 60, DAY, seeded(0)).spot[0].log().diff()
    assert returns.std().item() / DAY**0.5 == pytest.approx(0.2, rel=0.01)


def test_a_market_of_your_own_is_asked_for_its_two_formulas():
    class Still(Market):
        def expected_variance(self, variance, tau): return variance
    with pytest.raises(NotImplementedError, match="Still has no log_returns; GBM shows"):
        Still().simulate(8, 3, DAY, seeded(0))
    with pytest.raises(NotImplementedError, match="Market has no expected_variance"):
        Market().expected_variance(torch.ones(1), 1.0)


def test_correction_falls_back_where_its_expectation_does_not_exist():
    "Yearly steps, rho near 1, fast reversion: E[exp(A v)] is infinite, its formula is not a number, and the plain drift stands in."
    for market in (Heston(10, 40, 10, 21, 0.99), Heston(0.1, 40, 0.1, 21, 0.99)):
        paths = market.simulate(5000, 2, 1.0, seeded(0), dtype=torch.float64)
        assert all(torch.isfinite(x).all() for x in (paths.spot, paths.variance, paths.iv, paths.past))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", MARKETS)
def test_paths_are_finite_and_variance_is_never_negative(name, dtype):
    paths = MARKETS[name].simulate(5000, 60, DAY, seeded(3), dtype=dtype)
    assert all(torch.isfinite(x).all() and x.dtype == dtype for x in (paths.spot, paths.variance, paths.iv, paths.past))
    assert (paths.spot > 0).all() and (paths.variance >= 0).all() and (paths.spot[..., 0] == 1).all()
    assert torch.isfinite(paths.realized_vol()).all()


@pytest.mark.parametrize("name", ("low", "crisis_broken", "far from theta", "rough", "merton", "sabr_crisis"))
def test_implied_variance_is_what_the_paths_realise(name):
    "The variance swap's price is a martingale, so that iv is a fair quote at every date; on the last it is the variance realised."
    paths = MARKETS[name].simulate(40_000, 60, DAY, seeded(4), dtype=torch.float64)
    swap = paths.variance_swap()[0]
    for date in (20, 40, 60):
        assert abs(standard_errors(swap[:, date], swap[0, 0].item())) < 3.5
    returns = paths.spot[0].log().diff()
    assert returns.square().sum(-1).mean().item() == pytest.approx(swap[0, 0].item(), rel=0.04)
    known = MARKETS[name].expected_variance(paths.variance[0, 0, 0], 20 * DAY).item() # the past is a run of the same market
    assert paths.past[0].square().mean().item() / DAY == pytest.approx(known, rel=0.04)


def test_expected_variance_at_its_limits():
    now = torch.tensor([0.02, 0.3], dtype=torch.float64)
    for market, far in ((MEDIUM, 0.18**2), (Jumps(MEDIUM, **FALLS), 0.18**2 + 4 * (0.06**2 + 0.05**2))):
        extra = far - 0.18**2
        torch.testing.assert_close(market.expected_variance(now, 0.0), now + extra)
        torch.testing.assert_close(market.expected_variance(now, 1e-9), now + extra)
        torch.testing.assert_close(market.expected_variance(now, 1e9), torch.full_like(now, far))
    torch.testing.assert_close(SABR(0.2, 1, 0, 0).expected_variance(now, 2.0), now)
    assert GBM(0.2).expected_variance(now[:, None], torch.tensor([0.1, 0.0])).shape == (2, 2)


def test_jumps_bring_their_variance_and_their_number():
    jumps = Jumps(GBM(0.0), 20, -0.06, 0.05)
    paths = jumps.simulate(50_000, 12, 1 / 12, seeded(5), dtype=torch.float64)
    logs = paths.spot[0, :, -1].log()
    assert logs.var().item() == pytest.approx(20 * (0.06**2 + 0.05**2), rel=0.03)
    quiet = (paths.jumped[0, :, 1] == 0).double() # no jump in the first month
    assert abs(standard_errors(quiet, math.exp(-20 / 12))) < 3
    twice = Jumps(jumps, 4, 0.02, 0.01).simulate(50_000, 12, 1 / 12, seeded(6), dtype=torch.float64)
    assert twice.jumped[0, :, -1].mean().item() == pytest.approx(20 * (0.06**2 + 0.05**2) + 4 * (0.02**2 + 0.01**2), rel=0.03)


# randomness and layout

@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize("n_paths", (3, 100, BLOCK + 37))
def test_members_do_not_know_of_each_other(name, n_paths):
    market = MARKETS[name]
    together = market.simulate(n_paths, 7, DAY, [seeded(i) for i in range(8)])
    for i in (0, 5):
        alone = market.simulate(n_paths, 7, DAY, seeded(i))
        for field in ("spot", "variance", "iv", "past"):
            assert torch.equal(getattr(together, field)[i], getattr(alone, field)[0]), field
    assert not torch.equal(together.spot[0], together.spot[1])


@pytest.mark.parametrize("name", ("medium", "rough", "crisis_jumps", "sabr_calm"))
def test_pieces_are_the_very_paths_of_one_call(name):
    market, n_paths = MARKETS[name], 2 * BLOCK + 100
    whole = market.simulate(n_paths, 5, DAY, seeded(0))
    pieces = concat(list(market.stream(n_paths, 5, DAY, seeded(0), size=BLOCK)))
    assert torch.equal(whole.spot, pieces.spot) and torch.equal(whole.past, pieces.past)
    assert torch.equal(whole.spot, market.simulate(n_paths, 5, DAY, seeded(0)).spot)
    generator = seeded(0)
    assert not torch.equal(market.simulate(9, 5, DAY, generator).spot, market.simulate(9, 5, DAY, generator).spot)


def test_realized_vol_sees_no_future():
    paths = MEDIUM.simulate(50, 30, DAY, [seeded(0), seeded(1)])
    before = paths.realized_vol()
    for date in (0, 7, 29):
        spot = paths.spot.clone()
        spot[..., date + 1:] *= 2
        assert torch.equal(replace(paths, spot=spot).realized_vol()[..., :date + 1], before[..., :date + 1])
        assert not torch.equal(replace(paths, spot=spot).realized_vol()[..., date + 1], before[..., date + 1])


@pytest.mark.parametrize("window", (1, 2, 5, 7, 16, 20))
def test_realized_vol_is_the_trailing_root_mean_square(window):
    paths = CRISIS.simulate(20, 30, DAY, seeded(0), dtype=torch.float64)
    returns = torch.cat([paths.past, paths.spot.log().diff()], dim=-1)
    naive = returns.square().unfold(-1, window, 1).mean(-1)[..., 20 - window:].div(DAY).sqrt()
    torch.testing.assert_close(paths.realized_vol(window), naive)


def test_layout_is_time_major_and_survives_joining():
    one = Jumps(MEDIUM, **FALLS).simulate(128, 6, DAY, [seeded(0), seeded(1)])
    both = stack([one, one])
    assert both.spot.shape == (2, 2, 128, 7) and both.past.shape == (2, 2, 128, 20) and both.jumped.shape == (2, 2, 128, 7)
    assert concat([one, one]).spot.shape == (2, 256, 7) and one.take(slice(0, 5)).iv.shape == (2, 5, 7)
    assert torch.equal(one.take(torch.tensor([3, 1])).spot, one.spot[:, [3, 1]])
    for paths in (one, both, one.to(torch.float64), concat([one, one])):
        assert paths.spot.mT.is_contiguous() and paths.variance.mT.is_contiguous() and paths.iv.mT.is_contiguous()
    assert one.tau[-1] == 0 and one.maturity == 6 * DAY and one.to(torch.float64).tau.dtype == torch.float64
    with pytest.raises(ValueError, match="share dt"):
        concat([one, replace(one, dt=1 / 52)])


def test_normals_have_one_row_per_member():
    draws = normals((3, 4), [seeded(0), seeded(1)], torch.float64)
    assert draws.shape == (2, 3, 4) and torch.equal(draws[1:], normals((3, 4), seeded(1), torch.float64))


# the door

NAN = float("nan")


@pytest.mark.parametrize("build, message", (
    (lambda: GBM(-0.2), "vol must be finite and not negative, 5 at most, got -0.2"),
    (lambda: GBM(20), "vol must be finite and not negative, 5 at most, got 20; annualised decimals are meant: 20 % vol is 0.2"), (lambda: GBM(True), "got True"),
    (lambda: GBM(NAN), "vol must be finite and not negative, 5 at most, got nan"),
    (lambda: GBM("0.2"), "vol must be finite and not negative, 5 at most, got 0.2"),
    (lambda: Heston(-0.04, 1, 0.04, 1, 0), "v0 must be finite and not negative, 25 at most, got -0.04"),
    (lambda: Heston(0.04, -1, 0.04, 1, 0), "kappa must be finite and positive, got -1"),
    (lambda: Heston(0.04, 1, -0.04, 1, 0), "theta must be finite and positive, got -0.04"),
    (lambda: Heston(0.04, 1, 0.04, -1, 0), "xi must be finite and positive, got -1"),
    (lambda: Heston(0.04, 1, 0.04, 1, 1.5), "rho must lie strictly between -1 and 1, got 1.5"),
    (lambda: Heston(0.04, 1, 0.04, 1, -1), "rho must lie strictly between -1 and 1, got -1"),
    (lambda: Heston(0.04, 1, 0.04, 1, NAN), "rho must lie strictly between -1 and 1, got nan"),
    (lambda: SABR(0, 1, 1, 0), "alpha must be finite and positive, got 0"),
    (lambda: SABR(0.2, 1.5, 1, 0), "beta must lie in"),
    (lambda: SABR(0.2, 1, -1, 0), "nu must be finite and not negative, got -1"),
    (lambda: Jumps(GBM(0.2), -1, 0, 0), "intensity must be finite and not negative, got -1"),
    (lambda: Jumps(GBM(0.2), 1, NAN, 0), "mean must be a finite log-jump, got nan"),
    (lambda: Jumps(GBM(0.2), 1, 0, -0.1), "sd must be finite and not negative, got -0.1"),
    (lambda: Jumps("gbm", 1, 0, 0), "base must be a market"),
    (lambda: Jumps(SABR(0.2, 0.5, 1, 0), 1, 0, 0), "base must be a market"),
    (lambda: GBM(0.2).simulate(0, 60, DAY, seeded(0)), "n_paths must be a whole number of at least 1, got 0"),
    (lambda: GBM(0.2).simulate(8, 0, DAY, seeded(0)), "n_steps must be a whole number of at least 1, got 0"),
    (lambda: GBM(0.2).simulate(8, 60, DAY, seeded(0), n_past=-1), "n_past must be a whole number of at least 0, got -1"),
    (lambda: GBM(0.2).simulate(8, 60, 0, seeded(0)), "dt must be finite and positive, got 0"),
    (lambda: GBM(0.2).simulate(8, 60, NAN, seeded(0)), "dt must be finite and positive, got nan"),
    (lambda: GBM(0.2).simulate(8, 60, DAY, 0), "generator must be a torch.Generator, or one per member, got 0"),
    (lambda: GBM(0.2).simulate(8, 60, DAY, []), "generator must be a torch.Generator, or one per member"),
    (lambda: GBM(0.2).simulate(8, 60, DAY, seeded(0), n_past=5).realized_vol(), "window must lie in 1..5"),
    (lambda: list(GBM(0.2).stream(8, 60, DAY, seeded(0), size=100)), "size must be a multiple of"),
))
def test_bad_input_is_refused_with_a_cure(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in str(error.value) and "; " in str(error.value)


# momentum

@pytest.mark.parametrize("base", (GBM(0.2), MEDIUM, Jumps(MEDIUM, **FALLS), SABR(0.18, 1, 0.7, -0.3)), ids=("gbm", "heston", "bates", "sabr"))
def test_momentum_of_nothing_is_its_base_bit_for_bit(base):
    paths, plain = (market.simulate(200, 60, DAY, seeded(0)) for market in (Momentum(base, 0.0), base))
    for name in plain._tensors():
        assert torch.equal(getattr(paths, name), getattr(plain, name)), name


@pytest.mark.parametrize("phi", (-0.4, -0.3, 0.1, 0.4))
def test_momentum_has_the_autocorrelation_that_it_says(phi):
    paths = Momentum(GBM(0.18), phi).simulate(20_000, 60, DAY, seeded(1), dtype=torch.float64)
    returns = torch.cat([paths.past, paths.spot.log().diff(dim=-1)], -1)[0]
    products, squares = returns[:, 1:] * returns[:, :-1], returns[:, :-1].square()
    estimate = products.sum() / squares.sum()
    error = (products - estimate * squares).sum(1).std() * len(returns) ** 0.5 / squares.sum()  # paths are independent, their days are not
    assert abs(estimate - phi) < 3 * error < 0.02


def test_momentum_moves_the_price_and_neither_quote_nor_past_variance():
    market = Momentum(MEDIUM, 0.3)
    paths, plain = (m.simulate(50, 60, DAY, seeded(2), dtype=torch.float64) for m in (market, MEDIUM))
    assert torch.equal(paths.iv, plain.iv) and torch.equal(paths.variance, plain.variance)
    base, own = (torch.cat([p.past, p.spot.log().diff(dim=-1)], -1) for p in (plain, paths))
    assert torch.allclose(own[..., 0], base[..., 0]) and torch.allclose(own[..., 1:], base[..., 1:] + 0.3 * own[..., :-1])


def test_members_of_momentum_do_not_depend_on_their_neighbours():
    market = Momentum(MEDIUM, 0.2)
    both = market.simulate(100, 30, DAY, [seeded(3), seeded(4)])
    assert torch.equal(both.spot[1:], market.simulate(100, 30, DAY, seeded(4)).spot)


@pytest.mark.parametrize("base, phi, message", ((GBM(0.2), 1.0, "phi must lie in"), (GBM(0.2), -1.5, "phi must lie in"), (GBM(0.2), float("nan"), "phi must lie in"),
                                                (GBM(0.2), True, "phi must lie in"), (0.2, 0.1, "base must be a market"), (SABR(0.3, 0.5, 0.7, -0.3), 0.1, "base must be a market")))
def test_momentum_refuses_what_is_none(base, phi, message):
    with pytest.raises(ValueError, match=message):
        Momentum(base, phi)


def test_the_variance_swap_by_hand():
    "Realised so far by the trapezoid of both ends of each step, expected until expiry by the quote: three dates of a quarter of a year."
    row = lambda *x: torch.tensor([[x]], dtype=torch.float64)
    paths = Paths(spot=row(1, 1, 1), variance=row(0.04, 0.16, 0.08), iv=row(0.4, 0.3, 0.2), past=row(0.0), dt=0.25)
    assert paths.variance_swap()[0, 0].tolist() == pytest.approx([0.16 * 0.5, 0.1 * 0.25 + 0.09 * 0.25, 0.1 * 0.25 + 0.12 * 0.25])
    jumped = replace(paths, jumped=row(0, 0.01, 0.03)).variance_swap()[0, 0]
    assert jumped.tolist() == pytest.approx([0.08, 0.0575, 0.085])
