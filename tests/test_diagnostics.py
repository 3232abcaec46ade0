"""The diagnostics are what they say: by hand on three numbers, on identical environments, and against what a step really gains."""
import dataclasses
import math

import numpy as np
import pytest
import torch

from hirm.diagnostics import (Traces, alignment, diagnose, gap, head_regret, rolling_risk, sensitivity, separation, stability, tail_curvature, traces,
                              variation, worst_group)
from hirm.environments import ENVIRONMENTS
from hirm.hedging import hedge
from hirm.objectives import halves
from hirm.policies import POLICIES, Delta, NoHedge, WhalleyWilmott
from hirm.risk import cvar, tail_weights
from hirm.tables import percent


def both(x):
    "Two halves that agree."
    return torch.stack([x, x], -2)


def learned(kind="band", members=2, **options):
    policy = POLICIES[kind]([torch.Generator().manual_seed(7 + i) for i in range(members)], **options)
    with torch.no_grad():
        policy.head.mul_(10)
    return policy


def noisy(mean, sd, seed=0, n=4000):
    "Pairs of halves around a mean, (n, …, 2, D)."
    mean = torch.as_tensor(mean).double()
    return mean[..., None, :] + sd * torch.randn(n, *mean.shape[:-1], 2, mean.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaps_and_worst_groups_by_hand():
    risk = torch.tensor([[1.0, 2.0, 6.0], [2.0, 2.0, 2.0]])
    assert gap(risk).tolist() == [5, 0] and worst_group(risk).tolist() == pytest.approx([14 / 3, 2]) and worst_group(risk, 2 / 3).tolist() == pytest.approx([6, 2])


def test_rolling_risk_by_hand():
    daily = -torch.tensor([[[1.0, 1.0, 1.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])  # two paths; the worse half is the first
    assert rolling_risk(daily, 2, alpha=0.5).tolist() == [[2, 2, 5]] and rolling_risk(daily, 4, alpha=0.5).tolist() == [[7]]
    assert variation(torch.tensor([2.0, 2.0, 5.0])).item() == pytest.approx(math.sqrt(2) / 3)
    with pytest.raises(ValueError, match="at least window = 5 dates, got 4"): rolling_risk(daily, 5)


def test_index_by_hand():
    cosine = alignment(both(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])))  # lengths do not matter
    trace = separation(both(torch.tensor([[-1.0], [0.0], [1.0]])), torch.tensor([[2.0]]))
    parts = stability(torch.tensor([1.0, 2.0, 3.0]), cosine, trace, torch.tensor(1.0))
    assert cosine.item() == pytest.approx(math.sqrt(2) / 3) and trace.item() == pytest.approx(1 / 3)
    wanted = [1 / (1 + math.sqrt(2 / 3)), (1 + math.sqrt(2) / 3) / 2, 1 / (1 + 1 / 6)]
    assert [parts[k].item() for k in ("c1", "c2", "c3")] == pytest.approx(wanted) and parts["isi"].item() == pytest.approx(sum(wanted) / 3)


def test_identical_environments_score_one():
    parts = stability(torch.full((3,), 1.7), alignment(both(torch.ones(3, 5))), separation(both(torch.ones(3, 2)), torch.eye(2)), torch.tensor(0.0))
    assert all(value.item() == pytest.approx(1) for value in parts.values())


def test_opposed_gradients_score_zero():
    assert alignment(both(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))).item() == -1


def test_cosine_is_not_diluted_by_noise():
    mean = torch.zeros(2, 30); mean[0, 0] = mean[1, 1] = 2.0; mean[:, 2] = 2.0  # cosine 1/2
    pairs = noisy(mean, 0.25)
    mixed = pairs.mean(-2)
    naive = torch.cosine_similarity(mixed[:, 0], mixed[:, 1], dim=-1).mean()
    assert naive < 0.46 and alignment(pairs).nanmean().item() == pytest.approx(0.5, abs=0.01)


def test_a_direction_below_the_noise_is_not_known():
    assert alignment(noisy(torch.zeros(2, 30), 1.0)).isnan().float().mean() > 0.9
    parts = stability(torch.ones(2), torch.tensor(torch.nan), torch.tensor(0.0), torch.tensor(0.0))
    assert parts["isi"].isnan() and parts["c1"] == parts["c3"] == 1


def test_the_noise_gate_stands_where_signal_equals_noise():
    """Halves 1 and b: their product b against a quarter of their squared difference; equal at b = 3 - 2√2 = .172."""
    def known(b): return not alignment(torch.tensor([[[1.0], [b]], [[1.0], [1.0]]])).isnan()
    assert known(0.18) and not known(0.16)
    halves_of = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.6, 0.8], [0.6, 0.8]]])
    assert alignment(halves_of).item() == pytest.approx(0.6)


