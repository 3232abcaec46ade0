"""The clock: money by formula equals money day by day, and a band's closed-form gradient equals autograd's."""
import dataclasses

import pytest
import torch

from hirm.frictions import Liquidity, Proportional, Quadratic
from hirm.environments import ENVIRONMENTS, recorded_environments, sample_environments
from hirm.hedging import clamp_path, hedge, roll, settle, stack_episodes
from hirm.history import calendar_windows, training_windows
from hirm.policies import Delta

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
    (dict(role="exam"), "train, validate or test"), (dict(market=3), "simulate"), (dict(friction=0.1), "cost"),
    (dict(instruments=("gold",)), "gold"), (dict(instruments="spot"), "must be a tuple"), (dict(n_steps=0), "n_steps"), (dict(dt=0.0), "dt must be positive, got 0.0; a trading day"),
])
def test_a_wrong_environment_is_refused(change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        dataclasses.replace(ENVIRONMENTS["low"], **change)


def test_stress_multiplies_the_cost_of_an_episode():
    e = episode("crisis_liquidity")
    stressed = dataclasses.replace(e, friction=1.5 * e.friction)
    assert torch.allclose(hedge(Delta(), stressed).cost, 1.5 * hedge(Delta(), e).cost, rtol=1e-14)
