"""What the hedger sees and does: no future, one head, members apart, bounded positions."""
import dataclasses
import math

import pytest
import torch

from hirm import policies
from hirm.features import COLUMNS, USUAL, Scaler, features
from hirm.environments import ENVIRONMENTS
from hirm.frictions import Proportional
from hirm.hedging import hedge, map_paths, stack_episodes
from hirm.markets import GBM, Heston
from hirm.policies import POLICIES, Delta, DeltaVega, MinimumVarianceDelta, NoHedge, WhalleyWilmott
from hirm.pricing import EuropeanCall


def generators(n, start=0):
    return [torch.Generator().manual_seed(start + i) for i in range(n)]


def episode(name="medium", n_paths=16, members=1, dtype=torch.float64, **changes):
    return dataclasses.replace(ENVIRONMENTS[name], **changes).episode(n_paths, generators(members), dtype=dtype)


def doubled_after(e, date):
    "The same episode, every field of the paths doubled after a date."
    late = torch.where(torch.arange(e.paths.n_steps + 1) > date, 2.0, 1.0).double()
    paths = dataclasses.replace(e.paths, spot=e.paths.spot * late, variance=e.paths.variance * late, iv=e.paths.iv * late)
    return dataclasses.replace(e, paths=paths, prices=e.prices * late[:, None])


def learned(kind, members=2, **options):
    policy = POLICIES[kind](generators(members, 7), **options).double()
    with torch.no_grad():  # away from the initial near-zero head, so that what it sees matters
        policy.head.mul_(30)
    return policy


ALL = {"no_hedge": NoHedge(), "delta": Delta(), "whalley_wilmott": WhalleyWilmott(), "band": learned("band"), "mlp": learned("mlp")}


@pytest.mark.parametrize("date", [0, 17, 58])
def test_no_feature_sees_the_future(date):
    e = episode()
    before, after = features(e), features(doubled_after(e, date))
    assert torch.equal(before[..., :date + 1, :], after[..., :date + 1, :])
    assert not torch.equal(before[..., date + 1:, :], after[..., date + 1:, :])


@pytest.mark.parametrize("name", ALL)
def test_no_position_sees_the_future(name):
    e = episode("crisis")
    before, after = ALL[name](e), ALL[name](doubled_after(e, 30))
    assert torch.equal(before[..., :31, :], after[..., :31, :])
    assert name == "no_hedge" or not torch.equal(before, after)


def test_expired_delta_is_zero_half_or_one():
    spot = torch.tensor([0.9, 1.0, 1.1])
    assert episode().liability.delta(spot, 0.0, 0.2).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("kind", POLICIES)
def test_members_do_not_touch_each_other(kind):
    policy, e = learned(kind, 3), episode("medium", 8, 3)
    alone = POLICIES[kind](generators(1, 9)).double()
    alone.load_state_dict({k: v[2:] for k, v in policy.state_dict().items()})
    assert torch.allclose(policy(e)[2], alone(dataclasses.replace(e, paths=map_paths(lambda x: x[2:], e.paths), prices=e.prices[2:],
                                                                  payoff=e.payoff[2:], premium=e.premium[2:]))[0], atol=1e-12)
    positions = policy(e)
    (gradient,) = torch.autograd.grad(positions[0].sum(), policy.head)
    assert gradient[0].abs().min() > 0 and gradient[1:].abs().max() == 0


@pytest.mark.parametrize("kind", POLICIES)
def test_initial_weights_do_not_depend_on_batch_mates(kind):
    many, one = POLICIES[kind](generators(4)), POLICIES[kind]([torch.Generator().manual_seed(2)])
    for (name, a), b in zip(many.named_parameters(), one.parameters()):
        assert torch.equal(a[2], b[0]), name


@pytest.mark.parametrize("kind", POLICIES)
def test_common_paths_serve_all_members(kind):
    policy, e = learned(kind, 3), episode("crisis", 8)
    repeated = dataclasses.replace(e, paths=map_paths(lambda x: x.expand(3, -1, -1), e.paths), prices=e.prices.expand(3, -1, -1, -1))
    assert torch.allclose(policy(e), policy(repeated), atol=1e-12)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("per_path", [False, True])
