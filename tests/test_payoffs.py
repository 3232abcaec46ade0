"""Options other than the call at the money: prices by parity and by integration, the same hedge by parity, and refusals at the door."""
import math
from dataclasses import asdict, dataclass, replace

import pytest
import QuantLib as ql
import torch
from scipy.integrate import quad
from scipy.stats import norm

from hirm.config import Config, judged_environments, training_environments
from hirm.environments import ENVIRONMENTS, Terms, nameable_environments
from hirm.evaluation import jumpier, resting_band
from hirm.features import features
from hirm.frictions import Proportional
from hirm.hedging import hedge
from hirm.markets import GBM, SABR, Heston, Jumps, Momentum
from hirm.policies import Delta, MLPPolicy, WhalleyWilmott
from hirm.pricing import (CallSpread, EuropeanCall, EuropeanPut, Liability, Straddle, heston_greeks, model_hedge, premium, simulated_premium)
from hirm.runs import config_hash

MONTH = 20 / 252
HESTON = Heston(v0=0.0324, kappa=3, theta=0.0324, xi=0.22, rho=-0.7)
MARKETS = {"gbm": GBM(0.2), "heston": HESTON, "bates": Jumps(HESTON, 4, -0.06, 0.05), "sabr": SABR(alpha=0.18, beta=1, nu=0.7, rho=-0.3)}
SOLD = [EuropeanCall(1.05), EuropeanPut(0.95), CallSpread(0.95, 1.05), Straddle(1.02)]


def names(one): return type(one).__name__


@pytest.mark.parametrize("sold", SOLD, ids=names)
def test_the_black_scholes_price_is_the_mean_payoff_and_greeks_are_its_derivatives(sold):
    spot = torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64, requires_grad=True)
    vol, tau = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True), MONTH
    price = sold.price(spot, tau, vol)
    def mean(s):
        total = 0.3 * math.sqrt(tau)
        pays = lambda z: sold.payoff(torch.tensor(s * math.exp(total * z - total**2 / 2), dtype=torch.float64)).item() * norm.pdf(z)
        cuts = sorted(math.log(strike / s) / total + total / 2 for _, strike in sold.calls)
        return quad(pays, -9, 9, points=cuts, limit=200)[0]
    torch.testing.assert_close(price.detach(), torch.tensor([mean(s) for s in spot.tolist()], dtype=torch.float64), rtol=0, atol=1e-9)
    slope, bend = torch.autograd.grad(price.sum(), (spot, vol), create_graph=True)
    torch.testing.assert_close(sold.delta(spot, tau, vol), slope)
    torch.testing.assert_close(sold.vega(spot, tau, vol), bend)
    torch.testing.assert_close(sold.gamma(spot, tau, vol), torch.autograd.grad(slope.sum(), spot)[0])
    torch.testing.assert_close(sold.price(spot, 0.0, vol), sold.payoff(spot))
    low, high = sold.slopes
    assert (sold.delta(torch.logspace(-1, 1, 99).double(), tau, 0.3) - (low + high) / 2).abs().max() <= (high - low) / 2 + 1e-12


def test_payoffs_by_hand():
    spot = torch.tensor([0.5, 0.95, 1.0, 1.5], dtype=torch.float64)
    by_hand = {EuropeanPut(0.95): [0.45, 0, 0, 0], CallSpread(0.95, 1.05): [0, 0, 0.05, 0.1], Straddle(): [0.5, 0.05, 0, 0.5]}
    for sold, paid in by_hand.items():
        torch.testing.assert_close(sold.payoff(spot), torch.tensor(paid, dtype=torch.float64), rtol=0, atol=1e-15)
    assert [one.slopes for one in SOLD] == [(0, 1), (-1, 0), (0, 1), (-1, 1)]


def test_a_put_far_below_the_spot_keeps_its_digits():
    total = 0.08 * math.sqrt(MONTH)
    d2 = math.log(1 / 0.8) / total - total / 2
    exact = 0.8 * norm.cdf(-d2) - norm.cdf(-d2 - total)
    assert 0 < exact < 1e-20 and EuropeanPut(0.8).price(1.0, MONTH, 0.08).item() == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("market", MARKETS)
