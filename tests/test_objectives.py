"""Objectives: closed forms, unbiasedness, symmetry, known answers on small worlds, and bad input."""
import math
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from hirm.markets import GBM, Heston
from hirm.objectives import (METHODS, Method, Sample, Schedule, carried_weights, environment_variance, erm, find_method, halves, head_gradients, product,
                             scale_gradients)
from hirm.pricing import delta
from hirm.risk import CVaR, Mean, cvar, tail_weights

COMPARING = ("groupdro", "wcvar", "vrex", "hgca", "iga", "fishr", "term", "erm_pool")
NEEDS_HEAD = ("hirm", "hgca", "iga", "fishr")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def delta_hedge(market, n_paths, seed, rate=0.0):
    """Payoff and delta's gain less cost of a 60-day at-the-money call, in % of spot; no cost of the final unwind."""
    paths = market.simulate(n_paths, 60, 1 / 252, torch.Generator().manual_seed(seed), dtype=torch.float64)
    position = delta(paths.spot[..., :-1], 1.0, paths.tau[:-1], paths.iv[..., :-1])
    trade = position.diff(dim=-1, prepend=torch.zeros_like(position[..., :1])).abs()
    gain = (position * paths.spot.diff()).sum(-1) - rate * (trade * paths.spot[..., :-1]).sum(-1)
    return 100 * (paths.spot[0, :, -1] - 1).clamp_min(0), 100 * gain[0]


@pytest.fixture(scope="module")
def heston():
    return delta_hedge(Heston(0.0324, 3.0, 0.0324, 0.22, -0.7), 200_000, seed=0)


@pytest.fixture(scope="module")
def black_scholes():
    return delta_hedge(GBM(0.18), 200_000, seed=1, rate=1e-3)


