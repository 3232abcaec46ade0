"""Risks against closed forms and published numbers; the soft tail against the exact one."""
import math
import warnings

import numpy as np
import pytest
import scipy.stats as st
import torch

from hirm.risk import CVaR, Entropic, Mean, cvar, cvar_error, cvar_optimal_scale, entropic, mean_loss, smoothed_var, tail_weights, worst_mixture


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiles(n=1_000_000):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_the_tail_counts_its_last_loss_by_its_fraction():
    ten = torch.arange(10, dtype=torch.float64)
    assert cvar(ten, 0.75).item() == pytest.approx(8.2, abs=1e-12)
    assert cvar(ten.flip(0)[None].T, 0.75, dim=0).item() == pytest.approx(8.2, abs=1e-12)
    assert cvar(ten, 0.99).item() == 9.0
    assert cvar(torch.arange(1000.0).double()).item() == pytest.approx(974.5)  # 1000·0.05 is not 50 in floating point


@pytest.mark.parametrize("law, value", [
    (lambda u: math.sqrt(2) * torch.erfinv(2 * u - 1), 2.0627128075), (lambda u: -torch.log1p(-u), 3.9957323), (lambda u: u, 0.975),
    (lambda u: torch.exp(math.sqrt(2) * torch.erfinv(2 * u - 1)), 8.5572269)], ids=["normal", "exponential", "uniform", "lognormal"])
def test_cvar_of_known_laws(law, value):
    assert cvar(law(quantiles())).item() == pytest.approx(value, rel=5e-5)


def test_the_standard_error_of_cvar_is_the_published_one():
    estimates = cvar(normal(2000, 2000))
    assert estimates.std().item() * 2000**0.5 == pytest.approx(2.466, rel=4 / 4000**0.5)


def test_cvar_is_the_minimum_of_rockafellar_and_uryasev():
    loss = normal(101) ** 3
    bound = [(tau + (loss - tau).clamp_min(0).mean() / 0.07).item() for tau in loss]
    assert cvar(loss, 0.93).item() == pytest.approx(min(bound), rel=1e-12)


def test_cvar_is_coherent_and_concave_in_the_law():
    a, b = normal(2, 999)
    assert torch.isclose(cvar(3 * a + 2), 3 * cvar(a) + 2)
    assert cvar(a + b) <= cvar(a) + cvar(b)
    assert cvar(torch.cat((a, 5 * b))) >= (cvar(a) + cvar(5 * b)) / 2


def test_gradient_of_the_exact_tail_sums_to_one():
    loss = normal(3, 77).requires_grad_()
    gradient, = torch.autograd.grad(cvar(loss).sum(), loss)
    assert torch.allclose(gradient.sum(-1), torch.ones(3, dtype=torch.float64))
    assert ((gradient > 0).sum(-1) == 4).all()  # 3.85 paths


@pytest.mark.parametrize("alpha", [0, 1, 95, -0.1, float("nan")])
def test_a_confidence_outside_the_unit_interval_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\), got"):
        cvar(torch.ones(10), alpha)
    with pytest.raises(ValueError, match="alpha"):
        CVaR(alpha)


@pytest.mark.parametrize("alpha, cure", [(95, "5 % write 0.95"), (5, "5 % write 0.95"), (99, "1 % write 0.99"), (2.5, "2.5 % write 0.975"), (1, "5 % write 0.95")])
def test_the_cure_for_a_percentage_is_named(alpha, cure):
    with pytest.raises(ValueError, match=f"got {alpha}; for the worst {cure}"):
        cvar(torch.ones(10), alpha)