def test_premiums_obey_parity(market):
    market = MARKETS[market]
    for strike in (0.95, 1.0, 1.05):
        call, put = premium(market, EuropeanCall(strike), MONTH), premium(market, EuropeanPut(strike), MONTH)
        assert call - put == pytest.approx(1 - strike, abs=1e-14) and put > max(strike - 1, 0)
        assert premium(market, Straddle(strike), MONTH) == pytest.approx(call + put, abs=1e-14)
    spread = premium(market, EuropeanCall(0.95), MONTH) - premium(market, EuropeanCall(1.05), MONTH)
    assert premium(market, CallSpread(0.95, 1.05), MONTH) == pytest.approx(spread, abs=1e-14) and 0 < spread < 0.1


def test_the_put_by_parity_is_quantlibs_put():
    today = ql.Settings.instance().evaluationDate
    curve = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    process = ql.HestonProcess(curve, curve, ql.QuoteHandle(ql.SimpleQuote(1.0)), 0.0324, 3, 0.0324, 0.22, -0.7)
    option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Put, 0.95), ql.EuropeanExercise(today + 73))
    option.setPricingEngine(ql.AnalyticHestonEngine(ql.HestonModel(process), 1e-12, 1_000_000))
    assert premium(HESTON, EuropeanPut(0.95), 0.2) == pytest.approx(option.NPV(), abs=1e-9)


@pytest.mark.parametrize("market", ["heston", "sabr"])
def test_a_straddle_sells_for_its_mean_payoff(market):
    price, error = simulated_premium(MARKETS[market], Straddle(0.95), MONTH)
    assert abs(price - premium(MARKETS[market], Straddle(0.95), MONTH)) < 4 * error and 1e-5 < error < 1e-3


def test_heston_greeks_add_up():
    at = (torch.tensor([0.9, 1.0, 1.1]).double(), MONTH, 0.04)
    call, put, straddle = (heston_greeks(HESTON, sold(0.95), *at) for sold in (EuropeanCall, EuropeanPut, Straddle))
    for one, other, both, apart in zip(call, put, straddle, (at[0] - 0.95, 1.0, 0.0)):
        torch.testing.assert_close(one - other, torch.zeros_like(one) + apart)
        torch.testing.assert_close(one + other, both)
    paths = HESTON.simulate(50, 20, 1 / 252, torch.Generator().manual_seed(0), dtype=torch.float64)
    for believed in (HESTON, None):
        (of_call, swaps), (of_put, same) = (model_hedge(believed, sold(0.95), paths) for sold in (EuropeanCall, EuropeanPut))
        torch.testing.assert_close(of_call - 1, of_put)
        torch.testing.assert_close(swaps, same)


@pytest.mark.parametrize("name", ["medium", "crisis_jumps", "sabr_calm", "covid"])
def test_by_parity_a_put_is_hedged_as_well_as_its_call(name):
    "Without cost, who is short a put and hedges by delta ends where who is short the call does, path by path."
    losses = []
    for sold in (EuropeanCall(0.95), EuropeanPut(0.95)):
        environment = replace(Terms(sold, 20).of(nameable_environments()[name]), friction=Proportional(0.0))
        n_paths = None if name == "covid" else 200
        episode = environment.episode(n_paths, torch.Generator().manual_seed(0), dtype=torch.float64)
        assert episode.paths.n_steps == 20
        losses.append(hedge(Delta(), episode).loss)
    torch.testing.assert_close(*losses, rtol=0, atol=1e-12)
    assert losses[0].std() > 1e-4