def test_separation_does_not_depend_on_coordinates_and_has_no_noise_floor():
    generator = torch.Generator().manual_seed(0)
    centre, noise = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 3))
    mix = torch.eye(3) + 0.3 * noise
    within = torch.diag(torch.tensor([1.0, 2.0, 3.0]).double())
    plain, mixed = separation(both(centre), within), separation(both(centre @ mix.T), mix @ within @ mix.T)
    assert torch.isclose(plain, mixed) and separation(noisy(torch.zeros(4, 3), 0.3), torch.eye(3).double()).median() < 0.02
    flat = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0]).double())  # a unit that never fires
    assert torch.isclose(separation(both(torch.cat([centre, torch.zeros(4, 1)], 1)), flat), plain)


def test_regret_is_what_the_best_head_gains():
    generator = torch.Generator().manual_seed(1)
    x, f = torch.randn(100_000, generator=generator, dtype=torch.float64), torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    head = torch.tensor([0.2, -0.1, 0.15], dtype=torch.float64)
    loss = x + f @ head
    slopes = (tail_weights(halves(loss), 0.95, 0.1)[..., None] * f.unflatten(0, (2, -1))).sum(-2)
    regret = head_regret(slopes, tail_curvature(loss, f))
    assert regret.item() == pytest.approx((cvar(loss) - cvar(x)).item(), rel=0.15)
    assert head_regret(both(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([4.0, 1.0]))).item() == 0.5
    assert head_regret(both(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([4.0, 0.0]))).item() == 0.5  # a flat direction promises nothing