@pytest.mark.parametrize("ask", [lambda x: cvar(x, 0.05), lambda x: CVaR(0.05), lambda x: cvar_error(x, 0.05), lambda x: cvar_optimal_scale(x, x, 0.05)])
def test_a_confidence_that_looks_like_a_tail_draws_a_hint(ask):
    with pytest.warns(UserWarning, match="alpha is the confidence, and 0.05 averages the worst 95 % of the losses; for the worst 5 % write 0.95"):
        ask(normal(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for alpha in (0.5, 0.95, 0.99):
            cvar(normal(100), alpha)


def test_every_risk_refuses_a_percentage():
    for ask in (smoothed_var, tail_weights, cvar_error, lambda x, alpha: worst_mixture(x[None, None], alpha), lambda x, alpha: cvar_optimal_scale(x, x, alpha)):
        with pytest.raises(ValueError, match="alpha must lie in .* got 95; for the worst 5 % write 0.95"):
            ask(normal(100), 95)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beyond", [1e-3, 1e-8, 1e-11, 1.2e-16])
def test_a_tail_of_less_than_one_path_is_the_worst_loss(beyond, dtype):
    loss, alpha = normal(2, 10).to(dtype), 1 - beyond
    torch.testing.assert_close(cvar(loss, alpha), loss.amax(-1))
    torch.testing.assert_close(CVaR(alpha)(loss), loss.amax(-1))
    moving = loss.clone().requires_grad_()
    gradient, = torch.autograd.grad(cvar(moving, alpha).sum(), moving)
    torch.testing.assert_close(gradient, (loss == loss.amax(-1, keepdim=True)).to(dtype))
    torch.testing.assert_close(tail_weights(loss.double(), alpha).sum(-1), torch.ones(2, dtype=torch.float64))
    hedge = normal(2, 10, seed=1).to(dtype)
    best = cvar_optimal_scale(hedge, loss, alpha)
    lowest = cvar(loss - best[:, None] * hedge, alpha)
    for w in torch.linspace(-4, 4, 81).tolist():
        assert (lowest <= cvar(loss - w * hedge, alpha) + 1e-5).all()


def test_of_a_tail_within_one_path_no_error_is_told():
    loss = torch.arange(50.0)
    assert cvar_error(loss, 0.99).isnan() and cvar_error(loss, 0.95) > 0 and cvar_error(torch.arange(10.0), 0.9) >= 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_whole_numbers_are_losses(dtype):
    ten = torch.arange(10, dtype=dtype)
    assert cvar(ten, 0.75).item() == pytest.approx(8.2, abs=1e-12) and mean_loss(ten) == 4.5
    assert entropic(ten, 0.3) == entropic(ten.double(), 0.3) and cvar_error(ten, 0.75) == cvar_error(ten.double(), 0.75)


@pytest.mark.parametrize("risk", [cvar, mean_loss, lambda loss: entropic(loss, 1.0)])
def test_nan_and_emptiness_are_refused(risk):
    with pytest.raises(ValueError, match="NaN in 1 of 4"):
        risk(torch.tensor([1.0, float("nan"), 2.0, 3.0]))
    with pytest.raises(ValueError, match="at least one loss"):
        risk(torch.ones(3, 0))


def test_the_training_risk_lets_nan_through_to_the_guard():
    assert CVaR()(torch.tensor([1.0, float("nan"), 2.0])).isnan()


def test_entropic_matches_the_normal_law_and_does_not_overflow():
    loss = math.sqrt(2) * torch.erfinv(2 * quantiles() - 1)
    assert entropic(0.3 * loss + 0.1, 2.0).item() == pytest.approx(0.1 + 2.0 * 0.09 / 2, rel=1e-4)
    assert entropic(torch.tensor([0.0, 1e4]), 1.0).item() == pytest.approx(1e4 - math.log(2))
    with pytest.raises(ValueError, match="mean_loss"):
        entropic(loss, 0.0)


@pytest.mark.parametrize("aversion", [1e-300, 1e-10, 1e-4, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6, 1e39])
@pytest.mark.parametrize("risk", [entropic, lambda loss, aversion: Entropic(aversion)(loss)])
def test_entropic_keeps_its_digits_at_any_aversion(risk, aversion):
    """Between the mean and the worst loss; float32 says what float64 says, and both what a long sum says."""
    loss = 0.01 + 0.02 * normal(100_000)
    single, double = risk(loss.float(), aversion).item(), risk(loss, aversion).item()
    assert abs(single - double) < 3e-7 + 1e-6 * abs(double)
    worst = loss.max().item()
    exact = worst + math.log1p(math.fsum(np.expm1(aversion * (loss.numpy() - worst))) / 100_000) / aversion if 1e-10 <= aversion <= 1e3 else None
    if exact is not None:
        assert double == pytest.approx(exact, abs=1e-9)
    assert loss.mean().item() - 1e-12 <= double <= worst


def test_entropic_has_the_gradient_of_a_tilted_mean_at_any_aversion():
    for aversion in (1e-6, 0.1, 3.0, 100.0):
        for scale in (0.01, 1.0):
            loss = (scale * normal(500)).requires_grad_()
            gradient, = torch.autograd.grad(entropic(loss, aversion), loss)
            torch.testing.assert_close(gradient, torch.softmax(aversion * loss.detach(), 0))
            torch.testing.assert_close(Entropic(aversion).weights(loss.detach()), gradient)


@pytest.mark.parametrize("aversion", [0.0, -1.0, math.inf, math.nan, -math.inf])
def test_an_aversion_without_a_risk_is_refused(aversion):
    with pytest.raises(ValueError, match="aversion must be positive and finite, got .*use mean_loss, for the worst case loss.max"):
        entropic(torch.ones(3), aversion)
    with pytest.raises(ValueError, match="aversion must be positive and finite, got .*use Mean"):
        Entropic(aversion)


def test_entropic_lets_infinite_losses_and_nan_show():
    assert entropic(torch.tensor([0.0, math.inf]), 1.0) == math.inf and Entropic(1.0)(torch.tensor([0.0, math.nan])).isnan()
    assert entropic(torch.tensor([0.0, -math.inf]), 1.0).item() == pytest.approx(-math.log(2))


# the error of a CVaR

@pytest.mark.parametrize("law, expected", [(st.norm(), 2.466), (st.t(4), 7.836)])
def test_cvar_error_against_the_closed_form(law, expected):
    n = 2_000_000
    loss = torch.as_tensor(law.ppf((np.arange(n) + 0.5) / n))  # the law itself, on a grid: no noise
    assert cvar_error(loss).item() * n**0.5 == pytest.approx(expected, rel=3e-3)


def test_cvar_error_is_the_spread_over_repetitions():
    loss = normal(600, 4000)
    other = 0.9 * loss + 0.3 * normal(600, 4000, seed=1)
    assert cvar_error(loss).mean().item() == pytest.approx(cvar(loss).std().item(), rel=0.09)
    assert cvar_error(loss, reference=other).mean().item() == pytest.approx((cvar(loss) - cvar(other)).std().item(), rel=0.09)
    assert torch.equal(cvar_error(loss, reference=0 * loss), cvar_error(loss))
    assert (cvar_error(loss, reference=loss + 3) < 1e-15).all()  # cash moves nothing


def test_cvar_error_refuses():
    with pytest.raises(ValueError, match="NaN in 1 of 3"):
        cvar_error(torch.tensor([1.0, math.nan, 2.0]))
    with pytest.raises(ValueError, match="the same 10 paths, got 9; judge both on common paths"):
        cvar_error(normal(10), reference=normal(9))
    with pytest.raises(ValueError, match="at least one loss"):
        cvar_error(torch.ones(0))
    assert cvar_error(torch.ones(3, 1)).isnan().all()


@pytest.mark.parametrize("smoothing", [0.02, 0.15, 0.5])
@pytest.mark.parametrize("dtype, slack", [(torch.float32, 3e-6), (torch.float64, 1e-12)])
def test_soft_weights_sum_to_one_whatever_the_law(smoothing, dtype, slack):
    z = normal(4, 2, 1024).to(dtype)
    for loss in (z, z.exp(), -z.exp(), z / (0.05 + normal(4, 2, 1024, seed=1).abs()).to(dtype), 1e-4 * z + 3, torch.zeros_like(z)):
        weights = tail_weights(loss, 0.95, smoothing)
        assert weights.dtype == dtype and (weights >= 0).all()
        assert (weights.sum(-1) - 1).abs().max() < slack * (1000 if loss.std() < 1e-3 else 1)


def test_soft_var_tends_to_the_quantile():
    loss = math.sqrt(2) * torch.erfinv(2 * quantiles(100_000) - 1)
    assert smoothed_var(loss, 0.95, 0.01).item() == pytest.approx(1.6448536, abs=1e-3)


def test_derivative_of_the_weights_follows_the_moving_threshold():
    """Against finite differences that solve the threshold anew; the bandwidth is held by rescaling."""
    loss, direction, price = normal(200), normal(200, seed=1), normal(200, seed=2)
    width = 0.2 * loss.std(correction=0)

    def valued(x):
        return (tail_weights(x, 0.9, (width / x.std(correction=0)).item()) * price).sum()

    moving = loss.clone().requires_grad_()
    gradient, = torch.autograd.grad((tail_weights(moving, 0.9, 0.2) * price).sum(), moving)
    finite = (valued(loss + 1e-5 * direction) - valued(loss - 1e-5 * direction)) / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(finite.item(), rel=1e-6)
    assert gradient.sum().abs() < 1e-12  # cash changes no weight


def test_a_threshold_from_elsewhere_keeps_its_value_and_the_derivative():
    loss = normal(500).requires_grad_()
    own = tail_weights(loss)
    carried = tail_weights(loss, threshold=smoothed_var(loss))
    assert torch.allclose(own, carried)
    higher = tail_weights(loss, threshold=smoothed_var(loss) + 0.5)
    assert higher.sum() < 0.7
    gradient, = torch.autograd.grad((higher * loss.detach()).sum(), loss)
    assert gradient.abs().max() > 0 and gradient.sum().abs() < 1e-12


@pytest.mark.parametrize("risk", [CVaR(smoothing=0.01), CVaR(0.9, 0.01), Entropic(2.0), Mean()])
def test_weights_are_the_derivative_of_the_risk(risk):
    loss, direction = normal(20_000), 1e-4 * torch.sin(normal(20_000))
    move = risk(loss + direction) - risk(loss - direction)
    assert (risk.weights(loss) * 2 * direction).sum().item() == pytest.approx(move.item(), rel=0.02)
    assert torch.isclose(risk.weights(loss).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert torch.allclose(risk.weights(loss[None], risk.threshold(loss[None])), risk.weights(loss[None]))


def test_the_worst_mixture_is_the_adversarys_value():
    """Against a grid of mixtures, each one's CVaR taken over weighted losses."""
    a, b = 1.2 * normal(400), 0.8 * normal(400, seed=1).exp() - 0.4
    loss, order = torch.cat((a, b)).sort(descending=True)
    def mixture(q):
        mass = torch.cat((torch.full((400,), q / 400), torch.full((400,), (1 - q) / 400)))[order].double()
        inside = (0.05 - (mass.cumsum(0) - mass)).clamp_min(0).minimum(mass)
        return (inside * loss).sum().item() / 0.05
    worst = worst_mixture(torch.stack((a, b))[None], 0.95).item()
    assert worst == pytest.approx(max(mixture(q / 500) for q in range(501)), abs=1e-4)
    assert worst > max(mixture(0.0), mixture(1.0)) - 1e-9


def test_the_gradient_of_the_worst_mixture_has_unit_mass_and_is_right():
    loss = torch.stack((1.2 * normal(400), 0.8 * normal(400, seed=1).exp() - 0.4))[None].requires_grad_()
    gradient, = torch.autograd.grad(worst_mixture(loss, 0.95).sum(), loss)
    assert gradient.sum().item() == pytest.approx(1.0, abs=1e-9)
    direction = 1e-5 * normal(1, 2, 400, seed=3)
    move = worst_mixture(loss + direction, 0.95) - worst_mixture(loss - direction, 0.95)
    assert (gradient * 2 * direction).sum().item() == pytest.approx(move.item(), rel=0.05)


def test_the_worst_mixture_of_means_is_the_worst_mean():
    loss = normal(3, 4, 50)
    assert torch.allclose(worst_mixture(loss, 0.0), loss.mean(-1).amax(-1))


def test_devices_and_dtypes_follow_the_input():
    for dtype in (torch.float32, torch.float64):
        loss = torch.zeros(2, 64, dtype=dtype)
        assert cvar(loss).dtype == smoothed_var(loss).dtype == worst_mixture(loss[None], 0.95).dtype == dtype


@pytest.mark.parametrize("alpha", [0.5, 0.95, 0.975, 0.9999])
def test_best_scale_is_the_lowest_point_of_the_risk(alpha):
    hedge, noise = normal(3, 4001), normal(3, 4001, seed=1)
    other = 0.8 * hedge + noise + 0.3 * hedge**2
    best = cvar_optimal_scale(hedge, other, alpha)
    assert best.shape == (3,)
    for member in range(3):
        risks = [cvar(other[member] - w * hedge[member], alpha) for w in torch.linspace(-4, 4, 801).tolist()]
        lowest = cvar(other[member] - best[member] * hedge[member], alpha)
        assert lowest <= min(risks) + 1e-9
    alone = cvar_optimal_scale(hedge[1], other[1], alpha)
    assert torch.equal(alone, best[1])


def test_best_scale_refuses_what_cvar_refuses():
    with pytest.raises(ValueError, match="alpha must lie in"):
        cvar_optimal_scale(normal(10), normal(10), 95)
    with pytest.raises(ValueError, match="NaN"):
        cvar_optimal_scale(normal(10) * math.nan, normal(10))