def test_head_copies_hold_the_gradient_of_their_own_group(kind, per_path):
    policy = learned(kind)
    batch = stack_episodes([episode("low", 8, 2), episode("high", 8, 2)], halves=2)
    copies = policy.head_copies(2, 8 if per_path else 2)
    loss = hedge(policy, batch, head=copies).loss
    assert torch.allclose(loss, hedge(policy, batch).loss, atol=1e-12)
    (apart,) = torch.autograd.grad(loss.sum(), copies, retain_graph=True)
    (shared,) = torch.autograd.grad(hedge(policy, batch).loss.sum(), policy.head)
    assert torch.allclose(apart.sum((1, 2)), shared, atol=1e-10)
    (one,) = torch.autograd.grad(loss[:, 1, 0, 0].sum(), copies)  # a path of environment 1, first half
    assert one[:, 0].abs().max() == 0 and one[:, 1, 0].abs().max() > 0 and one[:, 1, 1].abs().max() == 0
    if not per_path:  # every environment reaches every head parameter
        assert (apart.abs() > 0).flatten(3).all()


@pytest.mark.parametrize("kind", POLICIES)
def test_the_head_on_the_representation_is_the_policy(kind):
    policy, batch = learned(kind), stack_episodes([episode("low", 6, 2), episode("high", 6, 2)])
    seen = policy.representation(batch)
    assert seen.shape == (2, 2, 1, 6, 60, 32)
    out = torch.einsum("m...h,moh->m...o", seen, policy.head[..., :-1]) + policy.head[:, None, None, None, None, :, -1]
    if kind == "mlp":
        assert torch.allclose(0.5 + torch.tanh(out), policy(batch), atol=1e-12)
    else:
        lower, upper = policy.band(batch)
        assert torch.allclose(torch.sigmoid(out[..., 1:] - 3.0), (upper - lower) / 2, atol=1e-12)


@pytest.mark.parametrize("kind", POLICIES)
def test_every_parameter_reaches_the_loss(kind):
    policy = learned(kind)
    hedge(policy, episode("medium", 256)).loss.mean().backward()
    for name, p in policy.named_parameters():
        assert (p.grad.abs() > 0).flatten(1).any(1).all(), name


def test_the_linear_head_has_two_right_derivatives():
    head, z = (torch.randn(2, *shape, dtype=torch.float64, generator=generators(1)[0]).requires_grad_() for shape in ((2, 4), (3, 5)))
    assert torch.autograd.gradcheck(policies._Linear.apply, (head, z)) and torch.autograd.gradgradcheck(policies._Linear.apply, (head, z))


@pytest.mark.parametrize("kind", POLICIES)
def test_positions_are_bounded_whatever_the_weights(kind):
    policy = learned(kind)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1e4)
    assert policy(episode("crisis")).abs().max() <= 2.5


@pytest.mark.parametrize("kind", POLICIES)
def test_policy_is_never_told_the_environment(kind):
    policy, calm, storm = learned(kind), episode("low", 8, 2), episode("crisis", 8, 2)
    first, second = policy(stack_episodes([calm, storm])), policy(stack_episodes([storm, calm]))
    assert torch.allclose(first[:, 0], second[:, 1], atol=1e-12) and torch.allclose(first[:, 1], second[:, 0], atol=1e-12)


def test_inventory_has_a_scale_of_its_own():
    policy, plain = learned("mlp"), episode()
    before = policy(plain)
    policy.scale(Scaler(torch.full((2, 4), 5.0).double(), torch.full((2, 4), 3.0).double()))
    recurrent = policy.weight1[..., len(policy.columns):]
    assert recurrent.shape[-1] == 1 and not torch.equal(policy(plain), before)
    assert "inventory" not in COLUMNS and policy.mean.shape == (2, len(USUAL))