def slope(payoff, gain, w):
    """The exact derivative of CVaR-95 in the size of the hedge."""
    return -gain[(payoff - w * gain).topk(len(gain) // 20).indices].mean()


def hedge_sample(method, seed=0, n_members=3, n_environments=3, n_paths=256, dtype=torch.float64, same=False, risk=CVaR(), order=slice(None)):
    """A small world with one linear head on a random representation: payoff minus the head's gain."""
    def draw(*shape, k):
        x = normal(n_members, 1 if same else n_environments, n_paths // 2 if same else n_paths, *shape, seed=seed + k, dtype=dtype)
        return x.expand(-1, n_environments, *x.shape[2:]).repeat(1, 1, 2, *[1] * len(shape)) if same else x[:, order]
    representation, moves = draw(5, 6, k=1), 0.1 * draw(5, k=2)
    head = normal(n_members, 6, seed=seed + 3, dtype=dtype).requires_grad_()
    copies = head[:, None, None].expand(-1, n_environments, n_paths if "path_head" in method.needs else 2, -1)
    position = (representation.unflatten(2, (copies.shape[2], -1)) * copies[:, :, :, None, None]).sum(-1).flatten(2, 3)
    gain = (position * moves).sum(-1)
    sizes = 1.0 if same else 1 + 0.5 * torch.arange(n_environments, dtype=dtype)[order, None]
    return Sample(sizes * (moves.sum(-1).clamp_min(0) - gain), risk, -sizes * gain, copies, position.square().mean((-1, -2))), head


# --- the dummy scale -------------------------------------------------------------------------------------------------------------

def test_the_slope_in_the_size_of_the_hedge_has_its_closed_form(black_scholes):
    payoff, gain = black_scholes
    for w in (0.9, 1.0, 1.1):
        finite = (cvar(payoff - (w + 1e-3) * gain) - cvar(payoff - (w - 1e-3) * gain)) / 2e-3
        assert slope(payoff, gain, w).item() == pytest.approx(finite.item(), abs=0.1)
        sample = Sample((payoff - w * gain)[None, None], CVaR(smoothing=0.02), -gain[None, None])
        assert scale_gradients(sample, {}).mean().item() == pytest.approx(finite.item(), abs=0.1)


def test_the_risk_is_convex_in_the_size_of_the_hedge(heston):
    payoff, gain = heston
    risks = torch.stack([cvar(payoff - w * gain) for w in torch.linspace(0.5, 1.5, 21).double()])
    assert (risks.diff().diff() > -1e-9).all()


def test_the_curvature_is_density_times_variance_at_the_edge(heston):
    payoff, gain = heston
    loss = payoff - gain
    finite = ((slope(payoff, gain, 1.01) - slope(payoff, gain, 0.99)) / 0.02).item()
    tau = loss.quantile(0.95)
    near = (loss - tau).abs() < 0.1
    density = near.double().mean() / 0.2
    assert (density * gain[near].var() / 0.05).item() == pytest.approx(finite, rel=0.08)
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    smooth, = torch.autograd.grad(-(tail_weights(payoff - w * gain) * gain).sum(), w)
    assert smooth.item() == pytest.approx(finite, rel=0.08)


@pytest.mark.parametrize("w", [1.0, 0.9])
def test_the_soft_tail_has_the_second_derivative_that_sorting_loses(heston, w):
    payoff, gain = heston
    finite = ((slope(payoff, gain, w + 0.01) ** 2 - slope(payoff, gain, w - 0.01) ** 2) / 0.02).item()
    size = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    for smoothing in (0.05, 0.1, 0.15, 0.2):
        sample = Sample((payoff - size * gain)[None, None], CVaR(smoothing=smoothing), -gain[None, None])
        square = product(scale_gradients(sample, {})[..., None]).sum()
        assert torch.autograd.grad(square, size)[0].item() == pytest.approx(finite, rel=0.1)
    naive, = torch.autograd.grad(cvar(payoff - size * gain), size, create_graph=True)
    assert not naive.requires_grad and naive.item() == pytest.approx(slope(payoff, gain, w).item())


def test_the_head_penalty_descends_in_the_right_direction(heston):
    """The gradient of ‖∇_ψ R‖² against finite differences of the exact head gradient, for a head on two features."""
    payoff, gain = heston
    feature = torch.stack((gain, gain * (payoff > 2).double()), -1)
    head = torch.tensor([[0.93, 0.02]], dtype=torch.float64, requires_grad=True)
    copies = head[:, None, None].expand(1, 1, 2, 2)
    loss = payoff - (feature.unflatten(0, (2, -1)) * copies[0, 0, :, None]).sum(-1).flatten()
    square = product(head_gradients(Sample(loss[None, None], CVaR(), head=copies), {})).sum()
    gradient, = torch.autograd.grad(square, head)
    def exact(psi): return feature[(payoff - feature @ psi).topk(10_000).indices].mean(0).square().sum()
    for i in range(2):
        step = 0.01 * torch.eye(2, dtype=torch.float64)[i]
        finite = (exact(head[0].detach() + step) - exact(head[0].detach() - step)) / 0.02
        assert gradient[0, i].item() == pytest.approx(finite.item(), rel=0.15)


# --- the noise of a square ------------------------------------------------------------------------------------------------------

def test_the_product_of_halves_is_unbiased_and_the_square_is_not(black_scholes):
    payoff, gain = black_scholes
    for size, truth, published_plain in ((0.9765, 0.0, 14.55), (1.0, 6.998, 9.91)):
        exact = slope(payoff, gain, size).item() ** 2
        assert exact == pytest.approx(truth, abs=0.5)
        loss = payoff - size * gain
        small = Sample(loss.view(-1, 1, 64), CVaR(smoothing=0.02), -gain.view(-1, 1, 64))
        pair = scale_gradients(small, {"threshold": small.risk.threshold(loss).expand(3125, 1)})[:, 0]
        halves, plain = product(pair[..., None]), pair.mean(-1).square()
        error = halves.std().item() / 3125**0.5
        assert abs(halves.mean().item() - exact) < 4 * error
        assert plain.mean().item() > exact + 4 * plain.std().item() / 3125**0.5
        own = (tail_weights(loss.view(-1, 64), 0.95, 0.02) * gain.view(-1, 64)).sum(-1).square().mean().item()
        assert own == pytest.approx(published_plain, rel=0.15)
        assert (halves < 0).any()  # an estimate of a square, not clamped


def test_the_threshold_is_carried_and_does_not_look_at_its_own_batch():
    loss = normal(2, 2, 64)
    state = {"threshold": torch.full((2, 2), 1.5, dtype=torch.float64)}
    weights = carried_weights(Sample(loss), state)
    assert torch.allclose(weights, tail_weights(loss.unflatten(-1, (2, -1)), threshold=torch.full((2, 2, 1), 1.5)).flatten(-2))
    own = CVaR().threshold(loss)
    assert torch.allclose(state["threshold"], 1.5 + 0.1 * (own - 1.5)) and not state["threshold"].requires_grad
    first = {}
    carried_weights(Sample(loss), first)
    assert torch.equal(first["threshold"], own)


# --- symmetry -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", METHODS)
def test_permuting_environments_changes_nothing(name):
    method, order, weight = METHODS[name], [2, 0, 1], torch.full((3,), 0.7, dtype=torch.float64)
    one, other = {}, {}
    for seed in range(2):  # the second call meets a state
        (sample, head), (shuffled, same_head) = hedge_sample(method, seed), hedge_sample(method, seed, order=order)
        value, permuted = method(sample, weight, one), method(shuffled, weight, other)
        assert torch.allclose(value, permuted)
        assert torch.allclose(torch.autograd.grad(value.sum(), head)[0], torch.autograd.grad(permuted.sum(), same_head)[0])
    for key in one: assert torch.allclose(one[key][:, order], other[key])


@pytest.mark.parametrize("name", METHODS)
def test_weight_zero_is_erm_to_the_last_bit(name):
    method = METHODS[name]
    for seed in range(3):
        sample, head = hedge_sample(method, seed=seed, dtype=torch.float32)
        reference, same_head = hedge_sample(method, seed=seed, dtype=torch.float32)
        state = {}
        value = method(sample, torch.zeros(3), state)
        assert torch.equal(value, erm(reference))
        assert torch.equal(torch.autograd.grad(value.sum(), head)[0], torch.autograd.grad(erm(reference).sum(), same_head)[0])
        assert torch.equal(method(sample, None, {}), erm(reference))


@pytest.mark.parametrize("name", METHODS)
def test_members_do_not_see_each_other(name):
    method, weight = METHODS[name], torch.tensor([0.2, 0.5, 3.0], dtype=torch.float64)
    sample, _ = hedge_sample(method)
    together = method(sample, weight, {})
    sample, head = hedge_sample(method)
    crowd = Sample(sample.loss, sample.risk, sample.scale_gradient, sample.head, sample.anchor)
    jacobian = torch.stack([torch.autograd.grad(v, head, retain_graph=True)[0] for v in method(crowd, weight, {})])
    others = ~torch.eye(3, dtype=torch.bool)
    assert (jacobian[others] == 0).all() and (jacobian[~others].abs().sum(-1) > 0).all()
    for i in range(3):
        single, _ = hedge_sample(method)
        changed = torch.where(torch.arange(3) == i, weight, 0.1)
        assert torch.allclose(method(single, changed, {})[i], together[i])


@pytest.mark.parametrize("name", COMPARING)
def test_identical_environments_make_a_comparing_method_erm(name):
    method = METHODS[name]
    sample, head = hedge_sample(method, same=True)
    weight, state = torch.full((3,), 0.5, dtype=torch.float64), {}
    for _ in range(3): value = method(sample, weight, state)
    assert torch.allclose(value, erm(sample), rtol=0, atol=1e-9)
    gradient, plain = (torch.autograd.grad(v.sum(), head, retain_graph=True)[0] for v in (value, erm(sample)))
    if name not in ("erm_pool", "wcvar"):
        assert torch.allclose(gradient, plain, atol=1e-8)
    else:  # repeated losses tie: any subgradient is right
        assert torch.allclose(gradient, plain, atol=0.05)


# --- gradients of the head -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("risk", [CVaR(), Mean()])
def test_every_environment_and_half_reaches_every_head_parameter(risk):
    sample, _ = hedge_sample(METHODS["hirm"], risk=risk)
    gradient = head_gradients(sample, {})
    assert gradient.shape == (3, 3, 2, 6) and (gradient != 0).all()
    weights = carried_weights(sample, {}).detach()
    for e in range(3):
        for half in range(2):
            part = slice(128 * half, 128 * (half + 1))
            sample, head = hedge_sample(METHODS["hirm"], risk=risk)
            own, = torch.autograd.grad((weights[:, e, part] * sample.loss[:, e, part]).sum(), head)
            assert torch.allclose(own, gradient[:, e, half])


def test_the_head_gradient_is_the_derivative_of_the_exact_risk():
    sample, head = hedge_sample(METHODS["hirm"], n_paths=100_000, risk=CVaR(smoothing=0.01))
    exact, = torch.autograd.grad(sample.risk(sample.loss).sum(), head, retain_graph=True)
    assert torch.allclose(head_gradients(sample, {}).mean(2).sum(1), exact, atol=0.02)


def test_fishr_of_a_mean_is_the_variance_of_per_path_gradients():
    sample, _ = hedge_sample(METHODS["fishr"], risk=Mean())
    per_path, = torch.autograd.grad(sample.loss.sum(), sample.head, retain_graph=True)
    variance = per_path.unflatten(2, (2, -1)).var(3)
    expected = product(variance - variance.mean(1, keepdim=True)).mean(-1)
    value = METHODS["fishr"](sample, torch.ones(3, dtype=torch.float64), {}) - erm(sample)
    assert torch.allclose(value, expected)


def test_a_penalty_stops_at_the_head():
    """No second backward through the representation: the head's gradient is asked of the copies alone."""
    called = []
    sample, _ = hedge_sample(METHODS["hirm"])
    body = normal(3, 3, 256, seed=9).requires_grad_()
    body.register_hook(lambda g: called.append(1))
    head_gradients(replace(sample, loss=sample.loss + body), {})
    assert not called


# --- adversaries ----------------------------------------------------------------------------------------------------------------

def test_groupdro_weights_stay_on_the_simplex_and_travel():
    method, weight, state, states = METHODS["groupdro"], torch.tensor([0.0, 0.5, 50.0]), {}, []
    for seed in range(6):
        sample, _ = hedge_sample(method, seed=seed, dtype=torch.float32)
        method(sample, weight, state)
        states.append({k: v.clone() for k, v in state.items()})
        assert (state["q"] >= 0).all() and torch.allclose(state["q"].sum(-1), torch.ones(3)) and state["q"].shape == (3, 3)
    assert torch.equal(state["q"][0], torch.full((3,), 1 / 3))  # no weight, no adversary
    resumed = {k: v.clone() for k, v in states[2].items()}
    for seed in range(3, 6): method(hedge_sample(method, seed=seed, dtype=torch.float32)[0], weight, resumed)
    assert torch.equal(resumed["q"], state["q"])
    assert state["q"][2].argmax() == 2  # the widest environment


def test_groupdro_moves_by_the_exponential_of_the_risk():
    sample, _ = hedge_sample(METHODS["groupdro"])
    state = {"q": torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).expand(3, 3)}
    value = METHODS["groupdro"](sample, torch.full((3,), 0.4, dtype=torch.float64), state)
    risks = sample.risk(sample.loss)
    expected = torch.tensor([0.2, 0.3, 0.5]) * torch.exp(0.4 * risks)
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(state["q"], expected) and torch.allclose(value, (expected * risks).sum(-1))
    assert not state["q"].requires_grad


# --- known answers --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, weight, answer", [("erm", 0.0, (0.5, 0.75, 0.1333)), ("groupdro", 0.3, (0.5, 0.75, 0.2)), ("wcvar", 1.0, (0.5, 0.75, 0.2)),
                                                  ("term", 200.0, (0.5, 0.75, 0.2)), ("vrex", 1e4, (0.5, 0.5, 0.5))])
