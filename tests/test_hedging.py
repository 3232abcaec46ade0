"""The clock: money by formula equals money day by day, and a band's closed-form gradient equals autograd's."""
import dataclasses

import pytest
import torch

from hirm.frictions import Liquidity, Proportional, Quadratic
from hirm.environments import ENVIRONMENTS, Environment, recorded_environments, sample_environments
from hirm.hedging import clamp_path, hedge, roll, settle, stack_episodes
from hirm.history import Windows, calendar_windows, training_windows
from hirm.policies import Delta
from hirm.pricing import EuropeanCall

RICH = Proportional(2e-3) + Quadratic(5e-3) + Liquidity(1e-3, reference_vol=0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def episode(name="crisis_jumps", n_paths=50, members=3, **changes):
    environment = dataclasses.replace(ENVIRONMENTS[name], **changes)
    return environment.episode(n_paths, [generator(i) for i in range(members)], dtype=torch.float64)


def replay(positions, e):
    "The cash account of one trade, day by day, in plain Python arithmetic on tensors over paths."
    cash, held = e.premium.clone(), torch.zeros_like(positions[..., 0, :])
    n_steps = e.paths.n_steps
    for t in range(n_steps + 1):
        wanted = positions[..., t, :] if t < n_steps else torch.zeros_like(held)
        trade, price, paths = wanted - held, e.prices[..., t, :], e.paths
        for i in range(trade.shape[-1]):
            widening = (paths.variance[..., t] / 0.2**2).clamp(min=1)
            cost = (2e-3 + 1e-3 * widening) * trade[..., i].abs() * price[..., i] + 5e-3 * trade[..., i] ** 2 * price[..., i]
            cash = cash - trade[..., i] * price[..., i] - cost
        held = wanted
    return cash - (e.paths.spot[..., -1] - 1).clamp(min=0)


@pytest.mark.parametrize("instruments", [("spot",), ("spot", "variance_swap")])
def test_pnl_equals_the_cash_ledger_replayed(instruments):
    e = episode(instruments=instruments, friction=RICH)
    positions = torch.randn(*e.prices[..., :-1, :].shape, generator=generator(9), dtype=torch.float64)
    ledger = settle(positions, e)
    assert torch.allclose(ledger.pnl, replay(positions, e), atol=1e-12)
    assert torch.allclose(ledger.daily_pnl().sum(-1), ledger.pnl, atol=1e-12)


def test_final_unwind_is_paid():
    e = episode("crisis", friction=Proportional(0.01))
    ledger = settle(torch.ones_like(e.prices[..., :-1, :]), e)
    assert torch.allclose(ledger.cost, 0.01 * (1 + e.paths.spot[..., -1]))
    assert torch.allclose(ledger.turnover, torch.full_like(ledger.cost, 2.0))


def test_scale_gradient_is_the_derivative_in_the_size_of_the_hedge():
    e = episode(friction=Proportional(2e-3) + Quadratic(5e-3))
    positions = Delta()(e)
    up, down = (settle(w * positions, e).loss for w in (1 + 1e-6, 1 - 1e-6))
    assert torch.allclose(settle(positions, e).scale_gradient(), (up - down) / 2e-6, atol=1e-8)


def test_clamp_path_matches_the_recorded_loop_to_second_order():
    centre = torch.randn(2, 5, 12, 1, generator=generator(), dtype=torch.float64)
    width = torch.rand(2, 5, 12, 1, generator=generator(1), dtype=torch.float64)
    lower, upper = (centre - width).requires_grad_(), (centre + width).requires_grad_()
    def looped(lower, upper):
        return roll(lambda t, held: torch.minimum(torch.maximum(held, lower[..., t, :]), upper[..., t, :]), 12, torch.zeros(2, 5, 1).double())
    weight = torch.randn(2, 5, 12, 1, generator=generator(2), dtype=torch.float64)
    grads = []
    for f in (clamp_path, looped):
        positions = f(lower, upper)
        first = torch.autograd.grad((weight * positions**2).sum(), (lower, upper), create_graph=True)
        second = torch.autograd.grad(sum((g**3).sum() for g in first), (lower, upper))
        grads.append((positions, *first, *second))
    for ours, reference in zip(*grads):
        assert torch.allclose(ours, reference, atol=1e-12)
    assert torch.autograd.gradgradcheck(clamp_path, (lower[:1, :2, :4], upper[:1, :2, :4]))


def test_paths_stay_innermost_in_memory():
    e = stack_episodes([episode("low", 8), episode("crisis", 8)], halves=2)
    assert e.payoff.shape == (3, 2, 2, 4) and e.paths.spot.shape == (3, 2, 2, 4, 61)
    ledger = hedge(Delta(), e)
    for x in (e.paths.spot, e.prices[..., 0], ledger.positions[..., 0], ledger.trades[..., 0]):
        assert x.stride(-2) == 1


def test_stacking_keeps_every_path_with_its_own_costs():
    alone = [episode("low", 8), episode("crisis_liquidity", 8)]
    together = hedge(Delta(), stack_episodes(alone, halves=2))
    for i, e in enumerate(alone):
        assert torch.allclose(together.pnl[:, i].flatten(1), hedge(Delta(), e).pnl, atol=1e-12)


def test_a_member_gets_the_same_paths_alone_or_among_others():
    environment = ENVIRONMENTS["crisis_jumps"]
    among = environment.episode(16, [generator(i) for i in range(5)])
    alone = environment.episode(16, [generator(3)])
    assert torch.equal(among.paths.spot[3], alone.paths.spot[0]) and torch.equal(among.paths.past[3], alone.paths.past[0])


@pytest.mark.parametrize("name", [n for n, e in ENVIRONMENTS.items() if e.source.startswith("regime") and not n.startswith("sabr")])
def test_unhedged_seller_breaks_even_on_average(name):
    e = ENVIRONMENTS[name].episode(100_000, generator(5))
    pnl = e.premium - e.payoff
    assert abs(pnl.mean() / (pnl.std() / pnl.numel() ** 0.5)) < 3


def test_registry_holds_the_windows_that_history_derives_from_the_record():
    derived = recorded_environments(calendar_windows("sp500") | training_windows("sp500"))
    for name, environment in derived.items():
        assert set(ENVIRONMENTS[name].market.dates) == set(environment.market.dates)


def test_sampled_environments_are_many_different_and_reproducible():
    once, again = (sample_environments(30, generator(1)) for _ in range(2))
    assert once == again and len({e.market for e in once.values()}) == 30


@pytest.mark.parametrize("change, words", [
    (dict(role="exam"), "train, validate or test"), (dict(market=3), "simulate"), (dict(friction=0.1), "must be a Friction, got .float."),
    (dict(instruments=("gold",)), "gold"), (dict(instruments="spot"), "must be a tuple"), (dict(n_steps=0), "n_steps"), (dict(dt=0.0), "dt must be positive, got 0.0; a trading day"),
])
def test_a_wrong_environment_is_refused(change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        dataclasses.replace(ENVIRONMENTS["low"], **change)


def test_stress_multiplies_the_cost_of_an_episode():
    e = episode("crisis_liquidity")
    stressed = dataclasses.replace(e, friction=1.5 * e.friction)
    assert torch.allclose(hedge(Delta(), stressed).cost, 1.5 * hedge(Delta(), e).cost, rtol=1e-14)


# ---- one position for each path, date and instrument ---------------------------------------------------------------------------

SQUARE = dict(n_paths=60, members=1)  # as many paths as steps: what is broadcast gives a number


@pytest.mark.parametrize("instruments, wrong", [
    (("spot",), lambda e: e.delta[..., :-1]),  # no axis of instruments
    (("spot",), lambda e: e.delta[..., :-1].mT[..., None].expand(1, 60, 60, 2)),  # two positions, one instrument
    (("spot",), lambda e: e.delta[..., None]),  # a date too many
    (("spot",), lambda e: e.delta[0, :, :-1, None]),  # no axis of members
    (("spot",), lambda e: e.delta[:, :1, :-1, None]),  # one path for all
    (("spot",), lambda e: e.delta[..., :1, None]),  # one date for all
    (("spot",), lambda e: torch.tensor(0.5)),
    (("spot", "variance_swap"), lambda e: e.delta[..., :-1, None]),  # one position held in both
    (("spot", "variance_swap"), lambda e: e.delta[..., :-1]),
])
def test_positions_that_would_be_broadcast_are_refused(instruments, wrong):
    e = episode("medium", **SQUARE, instruments=instruments)
    with pytest.raises(ValueError, match=r"positions must be .* here \(1, 60, 60, [12]\), got .*; for one instrument end with \[..., None\]"):
        hedge(wrong, e)


def test_with_its_axis_the_same_delta_is_a_hedge():
    e = episode("medium", **SQUARE)
    assert torch.equal(hedge(lambda e: e.delta[..., :-1, None], e).pnl, hedge(Delta(), e).pnl)
    shared = e.delta[..., :-1, None].expand(4, -1, -1, -1)  # four members on the paths of one
    assert torch.equal(settle(shared, e).pnl, hedge(Delta(), e).pnl.expand(4, -1))


def test_prices_need_their_axis_of_instruments():
    e = episode("medium", **SQUARE)
    for prices in (e.paths.spot, e.prices[..., :-1, :], e.prices[:, :30]):
        with pytest.raises(ValueError, match=r"prices must be .* beside a spot of \(1, 60, 61\), got .*; for the spot alone write"):
            dataclasses.replace(e, prices=prices)


@pytest.mark.parametrize("change, words", [
    (dict(dt=1 / 365), "share dt"), (dict(n_steps=30), "share n_steps, got 60, 30"), (dict(liability=EuropeanCall(1.1)), "share liability"),
    (dict(instruments=("spot", "variance_swap")), "share n_instruments, got 1, 2"),
])
def test_a_batch_has_one_clock_one_liability_and_one_set_of_instruments(change, words):
    with pytest.raises(ValueError, match=words):
        stack_episodes([episode("low", 8), episode("medium", 8, **change)])


# ---- jumps stay with their paths -----------------------------------------------------------------------------------------------

def test_a_variance_swap_keeps_its_jumps_in_every_cut():
    e = episode(n_paths=40, instruments=("spot", "variance_swap"))
    index = torch.randint(40, (3, 7), generator=generator(2))
    for part in (e.take(slice(5, 20)), e.pick(index), stack_episodes([e], halves=2), *e.chunks(16)):
        swap = part.paths.variance_swap()
        assert torch.allclose(swap, part.prices[..., 1], atol=1e-14)
        assert (swap[..., -1] - dataclasses.replace(part.paths, jumped=None).variance_swap()[..., -1]).max() > 1e-3


def test_a_market_without_jumps_has_none_beside_one_with_jumps():
    both = stack_episodes([episode("low", 8), episode("crisis_jumps", 8)], halves=2)
    assert both.paths.jumped[:, 0].abs().max() == 0 and both.paths.jumped[:, 1].max() > 0
    assert both.paths.jumped.stride(-2) == 1
    assert stack_episodes([episode("low", 8), episode("crisis", 8)]).paths.jumped is None


# ---- one clock -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("market, change, words", [
    (dict(n_steps=20), {}, "environment 'x': these windows last 20 days, got n_steps=60; build .*n_steps=60.*, or ask for n_steps=20"),
    ({}, dict(n_steps=20), "these windows last 60 days, got n_steps=20"),
    ({}, dict(dt=1 / 365), "recorded windows are daily, dt = 1/252, got dt=0.0027"),
    ({}, dict(dt=1 / 52), "recorded windows are daily"),
    (dict(n_past=5), {}, "carry 5 past returns, got n_past=20"),
])
def test_a_record_has_one_clock(market, change, words):
    with pytest.raises(ValueError, match=words):
        Environment("x", "test", Windows(start="2020-02-15", end="2020-06-30", **market), Proportional(10e-4), **change)


def test_twenty_days_are_sold_for_the_price_of_twenty_days():
    windows = Windows(start="2020-02-15", end="2020-06-30", n_steps=20)
    e = Environment("x", "test", windows, Proportional(10e-4), n_steps=20).episode(None, None)
    assert e.paths.n_steps == 20 and e.premium.mean().item() == pytest.approx(0.0499, abs=1e-4)


def test_windows_of_ones_own_need_a_half_spread():
    with pytest.raises(ValueError, match=r"a half-spread is known for history_low, .*, got 'mine'; .*Environment\('mine', 'test', windows"):
        recorded_environments({"mine": Windows()})


@pytest.mark.parametrize("instruments", [("variance_swap", "spot"), ("spot", "spot"), ("variance_swap",), ()])
def test_instruments_stand_in_one_order(instruments):
    with pytest.raises(ValueError, match="must be a tuple of spot and perhaps variance_swap, in this order"):
        dataclasses.replace(ENVIRONMENTS["low"], instruments=instruments)