def test_a_probe_distorts_one_column_and_nothing_else():
    e = episode("crisis")
    probed = dataclasses.replace(e, probe={"realized_vol": lambda x: 2 * x})
    assert torch.equal(features(probed)[..., -1], 2 * features(e)[..., -1]) and torch.equal(features(probed)[..., :-1], features(e)[..., :-1])
    blind = learned("band", columns=("delta", "gamma", "tau"))
    assert torch.equal(blind(e), blind(probed)) and not torch.equal(ALL["band"](e), ALL["band"](probed))


def test_unknown_feature_is_refused():
    with pytest.raises(KeyError, match="choose from delta, gamma"):
        features(episode(), ("dleta",))


def test_scaler_standardizes_training_data_and_survives_a_constant_column():
    values = torch.cat([features(episode("low", 500)), torch.ones(1, 500, 60, 1)], -1)
    scaler = Scaler.fit(values)
    z = ((values - scaler.mean) / scaler.std).flatten(1, -2)
    assert z.mean(1).abs().max() < 1e-9 and torch.allclose(z.std(1)[0, :4], torch.ones(4).double()) and z[..., 4].abs().max() == 0


def test_whalley_wilmott_stands_still_more_the_dearer_the_trade():
    e = episode("medium", 200)
    turnover = [hedge(WhalleyWilmott(), dataclasses.replace(e, friction=m * e.friction)).turnover.mean() for m in (1, 8)]
    assert turnover[1] < turnover[0] < hedge(Delta(), e).turnover.mean()
    assert hedge(WhalleyWilmott(1e12), e).positions.sub(Delta()(e)).abs().max() < 1e-3  # no fear of cost: delta


def test_delta_vega_needs_the_swap_and_beats_delta_with_it():
    with pytest.raises(ValueError, match="variance_swap"):
        DeltaVega()(episode())
    e = episode("medium", 2000, instruments=("spot", "variance_swap"), friction=0 * ENVIRONMENTS["medium"].friction)
    assert hedge(DeltaVega(), e).pnl.std() < 0.8 * hedge(Delta(), e).pnl.std()


def test_whalley_wilmott_leaves_a_second_instrument_alone():
    alone, both = episode("medium"), episode("medium", instruments=("spot", "variance_swap"))
    positions = WhalleyWilmott()(both)
    assert positions.shape == (1, 16, 60, 2) and positions[..., 1].abs().max() == 0
    assert torch.allclose(positions[..., :1], WhalleyWilmott()(alone), atol=1e-12)


@pytest.mark.parametrize("name, market", [("medium", ENVIRONMENTS["medium"].market), ("crisis", ENVIRONMENTS["crisis"].market)])
def test_delta_vega_by_the_model_beats_the_quote(name, market):
    e = episode(name, 4000, instruments=("spot", "variance_swap"), friction=0 * ENVIRONMENTS[name].friction)
    by_model, by_quote = (hedge(policy, e).pnl.std() for policy in (DeltaVega(market), DeltaVega()))
    assert by_model < by_quote
    assert torch.equal(DeltaVega(ENVIRONMENTS["crisis_jumps"].market)(e), DeltaVega()(e))  # no formula for it: the quote's Greeks


def test_aversion_must_be_positive():
    with pytest.raises(ValueError, match="aversion must be positive, got 0"):
        WhalleyWilmott(0)


@pytest.mark.parametrize("kind", POLICIES)
def test_learned_policy_trades_a_second_instrument(kind):
    policy = learned(kind, n_instruments=2)
    e = episode("medium", 8, instruments=("spot", "variance_swap"))
    assert policy(e).shape == (2, 8, 60, 2) and hedge(policy, e).pnl.shape == (2, 8)


def test_a_single_instrument_policy_leaves_no_dropout_behind():
    policy = learned("band")
    policy.drop(0.3, generators(2), episode().payoff.shape[1:])
    assert not torch.equal(policy(episode()), ALL["band"](episode()))
    policy.dropout = None
    assert torch.equal(policy(episode()), ALL["band"](episode()))