def test_population_answers_of_the_discrete_example(name, weight, answer):
    """Krueger et al. 2021: three values of x, a binary y, log loss; 400 rows hold the population exactly."""
    p_x = torch.tensor([[0.4, 0.1, 0.5], [0.1, 0.4, 0.5], [0.1, 0.4, 0.5]])
    p_y = torch.tensor([[0.5, 0.75, 0.1], [0.5, 0.75, 0.1], [0.5, 0.75, 0.2]])
    rows = [[(k, 1.0 if i < round(200 * float(p_x[e, k] * p_y[e, k])) else 0.0) for k in range(3) for i in range(round(200 * float(p_x[e, k])))] * 2 for e in range(3)]
    rows = torch.tensor(rows, dtype=torch.float64)
    x, y = rows[..., 0].long(), rows[..., 1]
    logit = torch.tensor([[0.4, 0.55, 0.4]], dtype=torch.float64).logit().requires_grad_()
    optimizer = torch.optim.Adam([logit], lr=0.02)
    annealing, state = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500), {}
    for _ in range(1500):
        p = logit.sigmoid()[:, x]
        value = METHODS[name](Sample(-(y * p.log() + (1 - y) * (1 - p).log()), Mean()), torch.tensor([weight], dtype=torch.float64), state)
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        annealing.step()
    assert torch.allclose(logit.sigmoid().detach()[0], torch.tensor(answer, dtype=torch.float64), atol=0.012 if name == "vrex" else 0.003)


