"""Facts of the theory chapter that need no hedger."""
import pytest
import torch

from hirm.objectives import METHODS, Sample, product, spread
from hirm.risk import Mean, cvar, worst_mixture


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
    if n == 2: assert torch.allclose(found, torch.full_like(found, 2.0))
    crowd = normal(1, 1, 5).expand(1, n, 5).clone()
    crowd[:, 0] *= -(n - 1)  # one against all: the bound is met
    assert misalignment(crowd).item() == pytest.approx(4 / n)
    assert misalignment(normal(4000, n, 5)).min() < 4 / n or n == 2


def test_variance_and_alignment_of_gradients():
    gradients = normal(50, 4, 6)
    pair = torch.stack((gradients, gradients), 2)
    mean_square = product(pair).mean(-1)
    assert torch.allclose(mean_square, gradients.mean(1).square().sum(-1) + spread(pair))
    unit = torch.nn.functional.normalize(gradients, dim=-1)
    assert torch.allclose(spread(torch.stack((unit, unit), 2)), 0.75 * misalignment(gradients))
    longer = torch.stack((3 * gradients, 3 * gradients), 2)  # length changes the variance, not the alignment
    assert torch.allclose(spread(longer), 9 * spread(pair)) and torch.allclose(misalignment(3 * gradients), misalignment(gradients))


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
        gap = (shifted.mean(-1)[:, 1] - shifted.mean(-1)[:, 0]).item()
        return gap, METHODS["hgca"](sample, weight, {}) - shifted.mean(), METHODS["hirm"](sample, weight, {}) - shifted.mean()
    (gap, *still), (wider, *moved) = measures(0.0), measures(100.0)
    assert wider == pytest.approx(gap + 100) and torch.allclose(torch.stack(still), torch.stack(moved))


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


def quadratic(centre, stiffness):
    return (lambda psi: 0.5 * (psi - centre) @ stiffness @ (psi - centre)), (lambda psi: stiffness @ (psi - centre))


def test_gaps_are_carried_no_further_than_gradients_differ():
    a, b = normal(2, 3, 3)
    (risk, slope), (other, tilt) = quadratic(normal(3, seed=1), a @ a.T), quadratic(normal(3, seed=2), b @ b.T)
    start, end = normal(2, 3, seed=3)
    path = [start + t * (end - start) for t in torch.linspace(0, 1, 101).double()]
    largest = max((slope(p) - tilt(p)).norm() for p in path)
    moved = (risk(end) - other(end)) - (risk(start) - other(start))
    assert moved.abs() <= (end - start).norm() * largest


def test_head_regret_is_half_the_gradient_in_the_inverse_curvature():
    root = normal(4, 4)
    stiffness = root @ root.T + torch.eye(4, dtype=torch.float64)
    risk, slope = quadratic(normal(4, seed=1), stiffness)
    head = normal(4, seed=2)
    g = slope(head)
    assert risk(head).item() == pytest.approx((g @ torch.linalg.solve(stiffness, g) / 2).item())