def test_features_and_bands_are_the_liabilitys_own():
    call, put, straddle = (Terms(sold(1.05), 20).of(ENVIRONMENTS["medium"]).episode(64, torch.Generator().manual_seed(0)) for sold in (EuropeanCall, EuropeanPut, Straddle))
    seen = [features(episode, ("delta", "gamma")) for episode in (call, put, straddle)]
    torch.testing.assert_close(seen[0][..., 0] - 1, seen[1][..., 0])
    torch.testing.assert_close(seen[0][..., 1], seen[1][..., 1])
    torch.testing.assert_close(2 * seen[0] - torch.tensor([1.0, 0.0]), seen[2])
    held = [WhalleyWilmott()(episode) for episode in (call, put)]
    assert (held[0] >= 0).all() and (held[1] <= 0).all() and held[1].min() < -0.5
    policy = MLPPolicy([torch.Generator().manual_seed(0)], ("delta", "gamma", "tau"))
    with torch.no_grad():
        assert policy(call)[..., 0, 0].mean() == pytest.approx(policy(put)[..., 0, 0].mean().item() + 1, abs=0.1)  # centred where the delta lies


def test_a_market_without_a_formula_is_simulated_and_says_how_exactly(capsys):
    jumpy = jumpier(ENVIRONMENTS["sabr_crisis"])
    episode = jumpy.episode(64, torch.Generator().manual_seed(0), dtype=torch.float64)
    paid = episode.premium.flatten()[0].item()
    price, error = simulated_premium(jumpy.market, EuropeanCall(), 60 / 252, 60)
    assert paid == price and 0 < error < 5e-4
    assert price > premium(ENVIRONMENTS["sabr_crisis"].market, EuropeanCall(), 60 / 252) + 4 * error  # jumps add variance
    said = capsys.readouterr().err
    jumpy.episode(64, torch.Generator().manual_seed(1))
    assert "Jumps has no formula for EuropeanCall" in said and f"± {100 * error:.3f} % of spot" in said and not capsys.readouterr().err


def test_a_monte_carlo_price_agrees_with_a_formula():
    for market in (GBM(0.2), MARKETS["bates"]):
        price, error = simulated_premium(market, EuropeanPut(0.95), MONTH)
        assert abs(price - premium(market, EuropeanPut(0.95), MONTH)) < 4 * error


def test_jumps_are_added_once():
    base = ENVIRONMENTS["medium"]
    jumps = Jumps(base.market, 4, -0.06, 0.05)
    for market in (jumps, Momentum(jumps, 0.2), Momentum(Momentum(jumps, 0.2), 0.1)):
        environment = replace(base, market=market)
        assert jumpier(environment) == environment
    assert jumpier(replace(base, market=Momentum(base.market, 0.2))).market == Jumps(Momentum(base.market, 0.2), 4, -0.06, 0.05)


@dataclass(frozen=True)
class Still:
    "A market of somebody's own, of no base class."
    vol: float = 0.2

    def simulate(self, n_paths, n_steps, dt, generator, **options):
        return GBM(self.vol).simulate(n_paths, n_steps, dt, generator, **options)


def test_a_market_of_ones_own_is_priced_by_its_own_formula():
    before = simulated_premium(Still(), EuropeanCall(), MONTH)
    assert premium(Still(), EuropeanCall(), MONTH) == before[0] and abs(before[0] - premium(GBM(0.2), EuropeanCall(), MONTH)) < 4 * before[1]

    @premium.register
    def _(market: Still, liability, maturity, paths=None):
        return premium(GBM(market.vol), liability, maturity)
    assert premium(Still(), EuropeanPut(), MONTH) == premium(GBM(0.2), EuropeanPut(), MONTH)


@dataclass(frozen=True)
class Digital(Liability):
    "Pays 1 above the strike: no portfolio of calls."
    strike: float = 1.0

    def payoff(self, spot): return (spot > self.strike).to(spot)


def test_a_payoff_that_is_no_portfolio_of_calls_is_simulated():
    d2 = -0.2 * math.sqrt(MONTH) / 2
    price, error = simulated_premium(GBM(0.2), Digital(), MONTH)
    assert abs(price - norm.cdf(d2)) < 4 * error and premium(GBM(0.2), Digital(), MONTH) == price
    with pytest.raises(ValueError, match="Heston's hedge goes by calls, got Digital"):
        model_hedge(HESTON, Digital(), HESTON.simulate(4, 20, 1 / 252, torch.Generator()))
    with pytest.raises(NotImplementedError, match="Liability must say its calls, or write payoff"):
        Liability().payoff(torch.ones(1))