@dataclass(frozen=True)
class NormalRisk:
    """CVaR-95 of centred normal losses, by their standard deviation."""
    factor: float = 2.0627128

    def __call__(self, loss): return self.factor * loss.square().mean(-1).sqrt()

    def threshold(self, loss): return torch.zeros_like(loss[..., 0])

    def weights(self, loss, threshold=None): return self.factor**2 * loss / (loss.shape[-1] * self(loss)[..., None])


def toy(name, weight, scales=(0.5, 1.0, 1.5), in_units=False, steps=150, start=(0.5, 0.5)):
    """The hedge of y = x + s e by x and z = y + n, learnt from exact moments."""
    sign, regime = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)[:, None]
    design = torch.cartesian_prod(sign, sign, sign).repeat(2, 1)
    x = regime * design[:, 0]
    y = x + regime * design[:, 1]
    z = y + design[:, 2]
    hedge = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimizer, state = torch.optim.LBFGS([hedge], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14), {}
    copies = 16 if "path_head" in METHODS[name].needs else 2

    def closure():
        optimizer.zero_grad()
        head = hedge[:, None, None].expand(1, len(scales), copies, 2)
        used = head.repeat_interleave(16 // copies, 2)
        gain = used[..., 0] * x + used[..., 1] * z
        unit = regime if in_units else 1.0
        sample = Sample((y - gain) / unit, NormalRisk(), -gain / unit, head, torch.zeros(1, len(scales), dtype=torch.float64))
        value = METHODS[name](sample, torch.tensor([weight], dtype=torch.float64), dict(state)).sum()
        value.backward()
        return value
    optimizer.step(closure)
    return hedge.detach()[0]


def crisis(hedge):
    return 2.0627128 * math.sqrt(((1 - hedge[0]) ** 2 + 1) * 16 + hedge[1] ** 2 * 33)


def test_the_order_of_methods_in_the_volatility_regime_toy():
    found = {"causal": crisis(torch.tensor([1.0, 0.0])), "erm": crisis(toy("erm", 0.0)), "groupdro": crisis(toy("groupdro", 100.0)),
             "vrex": crisis(toy("vrex", 1e3)), "vrex in units": crisis(toy("vrex", 1e3, in_units=True)), "irm": crisis(toy("irm", 1e4))}
    expected = {"causal": 8.25, "erm": 10.99, "groupdro": 12.96, "vrex": 15.63, "vrex in units": 8.29, "irm": 8.26}
    assert found == pytest.approx(expected, abs=0.011)


def test_the_dummy_scale_has_a_second_zero_at_no_hedge():
    hedge = toy("irm", 1e4, in_units=True)
    assert hedge.abs().max() < 0.05 and crisis(hedge) > 11


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("wcvar",)])
def test_on_identical_regimes_every_method_finds_the_hedge_of_erm(name):
    weight = {"groupdro": 0.5, "erm_reg": 0.0}.get(name, 1.0)
    found = toy(name, weight, scales=(1.0, 1.0, 1.0), start=(0.8, 0.3))
    assert torch.allclose(found, torch.tensor([0.5, 0.5], dtype=torch.float64), atol=1e-4)  # the regression of y on x and z