def together(*positions, scale=None):
    "An ensemble, or a blend, of members that always hold the same."
    def held(e):
        return torch.tensor(positions).double().reshape(-1, 1, 1, 1).expand(len(positions), *e.prices[0, :, 1:].shape)
    ensemble = policies.Ensemble(held)
    return ensemble if scale is None else policies.Blend(ensemble, scale=scale)


@pytest.mark.parametrize("kind", POLICIES)
def test_an_ensemble_holds_the_mean_of_its_members(kind):
    policy, e = learned(kind, 3), episode("crisis", 8)
    held = policies.Ensemble(policy)(e)
    assert held.shape == (1, 8, 60, 1) and torch.allclose(held[0], policy(e).mean(0), atol=1e-14)
    assert torch.allclose(policies.Ensemble(learned(kind, 1))(e), learned(kind, 1)(e), atol=1e-14)


def test_a_blend_goes_to_its_anchor_where_members_disagree():
    e = episode()
    delta = Delta()(e)
    assert torch.allclose(together(0.3, 0.3, 0.3, scale=0.02)(e), torch.full_like(delta, 0.3))  # no disagreement: the ensemble
    assert torch.allclose(together(0.5, 0.54, scale=0.04 / 2**0.5)(e), (0.52 + delta) / 2, atol=1e-12)  # as much as the scale: half-way
    assert torch.allclose(together(-5.0, 5.0, scale=0.02)(e), delta, atol=1e-4)
    own = policies.Blend(together(-5.0, 5.0), anchor=NoHedge())
    assert own.scale == 0.02 and own(e).abs().max() < 1e-4