def test_what_cannot_be_priced_is_refused():
    with pytest.raises(TypeError, match="market must be one that can be simulated, got 'heston'; give it `simulate`"):
        premium("heston", EuropeanCall(), MONTH)
    unhashable = dataclass(type("Open", (), {"simulate": None, "__annotations__": {}}))()
    with pytest.raises(TypeError, match="must be hashable, got .*; make both @dataclass"):
        premium(unhashable, EuropeanCall(), MONTH)


SMALL = dict(method="erm", scale="smoke", environments="low,medium,history_low")


def test_what_is_asked_for_is_sold_everywhere():
    config = Config(**SMALL, payoff="put", strike=".95", n_steps="20")
    judged = judged_environments(config)
    assert {e.liability for e in judged.values()} == {EuropeanPut(0.95)} and {e.n_steps for e in judged.values()} == {20}
    assert judged["covid"].market.n_steps == 20 and "covid" in judged and len(training_environments(config)) == 3


def test_a_default_that_is_written_out_names_the_same_run():
    "The hashes are those of the commit before anything but a call at the money over sixty days could be sold."
    known = {"eaafc69b": {}, "5a6e9ac3": dict(method="erm"), "f3592f38": dict(environments="low,medium", policy="mlp", realized_vol=True),
             "44581fe9": dict(scale="paper", environments="coloured_strong,coloured_weak", validate_on="coloured_home", extra_features="last_return")}
    for protocol, asked in known.items():
        for written in ({}, dict(payoff="call", strike="1", n_steps=60.0, instruments=" spot", upper_strike="none", plugins="")):
            assert config_hash(asdict(Config(**asked, **written).members()[0])) == protocol
    others = [dict(payoff="put"), dict(strike=0.95), dict(n_steps=20), dict(payoff="call_spread", upper_strike=1.1), dict(payoff="call_spread", upper_strike=1.2)]
    hashes = {config_hash(asdict(Config(**SMALL, **asked).members()[0])) for asked in [{}, *others]}
    assert len(hashes) == len(others) + 1


@pytest.mark.parametrize("asked, message", [
    (dict(strike=0), "strike must be a number from 0.01 to 100, got 0; the usual value is -p strike 1.0"), (dict(strike=-1), "strike must be a number"),
    (dict(payoff="putt"), "unknown payoff 'putt', did you mean 'put'"), (dict(n_steps=1), "n_steps must be a whole number from 2"), (dict(n_steps=20.5), "n_steps must be"),
    (dict(payoff="call_spread"), "payoff call_spread must have an upper_strike, got none; the usual value is -p upper_strike 1.1"),
    (dict(payoff="call_spread", strike=1.1, upper_strike=1.05), "upper_strike must be above strike, got 1.05 where strike is 1.1; swap"),
    (dict(payoff="put", upper_strike=1.1), "payoff put has no upper_strike, got 1.1; leave it out"),
    (dict(instruments="variance_swap"), "instruments must be spot, or spot and the variance swap, got 'variance_swap'; write"),
    (dict(instruments="spot,swap"), "unknown instrument 'swap'"), (dict(instruments="spot,variance_swap"), "environment history_low must trade spot,variance_swap, got a record of closes"),
])
def test_what_cannot_be_sold_is_refused_at_the_door(asked, message):
    with pytest.raises(ValueError, match=message):
        Config(**SMALL | asked)


@pytest.mark.parametrize("strike", [0.0, -1.0, math.inf, math.nan, "1", True])
def test_strikes_are_positive(strike):
    for build in (EuropeanPut, Straddle, CallSpread):
        with pytest.raises(ValueError, match="strike must be positive and finite, got"):
            build(strike)


def test_the_resting_band_is_that_of_what_is_sold():
    policies = {"delta": Delta(), "whalley_wilmott": WhalleyWilmott()}
    call, put = (resting_band(policies, days=(15, 3), n_steps=20, liability=sold(0.95)) for sold in (EuropeanCall, EuropeanPut))
    for column in ("delta", "lower", "upper"):
        assert (call[column] - 1 - put[column]).abs().max() < 1e-6