def test_curvature_is_of_differences_between_paths():
    loss, f = torch.randn(2, 2000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(tail_curvature(loss, f[:, None] + 5), tail_curvature(loss, f[:, None])) and tail_curvature(loss, torch.ones_like(f)[:, None]).abs() < 1e-12


@pytest.mark.parametrize("kind", POLICIES)
def test_traces_hold_the_gradient_of_the_risk_in_the_head(kind):
    policy, world = learned(kind), ENVIRONMENTS["medium"]
    found = traces({"it": policy}, world, 200, 0, chunk=70)["it"]  # chunks of unequal size
    whole = traces({"it": policy}, world, 200, 0, chunk=200)["it"]
    assert all(torch.allclose(getattr(found, f.name), getattr(whole, f.name), atol=1e-4) for f in dataclasses.fields(Traces))
    from hirm.environments import common_episodes
    episode = next(common_episodes(world, 200, "evaluation"))
    loss = hedge(policy, episode).loss
    (wanted,) = torch.autograd.grad((tail_weights(loss[:, :100], 0.95, 0.1).detach() * loss[:, :100]).sum(), policy.head)
    assert torch.allclose(found.head_gradients(0.95)[:, 0], wanted.flatten(1), atol=1e-6)
    seen = policy.representation(episode).detach()
    centre, within = found.centres()
    assert torch.allclose(centre.mean(1), seen.mean((1, 2)), atol=1e-5) and torch.allclose(within[0], torch.cov(seen[0].flatten(0, 1).T, correction=0), atol=1e-5)


def test_baselines_have_neither_head_nor_scale_that_they_do_not_have():
    found = traces({"none": NoHedge(), "delta": Delta(), "band": WhalleyWilmott()}, ENVIRONMENTS["low"], 1000, 0)
    own = {name: one.own(0.95) for name, one in found.items()}
    assert own["none"]["scale_gap"].isnan() and own["none"]["tr"].isnan() and own["delta"]["regret"].isnan()
    assert own["band"]["tr"] < own["delta"]["tr"] and abs(own["delta"]["scale_gap"]) < 0.15


def test_scale_gap_sees_a_hedge_of_half_the_size():
    half = lambda episode: 0.5 * Delta()(episode)
    own = {name: one.own(0.95) for name, one in traces({"whole": Delta(), "half": half}, ENVIRONMENTS["low"], 1000, 0).items()}
    assert (1 - own["half"]["scale_gap"]).item() == pytest.approx(2 * (1 - own["whole"]["scale_gap"]).item(), rel=1e-3)


def test_the_same_paths_under_two_names_do_not_differ(monkeypatch):
    import hirm.environments
    draw = hirm.environments.stream
    monkeypatch.setattr(hirm.environments, "stream", lambda seed, purpose: draw(seed, purpose.replace("low_again", "low")))
    worlds = [ENVIRONMENTS["low"], dataclasses.replace(ENVIRONMENTS["low"], name="low_again")]
    seen = diagnose({"it": learned()}, worlds, 200, 0).stability.query("method == 'it' and set == 'all'")
    assert (seen["ig"] == 0).all() and seen["c1"].tolist() == pytest.approx([1, 1]) and seen["c3"].tolist() == pytest.approx([1, 1])
    assert seen["cosine"].dropna().sub(1).abs().max() < 1e-6


@pytest.mark.parametrize("names, got", [((), "none"), (("crisis",), "crisis")])
def test_one_environment_alone_is_refused(names, got):
    with pytest.raises(ValueError, match=f"environments must be two or more to be compared, got {got}; name another"):
        diagnose({"delta": Delta()}, [ENVIRONMENTS[name] for name in names], 200, 0)


def test_frames_are_tidy_and_the_table_is_text():
    seen = diagnose({"it": learned()}, [ENVIRONMENTS[name] for name in ("low", "crisis", "crisis_jumps")], 200, 0, seeds=[4, 9])
    assert set(seen.environments["method"]) == {"no_hedge", "delta", "whalley_wilmott", "minimum_variance", "it"} and set(seen.stability["set"]) == {"all", "test"}
    assert seen.environments.query("method == 'it'")["seed"].tolist() == [4, 9] * 3 and set(seen.environments["environment"]) == {"low", "crisis", "crisis_jumps"}
    delta = seen.stability.query("method == 'delta'")
    assert delta["c1"].eq(1).all() and delta["isi"].isna().all()
    table = percent(seen.stability, ["set", "method"], ["ig"], ["isi"])
    assert table.loc[("all", "delta"), "isi"] == "–" and float(table.loc[("all", "delta"), "ig (%)"]) == pytest.approx(100 * delta["ig"].iloc[0], rel=5e-3)


def test_excess_is_the_risk_above_the_best_of_each_environment():
    found = diagnose({"it": learned(), "half": lambda e: 0.5 * Delta()(e)}, [ENVIRONMENTS[name] for name in ("low", "medium", "crisis")], 200, 0)
    risk = found.environments.groupby(["environment", "method"])["risk"].mean().unstack()
    best = risk.min(axis=1)
    own = found.environments.set_index(["method", "seed", "environment"]).sort_index()
    above = own["risk"] - best.reindex(own.index.get_level_values("environment")).to_numpy()
    assert np.allclose(own["excess"], above, atol=1e-7) and (risk.max(axis=1) > 1.2 * best).all()
    roles = {"all": ["low", "medium", "crisis"], "train": ["low", "medium"]}
    assert set(found.stability["set"]) == set(roles)
    for _, row in found.stability.iterrows():
        mine = own.loc[(row["method"], row["seed"])].loc[roles[row["set"]]]
        assert row["ig"] == pytest.approx(mine["risk"].max() - mine["risk"].min(), abs=1e-7)
        assert row["ig_excess"] == pytest.approx(mine["excess"].max() - mine["excess"].min(), abs=1e-7)
        assert row["wg"] == pytest.approx(mine["risk"].max() if row["set"] == "train" else (mine["risk"].nlargest(2) * [1, 0.5]).sum() / 1.5, rel=1e-5)


def test_numbers_of_one_environment_by_hand():
    """200 paths of 3 dates: the first ten lose 1, the others gain 0.1; the tail of 5 % is those ten."""
    loss = torch.full((1, 200), -0.1)
    loss[:, :10] = 1.0
    daily = torch.zeros(1, 200, 40)
    daily[:, :10, :20], daily[:, :10, 20:] = -0.5, -1.5  # rolling windows of 20 lose from 10 to 30
    paths, none = torch.ones(1, 200), torch.zeros(1, 200, 0)
    seen = Traces(loss, hedge=-loss, daily=daily, traded=3 * paths, held=6 * paths, gradient=none, representation=none, square=torch.zeros(1, 0, 0)).own(0.95)
    rolling = torch.linspace(10, 30, 21)
    assert seen["risk"].item() == pytest.approx(1.0) and seen["er"].item() == pytest.approx((190 * 0.1 - 10) / 200)
    assert seen["tr"].item() == pytest.approx(0.5) and seen["vr"].item() == pytest.approx((rolling.std(correction=0) / rolling.mean()).item())


def test_recorded_windows_and_odd_numbers_of_paths_are_refused():
    with pytest.raises(ValueError, match="recorded windows of 'covid'"): traces({"delta": Delta()}, ENVIRONMENTS["covid"], 100, 0)
    with pytest.raises(ValueError, match="even and at least 100, got 101"): traces({"delta": Delta()}, ENVIRONMENTS["low"], 101, 0)


def test_sensitivity_is_flat_for_those_who_do_not_look():
    blind = learned(columns=("delta", "gamma", "tau"))
    felt = sensitivity({"delta": Delta(), "blind": blind, "it": learned()}, ENVIRONMENTS["medium"], 100, 0, seeds=[3, 5], vols=(0.05, 0.18, 0.8))
    spread = felt.groupby(["method", "seed"])["position"].agg(lambda x: x.max() - x.min())
    assert spread["delta"].max() == spread["blind"].max() == 0 and spread["it"].min() > 1e-4
    assert felt.query("method == 'delta'")["from_delta"].max() == 0 and set(felt.query("method == 'it'")["seed"]) == {3, 5}
