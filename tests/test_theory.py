"""Facts of the theory chapter that need no hedger."""
import pytest
import torch

from hirm.diagnostics import gap, head_regret
from hirm.objectives import METHODS, Sample, environment_variance, head_gradients, product
from hirm.risk import CVaR, Mean, cvar, worst_mixture


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def misalignment(gradients):
    """1 - mean cosine over pairs of environments, by the penalty of hgca itself; gradients (M, E, D)."""
    head = torch.zeros(*gradients.shape[:2], 2, gradients.shape[-1], dtype=torch.float64, requires_grad=True)
    loss = (head * gradients[:, :, None]).sum(-1)  # two paths, one per half, each with the wanted gradient
    one = torch.ones(len(gradients), dtype=torch.float64)
    return METHODS["hgca"](Sample(loss, Mean(), head=head), one, {}) - loss.mean((1, 2))


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_pareto_stationary_gradients_disagree_by_at_least_four_over_e(n):
    gradients = normal(4000, n, 5, seed=n)
    share = torch.rand(4000, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) + 0.01
    gradients[:, 0] = -(share[:, 1:, None] * gradients[:, 1:]).sum(1)  # some positive mixture is zero
    found = misalignment(gradients)
    assert found.min() >= 4 / n - 1e-9
    assert n > 2 or torch.allclose(found, torch.full_like(found, 2.0))  # of two environments the bound is all that there is
    crowd = normal(1, 1, 5).expand(1, n, 5).clone()
    crowd[:, 0] *= -(n - 1)  # one against all: the bound is met
    assert misalignment(crowd).item() == pytest.approx(4 / n)
    assert misalignment(normal(4000, n, 5)).min() < 4 / n  # elsewhere they may agree


def test_variance_and_alignment_of_gradients():
    gradients = normal(50, 4, 6)
    pair = torch.stack((gradients, gradients), 2)
    mean_square = product(pair).mean(-1)
    assert torch.allclose(mean_square, gradients.mean(1).square().sum(-1) + environment_variance(pair))
    unit = torch.nn.functional.normalize(gradients, dim=-1)
    assert torch.allclose(environment_variance(torch.stack((unit, unit), 2)), 0.75 * misalignment(gradients))
    longer = torch.stack((3 * gradients, 3 * gradients), 2)  # length changes the variance, not the alignment
    assert torch.allclose(environment_variance(longer), 9 * environment_variance(pair)) and torch.allclose(misalignment(3 * gradients), misalignment(gradients))


def test_a_dummy_bias_carries_no_signal():
    loss = normal(3, 500)
    bias = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    gradient, = torch.autograd.grad(cvar(loss + bias).sum(), bias)
    assert torch.allclose(gradient, torch.ones_like(gradient))


def test_levels_move_without_moving_gradients():
    """Adding a constant to one environment's losses opens any gap between risks and leaves every gradient measure alone."""
    loss, head = normal(1, 2, 2), torch.zeros(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    direction = normal(1, 2, 2, 3, seed=1)
    def measures(shift):
        shifted = loss + (head * direction).sum(-1) + torch.tensor([0.0, shift])[:, None]
        sample, weight = Sample(shifted, Mean(), head=head), torch.ones(1, dtype=torch.float64)
        risks = sample.risk(sample.loss)
        return gap(risks).item(), risks[0].diff().item(), METHODS["hgca"](sample, weight, {}) - risks.mean(), METHODS["hirm"](sample, weight, {}) - risks.mean()
    (_, apart, *still), (wider, _, *moved) = measures(0.0), measures(100.0)
    assert wider == pytest.approx(abs(apart + 100)) and torch.allclose(torch.stack(still), torch.stack(moved))


def test_risks_differ_by_at_most_the_distance_of_the_laws_over_the_tail():
    for seed in range(20):
        calm, wild = normal(500, seed=seed), 2 * normal(500, seed=seed + 50).abs() ** 1.5 + 0.3
        distance = (calm.sort().values - wild.sort().values).abs().mean()
        assert (cvar(calm) - cvar(wild)).abs() <= distance / 0.05
    only_the_tail = torch.cat((torch.zeros(95), torch.ones(5))).double()
    assert (cvar(only_the_tail) - cvar(torch.zeros(100))).item() == pytest.approx(only_the_tail.mean().item() / 0.05)  # attained


def test_inside_the_hull_the_worst_mixture_bounds_every_test_environment():
    train = torch.stack((normal(400), 2 * normal(400, seed=1) - 1, normal(400, seed=2).abs()))
    bound = worst_mixture(train[None], 0.95)
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        copies = torch.randint(0, 4, (3,), generator=generator)
        if copies.sum(): assert cvar(torch.cat([t.repeat(int(k)) for t, k in zip(train, copies)])) <= bound + 1e-9


def test_gaps_move_by_the_difference_of_the_gradients_and_no_further():
    """Along a line of heads the gap between two risks changes by the integral of ∇R_e - ∇R_e', and at most by its largest length."""
    n_paths, features = 20_000, normal(1, 2, 20_000, 3, seed=1) * torch.tensor([1.0, 2.0])[:, None, None]
    ground, start, end = normal(1, 2, n_paths, seed=2), torch.zeros(3).double(), torch.tensor([0.3, -0.2, 0.4]).double()

    def risks_and_gradients(psi):
        head = psi.expand(1, 2, 2, 3).clone().requires_grad_()
        sample = Sample(ground - (features.unflatten(2, (2, -1)) * head[..., None, :]).sum(-1).flatten(2), CVaR(smoothing=0.02), head=head)
        return sample.risk(sample.loss)[0].detach(), head_gradients(sample, {})[0].mean(1).detach()

    along = [risks_and_gradients(start + t * (end - start)) for t in torch.linspace(0, 1, 21).double()]
    risks, gradients = (torch.stack(x) for x in zip(*along))
    moved = (risks[-1] - risks[0]).diff().item()
    difference = gradients[:, 1] - gradients[:, 0]
    assert torch.trapezoid(difference @ (end - start), dx=1 / 20).item() == pytest.approx(moved, rel=0.03) and abs(moved) > 0.1
    assert abs(moved) <= (end - start).norm() * difference.norm(dim=-1).max()


def test_head_regret_is_what_an_own_head_would_gain():
    """Half the gradient in the inverse curvature: exact for a quadratic risk."""
    root, centre, head = normal(4, 4), normal(4, seed=1), normal(4, seed=2)
    curvature = root @ root.T + torch.eye(4, dtype=torch.float64)
    risk = lambda psi: 0.5 * (psi - centre) @ curvature @ (psi - centre)
    gradient = curvature @ (head - centre)
    assert head_regret(torch.stack((gradient, gradient)), curvature).item() == pytest.approx((risk(head) - risk(centre)).item())