def unit_test(name, weight, n=500, steps=500, members=8, seed=0):
    """Example 1 of Aubin et al. 2021 in three environments: test error with shuffled effects over the causal predictor's."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    causes, effects, noise = draw(members, 5, 5) / 5, draw(members, 5, 5) / 5, torch.tensor([0.1, 1.5, 2.0])[:, None, None]

    def environments(n, shuffled=False):
        x = noise * draw(members, 3, n, 5)
        y = x @ causes[:, None] + noise * draw(members, 3, n, 5)
        z = y @ effects[:, None] + draw(members, 3, n, 5)
        return torch.cat((x, z[:, :, torch.randperm(n, generator=generator)] if shuffled else z), -1), y.sum(-1)

    (inputs, target), (tests, answers), state = environments(n), environments(4000, shuffled=True), {}
    predictor = torch.zeros(members, 10, requires_grad=True)
    optimizer = torch.optim.Adam([predictor], lr=0.03)
    for _ in range(steps):
        head = predictor[:, None, None].expand(members, 3, 2, 10)
        guess = (inputs.unflatten(2, (2, -1)) * head[:, :, :, None]).sum(-1).flatten(2)
        sample = Sample((guess - target) ** 2, Mean(), 2 * (guess - target) * guess, head)
        optimizer.zero_grad()
        METHODS[name](sample, torch.full((members,), weight), state).sum().backward()
        optimizer.step()
    causal = torch.cat((causes.sum(-1), torch.zeros(members, 5)), -1)
    error = lambda p: ((tests @ p.detach()[:, None, :, None])[..., 0] - answers).square().mean((1, 2))
    return error(predictor) / error(causal)


def test_linear_unit_test_example_1():
    scores = {name: unit_test(name, weight) for name, weight in (("erm", 0.0), ("irm", 1.0), ("iga", 1.0))}
    excess = {name: (score - 1).mean().item() for name, score in scores.items()}
    assert (scores["irm"] < scores["erm"]).float().mean() >= 0.8 and 0 < excess["irm"] < 0.6 * excess["erm"]
    assert excess["iga"] > excess["erm"]


# --- the register and bad input --------------------------------------------------------------------------------------------------

def test_the_register_holds_the_methods_of_the_design_under_their_names():
    assert list(METHODS) == ["erm", "erm_pool", "erm_reg", "groupdro", "wcvar", "vrex", "irm", "hirm", "hgca", "iga", "fishr", "term"]
    assert all(method.name == name for name, method in METHODS.items())
    assert METHODS["erm_reg"].weight_decay == 1e-3 and METHODS["erm_reg"].dropout == 0.3


def test_an_unknown_method_is_refused_with_its_nearest_name():
    with pytest.raises(ValueError, match=r"unknown method 'imr', did you mean 'irm'\? choose from erm, erm_pool"):
        find_method("imr")
    assert find_method("irm") is METHODS["irm"]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_negative_weight_is_refused(weight):
    with pytest.raises(ValueError, match="penalty_weight must be finite and not negative, got .*; 0 is ERM, irm's default is"):
        METHODS["irm"].check(2, [0.1, weight])


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].min_environments > 1])
def test_a_method_that_compares_needs_two_environments(name):
    with pytest.raises(ValueError, match=f"{name} compares environments and needs at least 2, got 1; add one, or train erm"):
        METHODS[name](hedge_sample(METHODS[name], n_environments=1)[0], torch.ones(3), {})
    METHODS["erm"].check(1)


def test_what_a_method_differentiates_must_be_there():
    loss = normal(1, 2, 8)
    weight = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="differentiates the sample's scale_gradient, got none; supply"):
        METHODS["irm"](Sample(loss), weight, {})
    for head, got in ((None, "none"), (torch.zeros(1, 2, 2, 0, requires_grad=True), "an empty one")):
        with pytest.raises(ValueError, match=f"head, got {got}; give the policy a head with parameters"):
            METHODS["hirm"](Sample(loss, head=head), weight, {})
    with pytest.raises(ValueError, match="one copy of the head per path \\(256\\), got 2"):
        METHODS["fishr"](hedge_sample(METHODS["hirm"])[0], torch.ones(3), {})
    with pytest.raises(ValueError, match="even number of paths"):
        Sample(loss[..., :7])
    with pytest.raises(ValueError, match="confidence"):
        METHODS["wcvar"](Sample(loss, NormalRisk()), weight, {})


def test_a_user_adds_a_method():
    METHODS["range"] = Method("range", lambda s, weight, state: erm(s) + weight * (s.risk(s.loss).amax(-1) - s.risk(s.loss).amin(-1)), 0.5, min_environments=2)
    try:
        sample, _ = hedge_sample(METHODS["range"])
        risks = sample.risk(sample.loss)
        assert torch.allclose(find_method("range")(sample, torch.full((3,), 0.5), {}), risks.mean(-1) + (risks.amax(-1) - risks.amin(-1)) / 2)
    finally:
        del METHODS["range"]


# --- the schedule ----------------------------------------------------------------------------------------------------------------

def test_the_schedule_has_three_phases():
    schedule, full = Schedule(20, 10, 50), torch.tensor([0.0, 2.0])
    weights = [schedule.weight(step, full) for step in range(50)]
    assert all(w is None for w in weights[:20]) and all(torch.equal(w, full) for w in weights[29:])
    ramp = torch.stack(weights[20:30])
    assert torch.allclose(ramp.diff(dim=0)[:, 1], torch.tensor(0.2)) and (ramp[:, 0] == 0).all() and ramp[0, 1] > 0
    assert [step for step in range(50) if schedule.turns_on(step)] == [20]
    assert torch.equal(Schedule(0, 0, 5).weight(0, full), full) and not Schedule(0, 0, 5).turns_on(0)
    with pytest.raises(ValueError, match="must fit into the updates, got 30 \\+ 30 of 50"):
        Schedule(30, 30, 50)


def test_the_loss_is_divided_by_a_large_weight():
    sample, _ = hedge_sample(METHODS["vrex"])
    small, large = (METHODS["vrex"](sample, torch.full((3,), w, dtype=torch.float64), {}) for w in (0.5, 100.0))
    penalty = environment_variance(sample.risk(sample.loss.unflatten(-1, (2, -1)))[..., None])
    assert torch.allclose(small, erm(sample) + 0.5 * penalty) and torch.allclose(large, erm(sample) / 100 + penalty)


# --- halves, and a dummy with a bias ----------------------------------------------------------------------------------------------

def test_rows_sorted_by_class_are_no_halves():
    loss = torch.cat([normal(2, 3, 256, seed=1), 1 + normal(2, 3, 256, seed=2)], -1)  # two classes, one after the other
    with pytest.warns(UserWarning, match=r"independent draws.*means lie .* standard deviations apart; shuffle the rows"):
        split = halves(loss)
    assert torch.equal(split.flatten(-2), loss)
    flat = torch.cat([torch.zeros(1, 1, 64), torch.ones(1, 1, 64)], -1)
    with pytest.warns(UserWarning, match="means lie 2 standard deviations apart"):
        METHODS["irm"](Sample(flat.expand(1, 2, -1), Mean(), flat.expand(1, 2, -1)), torch.ones(1), {})


def test_rows_in_random_order_pass_whatever_their_law():
    generator = torch.Generator().manual_seed(3)
    heavy = torch.rand(2000, 5, 256, generator=generator, dtype=torch.float64) ** -2.0  # no mean at all
    rare = (torch.rand(2000, 5, 256, generator=generator) < 0.01).double()
    shuffled = torch.cat([torch.zeros(128), torch.ones(128)])[torch.randperm(256, generator=generator)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (heavy, rare, shuffled, torch.full((1, 256), 0.1), torch.full((1, 256), torch.nan), torch.arange(256), torch.zeros(0, 256)):
            halves(rows)
    with pytest.raises(ValueError, match="even number of paths, got 3"):
        halves(torch.zeros(2, 3))


def test_a_dummy_with_scale_and_bias_is_a_head():
    """IRMv1 for squared errors, as `irm` says that it is had; and what a bias does to a CVaR: nothing."""
    value, target = normal(2, 3, 128, seed=1), normal(2, 3, 128, seed=2)
    dummy = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 3, 2, 2).requires_grad_()
    scale, bias = dummy.unbind(-1)
    prediction = (scale[..., None] * value.unflatten(-1, (2, -1)) + bias[..., None]).flatten(-2)
    sample = Sample((prediction - target) ** 2, Mean(), head=dummy)
    error = 2 * (value - target)
    by_scale, by_bias = (x.unflatten(-1, (2, -1)).mean(-1).prod(-1) for x in (error * value, error))
    weight = torch.full((2,), 0.5, dtype=torch.float64)
    assert torch.allclose(METHODS["hirm"](sample, weight, {}), erm(sample) + 0.5 * (by_scale + by_bias).mean(-1))
    shifted = Sample((value.unflatten(-1, (2, -1)) + bias[..., None]).flatten(-2), CVaR(), head=dummy)
    by_bias = head_gradients(shifted, {})[..., 1].mean(2)  # both halves, for they share the threshold
    assert torch.allclose(by_bias, torch.ones(2, 3, dtype=torch.float64), atol=0.02)  # of a sample: up to the smoothing


def test_a_weight_that_nothing_reads_is_refused():
    for name, method in METHODS.items():
        if name == "erm":
            with pytest.raises(ValueError, match="penalty_weight must be left out for erm, whose objective has no penalty to weigh, got 0.1"): method.check(2, [0.1])
        else:
            method.check(2, [0.3])
    METHODS["erm"].check(2, [0.0])
    Method("mine", lambda sample, weight, state: sample.loss.mean((1, 2)) + weight).check(2, [3.0])
    with pytest.raises(ValueError, match="penalty_weight must be left out for mine"): Method("mine", lambda sample, weight, state: sample.loss.mean((1, 2))).check(2, [3.0])


@pytest.mark.parametrize(("given", "got"), [(lambda loss: None, "None"), (lambda loss: 0.3, "0.3"), (lambda loss: loss.mean(), r"\(\)"), (lambda loss: loss.mean(-1), r"\(2, 2\)")])
def test_an_objective_is_one_number_a_member(given, got):
    method = Method("mine", lambda sample, weight, state: given(sample.loss))
    with pytest.raises(ValueError, match=rf"method mine: its objective must be one number a member, \(2,\), got {got}; sum or average"):
        method(SimpleNamespace(loss=torch.ones(2, 2, 8)), torch.ones(2), {})