def test_a_blend_needs_members_that_can_disagree():
    with pytest.raises(ValueError, match="two members or more.* got 1; train several seeds"):
        policies.Blend(policies.Ensemble(learned("band", 1)))(episode())
    for scale in (0, -0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            policies.Blend(together(0.1, 0.2), scale=scale)


@pytest.mark.parametrize("scale", [None, 0.02])
def test_members_of_an_ensemble_meet_the_same_paths(scale):
    with pytest.raises(ValueError, match="must meet the same paths, got 2 sets"):
        together(0.1, 0.2, scale=scale)(episode(members=2))


def test_a_cached_policy_is_asked_once_per_episode():
    asked = []
    def counted(e):
        asked.append(e)
        return Delta()(e)
    policy, one, other = policies.Cached(counted), episode("low"), episode("crisis")
    for e in (one, one, other, one):
        assert torch.equal(policy(e), Delta()(e))
    assert asked == [one, other, one]


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("own, given", [(1, ("spot", "variance_swap")), (2, ("spot",))])
def test_a_policy_trades_as_many_instruments_as_it_was_built_for(kind, own, given):
    policy, e = learned(kind, n_instruments=own), episode("medium", 8, instruments=given)
    for use in (policy, policy.representation):
        with pytest.raises(ValueError, match=rf"trades {own} instrument\(s\), got an episode with {len(given)}; build it with n_instruments={len(given)}"):
            use(e)


@pytest.mark.parametrize("kind", POLICIES)
def test_copies_of_the_head_must_fit_the_groups(kind):
    policy, batch = learned(kind), stack_episodes([episode("low", 8, 2), episode("high", 8, 2)], halves=2)
    assert torch.allclose(policy(batch, head=policy.head_copies(2)), policy(batch), atol=1e-12)  # one copy for both halves
    with pytest.raises(ValueError, match=r"one per path \(16\), one per group of paths \(4\) .* got 3; build them with head_copies"):
        policy(batch, head=policy.head_copies(3))


def test_the_minimum_variance_delta_is_the_regression_of_the_option_on_the_spot():
    """One day of Heston: the slope of the change of the option's value on the spot's, at the money and off it."""
    market = Heston(v0=0.04, kappa=3, theta=0.04, xi=0.5, rho=-0.7)
    paths = market.simulate(400_000, 2, 1 / 2520, torch.Generator().manual_seed(0), dtype=torch.float64)
    for strike in (0.95, 1.0, 1.05):
        call, tau = EuropeanCall(strike), 0.25
        quote = market.expected_variance(paths.variance[0, :, 1], torch.tensor(tau - 1 / 2520, dtype=torch.float64)).sqrt()
        now = market.expected_variance(torch.tensor([0.04], dtype=torch.float64), torch.tensor(tau, dtype=torch.float64)).sqrt()
        change = call.price(paths.spot[0, :, 1], tau - 1 / 2520, quote) - call.price(1.0, tau, now)
        move = paths.spot[0, :, 1] - 1
        slope = (change * move).mean() / move.square().mean()
        held = call.delta(torch.ones(1, dtype=torch.float64), tau, now) + call.vega(torch.ones(1, dtype=torch.float64), tau, now) * (1 - math.exp(-3 * tau)) / (3 * tau) / (2 * now) * -0.7 * 0.5
        assert abs(slope - held.item()) < 3e-3 < abs(call.delta(torch.ones(1, dtype=torch.float64), tau, now).item() - held.item())


@pytest.mark.parametrize("name", ["medium", "crisis", "crisis_jumps", "coloured_home"])
def test_the_minimum_variance_delta_holds_less_than_delta_and_its_day_varies_less(name):
    e = episode(name, 20_000)
    least, delta = (hedge(policy, e) for policy in (MinimumVarianceDelta(ENVIRONMENTS[name].market), Delta()))
    assert (least.positions <= delta.positions + 1e-6).all()
    if name in ("medium", "crisis"):
        assert least.daily_pnl()[0, :, 1:40].std() < delta.daily_pnl()[0, :, 1:40].std()


def test_a_minimum_variance_delta_without_parameters_is_refused():
    with pytest.raises(ValueError, match="needs the parameters of a Heston, got GBM; take Delta"):
        MinimumVarianceDelta(GBM(0.2))


def test_a_group_holds_the_mean_of_its_members_and_groups_share_none():
    held = torch.arange(6.0).view(6, 1, 1, 1)
    together = policies.Groups(lambda episode: held, 3)
    assert together(None).flatten().tolist() == [1.0, 4.0]
    with pytest.raises(ValueError, match="groups of 4 need a multiple of as many members, got 6"):
        policies.Groups(lambda episode: held, 4)(None)


def test_a_band_stands_around_the_centre_that_it_is_given():
    least = MinimumVarianceDelta(ENVIRONMENTS["medium"].market)
    e = episode("crisis")
    assert WhalleyWilmott(centre=Delta())(e).equal(WhalleyWilmott()(e))
    assert not WhalleyWilmott(centre=least)(e).equal(WhalleyWilmott()(e))
    free = episode("crisis", friction=Proportional(0.0))
    assert WhalleyWilmott(centre=least)(free).allclose(least(free))  # where trading is free the band has no width


def test_a_band_reaches_in_units_of_each_instrument():
    "The edges of a policy driven to its ends, about the hedge by the quote: in shares, and in swaps."
    e = episode("medium", 64, instruments=("spot", "variance_swap"))
    policy = learned("band", n_instruments=2)
    with torch.no_grad():
        policy.head.zero_()
        policy.head[..., -1] = torch.tensor([50.0, 50.0, -50.0, -50.0])  # centres as far up as they go, bands of no width
        lower, upper = policy.band(e)
    away = lower - DeltaVega()(e)
    torch.testing.assert_close(lower, upper)
    torch.testing.assert_close(away, torch.tensor([0.5, 10.0]).double().expand_as(away))


def test_the_anchor_of_two_instruments_is_the_hedge_by_the_quote():
    e = episode("medium", 64, instruments=("spot", "variance_swap"))
    away = policies.anchor_distance(hedge(lambda e: DeltaVega()(e) + torch.tensor([0.1, 1.0]), e))
    torch.testing.assert_close(away, torch.full_like(away, 0.01))
    alone = episode("medium", 64)
    away = policies.anchor_distance(hedge(lambda e: Delta()(e) + 0.1, alone))
    torch.testing.assert_close(away, torch.full_like(away, 0.01))
