"""The learner is honest: what was asked is done, twice the same, resumable, and λ = 0 is ERM."""
import copy
import ctypes
import dataclasses
import json
import re
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml

from conftest import HANGS
from hirm import training
from hirm.batches import batches, exchange, policy_loss, random_labels, risk_unit, validation_risk
from hirm.config import SCALES, Config, check_unchanged, judged_environments, training_environments
from hirm.evaluation import Judgement, record_judgement, relative_turnover
from hirm.frictions import Liquidity, Proportional, Quadratic
from hirm.environments import ENVIRONMENTS, Environment, common_episodes
from hirm.hedging import hedge
from hirm.history import load_series
from hirm.markets import GBM
from hirm.objectives import METHODS, Sample
from hirm.policies import Delta
from hirm.risk import cvar, entropic
from hirm.runs import Run
from hirm.training import Learner, clip_members, companions, curves, load_policy, log_rows, path_units, records, sample_losses, train

SMALL = dict(method="erm", scale="smoke", environments="low,medium", realized_vol=True, n_paths=32, n_validation=200)


def config(tmp_path, **options):
    return Config(**{**SMALL, "runs": str(tmp_path / "runs"), **options})


def log(run):
    return (run.folder / "metrics.jsonl").read_bytes()


def weights(learner):
    return {k: v.clone() for k, v in learner.policy.state_dict().items()}


def steps(options, n, seen=None):
    "A learner after n updates."
    learner = Learner(options, options.members())
    for step, episode in zip(range(n), batches(learner.environments, learner.seeds, options)):
        out = learner.update(step, episode)
        if seen is not None:
            seen.append(out)
    return learner


def test_same_seed_same_record_and_another_seed_another(tmp_path):
    once, again = (train(config(tmp_path / name))[0] for name in ("a", "b"))
    other = train(config(tmp_path / "c", seed=1))[0]
    assert log(once) == log(again) and log(once) != log(other)


class Heap(ctypes.Structure):
    "What the C library says about its memory."
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]


@pytest.mark.parametrize("environments", ["low,medium", "history_low,history_medium"])
def test_memory_in_use_does_not_grow_with_the_updates(tmp_path, environments):
    """In use, not resident: what is freed may stay with the process, in pieces, and that goes up and down."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"): pytest.skip("the C library does not tell")
    libc.mallinfo2.restype = Heap
    def in_use():
        heap = libc.mallinfo2()
        return heap.uordblks + heap.hblkhd
    options, used = config(tmp_path, environments=environments, n_paths=1024, updates=60), []
    learner = Learner(options, options.members())
    for step, episode in zip(range(60), batches(learner.environments, learner.seeds, options)):
        learner.update(step, episode)
        used.append(in_use())
    assert max(used[30:]) - used[19] < 2**20  # one batch of recorded windows is larger than that


def test_same_seed_in_a_fresh_process(tmp_path):
    here = train(config(tmp_path / "here", method="irm"))[0]
    code = f"from hirm.config import Config; from hirm.training import train; import torch; torch.set_num_threads(1); train(Config(runs={str(tmp_path / 'there')!r}, **{dict(SMALL, method='irm')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=HANGS)
    assert log(here) == (tmp_path / "there" / here.folder.name / "metrics.jsonl").read_bytes()


def test_paths_are_fresh_for_every_update_seed_and_environment(tmp_path):
    options = config(tmp_path, n_seeds=2)
    drawn = [e.paths.spot[..., -1] for _, e in zip(range(3), batches(training_environments(options), [0, 1], options))]
    finals = torch.stack(drawn).flatten()
    assert len(finals.unique()) > 0.99 * len(finals)
    resumed = next(batches(training_environments(options), [0, 1], options, start=2))
    assert torch.equal(resumed.paths.spot[..., -1], drawn[2])


def test_steps_taken_are_steps_asked(tmp_path):
    run = train(config(tmp_path, updates=7, pretrain=2, ramp=2, validate_every=3))[0]
    rows = [json.loads(line) for line in log(run).splitlines()]
    assert [r["step"] for r in rows] == list(range(7))
    assert [r["step"] + 1 for r in rows if "validation.high" in r] == [3, 6, 7]
    learner = steps(config(tmp_path, updates=7, pretrain=0, ramp=0), 7)
    assert {int(s["step"]) for s in learner.optimizer.state.values()} == {7}


@pytest.mark.parametrize("policy", ["band", "mlp"])
def test_every_parameter_moves_in_every_member(tmp_path, policy):
    learner = steps(config(tmp_path, policy=policy, n_seeds=3, updates=4, pretrain=0, ramp=0), 4)
    for (name, p), start in zip(learner.policy.named_parameters(), learner.initial):
        assert (p != start).all(), name


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"erm", "erm_reg"}))  # erm_reg's weight decay and dropout are no penalties
def test_without_weight_every_method_is_erm_bit_for_bit(tmp_path, method):
    plain = steps(config(tmp_path, method="erm"), 8)
    options = config(tmp_path, method=method, penalty_weight=0.0)
    other = steps(options, 8)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(other).values()))


@pytest.mark.parametrize("policy", ["band", "mlp"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "erm"])
def test_every_penalty_has_a_gradient(tmp_path, method, policy):
    options = config(tmp_path, method=method, penalty_weight=0.5, policy=policy, pretrain=0, ramp=0, updates=2)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    gradients = []
    for weight in (None, learner.weights):
        sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, weight is not None)
        objective = learner.method(sample, weight, {})
        gradients.append(torch.autograd.grad(objective.sum(), list(learner.policy.parameters()), allow_unused=True))
    for (name, _), without, with_penalty in zip(learner.policy.named_parameters(), *gradients):
        assert with_penalty.isfinite().all() and not torch.equal(without, with_penalty), name


@pytest.mark.parametrize("policy", ["band", "mlp"])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("method", ["erm", "erm_pool", "erm_reg", "groupdro", "wcvar", "vrex", "term"])
def test_the_tail_alone_gives_the_whole_gradient(tmp_path, monkeypatch, method, permuted, policy):
    options = config(tmp_path, method=method, policy=policy, n_seeds=2, pretrain=0, ramp=0, penalty_weight=0.0 if method in ("erm", "erm_reg") else 0.5)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, dataclasses.replace(options, method="erm", penalty_weight=0.0, permute_labels=permuted)))
    weight, hedged = (learner.weights if learner.weights.any() else None), []
    monkeypatch.setattr(training, "hedge", lambda policy, e, **options: hedged.append(e.payoff.shape[-1]) or hedge(policy, e, **options))
    if learner.method.dropout:
        learner.policy.drop(0.3, [torch.Generator().manual_seed(seed) for seed in learner.seeds], episode.payoff.shape[1:])
    masks = learner.policy.dropout
    _, objective = learner.differentiate(episode, weight)
    found = [p.grad.clone() for p in learner.policy.parameters()]
    learner.policy.dropout = masks
    sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, weight is not None)
    whole = learner.method(sample, weight, {})
    learner.optimizer.zero_grad()
    whole.sum().backward()
    assert torch.allclose(objective, whole) and hedged[0] == 16 and hedged[1] <= 4  # 5 % of two halves of 16 paths
    for p, grad in zip(learner.policy.parameters(), found):
        assert torch.allclose(grad, p.grad, rtol=1e-3, atol=1e-6 * p.grad.abs().max().item() + 1e-9)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("method", ["irm", "hirm", "iga", "hgca"])
def test_faint_paths_do_not_matter_to_a_penalty(tmp_path, method, permuted):
    """Left out: a share of the gradient far below what the sample leaves uncertain."""
    options = config(tmp_path, method=method, n_paths=1024, pretrain=0, ramp=0, penalty_weight=1.0, permute_labels=permuted)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    _, objective = learner.differentiate(episode, learner.weights)
    found = [p.grad.clone() for p in learner.policy.parameters()]
    sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, True)
    whole, ground = learner.method(sample, learner.weights, {}), sample.risk(sample.loss).mean(-1)
    everything, plain = (torch.autograd.grad(x.sum(), list(learner.policy.parameters()), retain_graph=True) for x in (whole, ground))
    assert (objective - whole).abs() < 0.02 * max(whole.abs(), ground)
    for grad, wanted, erm in zip(found, everything, plain):
        assert (grad - wanted).norm() < 0.05 * max((wanted - erm).norm(), wanted.norm())


# --- permuted labels -------------------------------------------------------------------------------------------------------------

def varied(monkeypatch):
    "Four environments whose costs are of four kinds; the last moves in jumps."
    frictions = {"a": Proportional(2e-4), "b": Liquidity(1e-3, reference_vol=0.15), "c": Quadratic(5e-3), "d": 1.5 * (Proportional(1e-3) + Quadratic(1e-3))}
    for (name, friction), base in zip(frictions.items(), ("low", "medium", "high", "crisis_jumps")):
        monkeypatch.setitem(ENVIRONMENTS, name, dataclasses.replace(ENVIRONMENTS[base], name=name, friction=friction))
    return ",".join(frictions)


def counted_elsewhere(learner, episode, labels):
    "Everyone is hedged at home, by the copy of the group that its label says; only then are losses counted in that group."
    policy, needs, (n_environments, n_paths) = learner.policy, learner.method.needs, labels.shape[1:]
    copies = head = anchor = None
    if "head" in needs or "path_head" in needs:
        copies = policy.head_copies(n_environments, 2 if "head" in needs else n_paths)
        copy = torch.arange(n_paths) // (n_paths // copies.shape[2])
        head = copies[torch.arange(len(copies))[:, None, None], labels.argsort(1), copy]
    ledger = hedge(policy, episode, head=head)
    count = lambda x: (x.flatten(2) / learner.units[:, None]).gather(1, labels)
    if "anchor" in needs:
        anchor = (ledger.positions - Delta()(episode)).square().flatten(2).mean(-1)
    return Sample(count(ledger.loss), learner.risk, count(ledger.scale_gradient()) if "scale" in needs else None, copies, anchor)


@pytest.mark.parametrize("policy", ["band", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_exchanged_paths_are_what_exchanged_losses_were(tmp_path, monkeypatch, method, policy):
    """The law of a permuted run: the same losses, objective and gradient as when losses were counted elsewhere after the hedge."""
    weight = 0.0 if method == "erm" else 0.5 if METHODS[method].weight < 1 else METHODS[method].weight
    options = config(tmp_path, method=method, environments=varied(monkeypatch), policy=policy, n_seeds=2, penalty_weight=weight)
    learner = Learner(options, options.members())
    home = next(batches(learner.environments, learner.seeds, options))
    labels = random_labels(home, [torch.Generator().manual_seed(seed) for seed in learner.seeds])
    episode = exchange(home, labels)
    found = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, True)
    wanted = counted_elsewhere(learner, home, labels)
    assert torch.allclose(found.loss, wanted.loss, rtol=1e-5, atol=1e-6)
    if found.scale_gradient is not None:
        assert torch.allclose(found.scale_gradient, wanted.scale_gradient, rtol=1e-4, atol=1e-5)
    one, other = (learner.method(sample, learner.weights, {}) for sample in (found, wanted))
    assert torch.allclose(one, other, rtol=1e-4)
    parameters = list(learner.policy.parameters())
    for p, q in zip(torch.autograd.grad(one.sum(), parameters), torch.autograd.grad(other.sum(), parameters)):
        assert torch.allclose(p, q, rtol=2e-3, atol=1e-4 * q.abs().max().item())


def test_exchanged_paths_keep_their_costs_their_unit_and_their_jumps(tmp_path, monkeypatch):
    options = config(tmp_path, environments=varied(monkeypatch), n_seeds=2)
    learner = Learner(options, options.members())
    home = next(batches(learner.environments, learner.seeds, options))
    labels = random_labels(home, [torch.Generator().manual_seed(seed) for seed in learner.seeds])
    assert labels.sort(1).values.eq(torch.arange(4)[:, None]).all() and 0.1 < labels[0, 0].eq(0).float().mean() < 0.4
    there = exchange(home, labels)
    back = lambda x: x.flatten(2).gather(1, labels.argsort(1)).unflatten(2, (2, -1))
    trades = torch.randn(there.prices.shape, generator=torch.Generator().manual_seed(1))
    index = labels.unflatten(2, (2, -1))[..., None, None]
    at_home = torch.zeros_like(trades).scatter(1, index.expand_as(trades), trades)
    assert torch.equal(back(there.costs(trades).sum(-1)), home.costs(at_home).sum(-1))
    assert torch.equal(back(there.payoff), home.payoff) and torch.equal(back(there.premium), home.premium)
    assert torch.equal(back(there.paths.jumped[..., -1]), home.paths.jumped[..., -1])
    assert torch.equal(path_units(learner.units, there), learner.units[labels])
    some = torch.arange(15, 3, -2).expand(2, 4, 2, -1)  # a tail is picked from them
    part, whole = there.pick(some), there.costs(trades).gather(-2, some[..., None].expand(-1, -1, -1, -1, 61))
    assert torch.equal(part.costs(trades.gather(-3, some[..., None, None].expand(-1, -1, -1, -1, 61, 1))), whole)
    assert torch.equal(there.take(slice(3, 9)).costs(trades[..., 3:9, :, :]), there.costs(trades)[..., 3:9, :])


@pytest.mark.parametrize("method", ["irm", "hirm"])
def test_a_twin_is_an_ordinary_step(tmp_path, monkeypatch, method):
    """As for the method itself: one look at all paths, then a graph over the few that a smoothed tail weighs, and no copy of the head per path."""
    hedged = []
    def noted(policy, episode, head=None):
        hedged.append((episode.payoff.shape[-1], torch.is_grad_enabled(), None if head is None else head.shape[2]))
        return hedge(policy, episode, head=head)
    monkeypatch.setattr(training, "hedge", noted)
    options = config(tmp_path, method=method, n_paths=1024, pretrain=0, ramp=0, permute_labels=True)
    learner = Learner(options, options.members())
    learner.update(0, next(batches(learner.environments, learner.seeds, options)))
    (whole, graph, _), (part, differentiated, copies) = hedged
    assert whole == 512 and not graph and part < 256 and differentiated and copies in (None, 2)


def test_labels_are_drawn_anew_for_every_update_and_seed_and_from_a_stream_of_their_own(tmp_path):
    options = config(tmp_path, n_seeds=2, permute_labels=True, n_paths=1024)
    plain = batches(training_environments(options), [0, 1], dataclasses.replace(options, permute_labels=False))
    drawn, finals = [], []
    for _, e, home in zip(range(2), batches(training_environments(options), [0, 1], options), plain):
        drawn += e.origin[:, 0].flatten(1).float().unbind(0)
        finals += e.paths.spot[..., -1].log().flatten(1).sort(-1).values.sub(home.paths.spot[..., -1].log().flatten(1).sort(-1).values).abs()
        whose = torch.where(e.origin == 0, e.payoff, 0)
        assert torch.allclose(whose.sum((1, 2, 3)), home.payoff[:, 0].sum((1, 2)), rtol=1e-5)
    assert torch.stack(finals).max() == 0  # the same paths as without
    related = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max()
    assert related < 5 / 1024**0.5 and all(0.4 < one.mean() < 0.6 for one in drawn)
    resumed = next(batches(training_environments(options), [0, 1], options, start=1))
    assert torch.equal(resumed.origin[:, 0].flatten(1).float(), torch.stack(drawn[2:]))


def test_the_log_of_a_permuted_run_is_in_units_of_spot(tmp_path):
    options = config(tmp_path, n_seeds=2, permute_labels=True)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    wanted = cvar(hedge(learner.policy, episode).loss.detach().flatten(2))
    out = learner.update(0, episode)
    for member in range(2):
        row = log_rows(learner, 0, out)[member]
        assert [row["risk.low"], row["risk.medium"]] == pytest.approx(wanted[member].tolist(), rel=1e-4)


@pytest.mark.parametrize("wrong, words", [(dict(method="erm_pool"), "got erm_pool, which pools all paths"), (dict(method="erm", environments="low"), "got the one environment of erm")])
def test_labels_that_nobody_reads_are_not_permuted(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=f"permute_labels draws .* needs at least 2 environments and a method that tells them apart, {words}; leave it out"):
        config(tmp_path, permute_labels=True, **wrong)
    config(tmp_path, **wrong)


def test_labels_matter_to_a_mean_of_tails(tmp_path):
    weights_of = lambda **asked: weights(steps(config(tmp_path, method="erm", **asked), 6))
    plain, permuted = weights_of(), weights_of(permute_labels=True)
    assert not torch.equal(plain["head"], permuted["head"])


def test_only_checkpoints_under_the_full_penalty_are_candidates(tmp_path):
    run = train(config(tmp_path, method="irm", updates=10, pretrain=3, ramp=3, validate_every=2, keep=9))[0]
    assert sorted(kept["step"] for kept in run.manifest()["checkpoints"]) == [6, 8, 10]


def test_penalty_waits_for_its_phase(tmp_path):
    rows = [json.loads(line) for line in log(train(config(tmp_path, method="irm", penalty_weight=0.5, updates=8, pretrain=3, ramp=4, validate_every=8))[0]).splitlines()]
    assert [r["penalty_weight"] for r in rows] == pytest.approx([0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5])
    assert [r["penalty"] == pytest.approx(0, abs=1e-6) for r in rows[:3]] == [True] * 3


@pytest.mark.parametrize("method", ["erm", "irm", "hirm", "groupdro"])
def test_a_member_does_not_depend_on_its_batch_mates(tmp_path, method):
    options = dict(method=method, updates=6, pretrain=1, ramp=1)
    among = steps(config(tmp_path, n_seeds=3, **options), 6)
    alone = steps(config(tmp_path, seed=2, **options), 6)
    for (name, a), b in zip(weights(among).items(), weights(alone).values()):
        assert torch.allclose(a[2], b[0], rtol=1e-3, atol=1e-4), name


def test_a_sweep_over_weights_is_one_job(tmp_path):
    runs = train(config(tmp_path, method="irm", penalty_weight=[0.0, 0.5], n_seeds=2, pretrain=2, ramp=2))
    assert len({run.folder for run in runs}) == 4
    assert [(r.config["seed"], r.config["penalty_weight"]) for r in runs] == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]
    policy = load_policy(runs)
    assert policy.head.shape[0] == 4 and not torch.equal(policy.head[0], policy.head[1])


def test_gradients_are_clipped_per_member():
    p = torch.nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.tensor([[3.0, 4.0, 0.0], [0.03, 0.04, 0.0]])
    norm = clip_members([p], 1.0)
    assert norm.tolist() == pytest.approx([5.0, 0.05]) and p.grad.norm(dim=1).tolist() == pytest.approx([1.0, 0.05])


def test_divergence_stops_the_run_and_names_the_member(tmp_path):
    options = config(tmp_path, n_seeds=2)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    with torch.no_grad():
        learner.policy.weight1[1, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="update 5: the gradient of seed 1"):
        learner.update(5, episode)


def killed_at(step, options):
    "Train in a process of its own that is killed when it comes to an update: no clock decides when."
    code = f"""
import os, signal, torch
from hirm.config import Config
from hirm.training import Learner, train
torch.set_num_threads(1)
update = Learner.update
def last(self, step, episode):
    if step == {step}: os.kill(os.getpid(), signal.SIGKILL)
    return update(self, step, episode)
Learner.update = last
train(Config(**{options!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("method, n_seeds", [("irm", 1), ("groupdro", 2)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, method, n_seeds):
    options = {**SMALL, "method": method, "n_seeds": n_seeds, "updates": 40, "pretrain": 5, "ramp": 5, "validate_every": 10}
    whole = train(Config(**options, runs=str(tmp_path / "whole")))
    killed_at(25, {**options, "runs": str(tmp_path / "killed")})
    cut, done = Config(**options, runs=str(tmp_path / "killed")), []
    assert [sorted(run.states()) for run in map(Run, (run.folder for run in records(cut)))] == [[10, 20]] * n_seeds
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, step, episode: done.append(step) or update(self, step, episode))
    again = train(cut)
    assert done == list(range(20, 40))
    for a, b in zip(whole, again):
        assert log(a) == log(b) and a.manifest() == b.manifest()
        assert all(torch.equal(x, y) for x, y in zip(a.best()[0].values(), b.best()[0].values()))


def test_prices_that_change_under_way_are_not_learnt_from_and_put_back_the_run_ends_as_if_they_had_not(tmp_path, monkeypatch):
    prices = tmp_path / "prices.csv"
    load_series().to_csv(prices, index=False)
    before, update = prices.read_bytes(), Learner.update
    louder = load_series().assign(close=lambda frame: frame["close"] ** 1.5)
    options = {**SMALL, "environments": "history_low,history_medium", "history": str(prices), "n_seeds": 2, "updates": 40, "pretrain": 5, "ramp": 5, "validate_every": 10}
    whole = train(Config(**options, runs=str(tmp_path / "whole")))
    cut = Config(**options, runs=str(tmp_path / "cut"))
    def changed(self, step, episode):
        if step == 15: louder.to_csv(prices, index=False)
        return update(self, step, episode)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "update", changed)
        with pytest.raises(ValueError, match="history .*prices.csv' has changed: [^;]*; put it back and give the same command again: the run goes on"): train(cut)
    prices.unlink()
    with pytest.raises(ValueError, match="history .* must be where it was when this run was made, got no file there; put it back and give the same command again"): check_unchanged(cut)
    prices.write_bytes(before)
    again = train(cut)
    assert [log(run) for run in again] == [log(run) for run in whole] and [run.manifest() for run in again] == [run.manifest() for run in whole]
    louder.to_csv(prices, index=False)
    nothing = Judgement(*(pd.DataFrame() for _ in dataclasses.fields(Judgement)))
    with pytest.raises(ValueError, match="history .*prices.csv' has changed"): record_judgement(again, nothing, "erm")


@pytest.mark.parametrize("asked, says", [(dict(strike=3), "the unit of environment low must be clearly positive"), (dict(risk_unit="premium", payoff="put", strike=0.01), "the unit of environment low must be clearly positive")])
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, asked, says):
    with pytest.raises(ValueError, match=says): train(config(tmp_path, **asked))
    assert not list((tmp_path / "runs").glob("erm-*"))


def test_a_kill_between_two_members_states_changes_nothing(tmp_path, monkeypatch):
    options = {**SMALL, "method": "groupdro", "n_seeds": 2, "updates": 40, "pretrain": 5, "ramp": 5, "validate_every": 10}
    whole = train(Config(**options, runs=str(tmp_path / "whole")))
    keep = Run.save_state

    def killed(run, step, tensors):
        if step == 30 and "-s1-" in run.folder.name:
            raise KeyboardInterrupt
        keep(run, step, tensors)
    monkeypatch.setattr(Run, "save_state", killed)
    cut = Config(**options, runs=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    assert [max(run.states()) for run in map(Run, (run.folder for run in records(cut)))] == [30, 20]
    monkeypatch.undo()
    for a, b in zip(whole, train(cut)):
        assert log(a) == log(b) and a.manifest() == b.manifest()
        assert all(torch.equal(x, y) for x, y in zip(a.best()[0].values(), b.best()[0].values()))


def test_overlapping_seeds_are_trained_by_one_process(tmp_path):
    one = config(tmp_path, n_seeds=2)
    code = f"""
import sys
from pathlib import Path
from hirm.runs import Run
run = Run(Path({str(records(one)[1].folder)!r})).hold()
print("held", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"run erm-s1-.*process {other.pid} on"):
        train(one)
    assert not records(one)[0].folder.exists()  # nor is the seed that was free begun
    other.communicate("", timeout=HANGS)
    assert [len(run.metrics()) for run in train(one)] == [12, 12]


def test_a_run_that_never_beats_holding_nothing_says_so(tmp_path, capsys, monkeypatch):
    good = train(config(tmp_path))[0]
    assert "never_below_no_hedge" not in good.metadata and "learnt nothing" not in capsys.readouterr().err
    monkeypatch.setattr(training, "NoHedge", Delta)  # a bar that twelve updates do not reach
    bad = train(config(tmp_path, seed=1))[0]
    facts = bad.metadata["never_below_no_hedge"]
    assert bad.metrics()["validation.high"].min() == facts["validation"] >= facts["no_hedge"]
    assert f"{bad.folder.name} has learnt nothing that helps: its risk on high was never below " in capsys.readouterr().err
    judged = list(common_episodes(ENVIRONMENTS["high"], 200, "validation"))
    assert facts["no_hedge"] == pytest.approx(Config().risk(policy_loss(Delta(), judged)).item())


def test_a_price_that_leaves_all_numbers_is_not_blamed_on_the_weight(tmp_path, monkeypatch):
    options = config(tmp_path, method="irm")
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    episode.prices[0, 1, 0, 3, -1] = float("inf")
    with pytest.raises(ValueError, match="environment medium: expected prices that single precision can hold, got inf; look for a leap"):
        learner.update(0, episode)


def test_a_run_names_the_company_in_which_it_began(tmp_path):
    for n_seeds in (2, 3): runs = train(config(tmp_path, method="erm", n_seeds=n_seeds))
    alone = "papermill nbs/train.ipynb -f config.yaml"
    assert [run.metadata["command"] for run in runs] == [f"{alone} -p seed 0 -p n_seeds 2"] * 2 + [alone]
    assert (runs[0].folder / "config.yaml").read_text().startswith(f"# {alone} -p seed 0 -p n_seeds 2\n")


def test_a_parameter_that_no_position_depends_on_is_refused_at_the_first_update(tmp_path):
    options = config(tmp_path, method="erm")
    learner = Learner(options, options.members())
    learner.policy.register_parameter("idle", torch.nn.Parameter(torch.ones(1, 1)))
    with pytest.raises(RuntimeError, match="the parameter idle of policy band has no gradient; the policy does not use it"):
        learner.update(0, next(batches(learner.environments, learner.seeds, options)))


def poison(monkeypatch, *seeds, step=3):
    "Let the weights of some seeds be lost at one update."
    update = Learner.update

    def poisoned(self, now, episode):
        if now == step:
            with torch.no_grad():
                for seed in set(seeds) & set(self.seeds):
                    self.policy.weight1[self.seeds.index(seed), 0, 0] = float("nan")
        return update(self, now, episode)
    monkeypatch.setattr(Learner, "update", poisoned)


def test_a_diverged_member_is_a_result_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    alone = [train(config(tmp_path / "alone", method="groupdro", seed=seed))[0] for seed in (0, 2)]
    poison(monkeypatch, 1)
    options = config(tmp_path, method="groupdro", n_seeds=3)
    sound = train(options)
    assert "groupdro-s1-" in (said := capsys.readouterr().err) and "diverged at update 3; 2 beside it go on" in said
    runs = list(records(options))
    assert [run.diverged for run in runs] == [None, 3, None] and [run.done for run in runs] == [False, True, False]
    assert [run.folder for run in sound] == [runs[0].folder, runs[2].folder]
    for mine, other in zip(sound, alone):
        assert mine.metrics()["step"].tolist() == other.metrics()["step"].tolist()
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(mine.best()[0].values(), other.best()[0].values()))
    with pytest.raises(ValueError, match="got diverged groupdro-s1-.* at update 3"):
        load_policy(runs)


def test_a_run_that_diverged_alone_stops_and_is_not_tried_again(tmp_path, monkeypatch):
    poison(monkeypatch, 0, 1, step=7)
    options = config(tmp_path, n_seeds=2)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="training diverged at update 7: the gradient of erm-s0.*; lower learning_rate$"):
            train(options)
        monkeypatch.setattr(Learner, "update", lambda *_: pytest.fail("was trained again"))


def judged(run):
    "A run that was judged and closed."
    run.artifacts.mkdir(exist_ok=True)
    (run.artifacts / "metrics.csv").write_text("method\n")
    run.finish({})
    return run


def test_erm_that_diverged_is_not_set_beside_a_method(tmp_path, monkeypatch):
    poison(monkeypatch, 1)
    first = [judged(run) for run in train(config(tmp_path, n_seeds=2))][0]
    monkeypatch.undo()
    irm = config(tmp_path, method="irm", n_seeds=2)
    assert companions(irm) == [] and [run.folder for run in companions(irm, [0])] == [first.folder]


def test_a_finished_run_is_not_trained_again(tmp_path):
    options = config(tmp_path)
    run = train(options)[0]
    run.finish({})
    stamp = (run.folder / "metrics.jsonl").stat().st_mtime_ns
    assert train(options)[0].folder == run.folder and (run.folder / "metrics.jsonl").stat().st_mtime_ns == stamp
    train(options, again=True)
    assert not run.done


def test_record_answers_its_own_config(tmp_path):
    run = train(config(tmp_path, method="vrex", cost=1.5))[0]
    read = Config(**run.config, runs=str(tmp_path / "runs"))
    assert train(read)[0].folder == run.folder
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["penalty_weight"] == METHODS["vrex"].weight
    frame = curves([run])
    assert {"step", "environment", "role", "risk", "penalty", "seed"} <= set(frame) and set(frame["environment"]) == {"low", "medium", "high"}


def test_companion_is_the_erm_run_with_all_else_equal(tmp_path):
    assert companions(config(tmp_path, method="irm")) == []
    erm = train(config(tmp_path, method="erm", seed=1))[0]
    assert companions(config(tmp_path, method="irm", seed=1)) == []  # it has not been judged
    judged(erm)
    assert companions(config(tmp_path, method="irm")) == [] and companions(config(tmp_path, method="erm", seed=1)) == []
    assert [run.folder for run in companions(config(tmp_path, method="irm", seed=1))] == [erm.folder]


def of_commit(run, commit):
    "The run, as if other code had trained it."
    run.annotate(commit=commit)


def test_erm_of_other_code_is_not_set_beside_a_method_and_said_to_be_left_out(tmp_path, capsys):
    erm, irm = config(tmp_path, method="erm"), config(tmp_path, method="irm")
    beside = judged(train(erm)[0])
    train(irm)
    assert [run.folder for run in companions(irm)] == [beside.folder]
    of_commit(beside, "f" * 40)
    capsys.readouterr()
    assert companions(irm) == []
    assert re.search(f"the ERM beside it was trained by the code of commit f{{12}}, and irm by another: it is left out; rm -r {beside.folder.name}", capsys.readouterr().err)


def test_members_of_several_commits_are_said_to_be(tmp_path, capsys):
    both = config(tmp_path, method="erm", n_seeds=2)
    first = train(config(tmp_path, method="erm"))[0]
    first.finish({})
    of_commit(first, "f" * 40)
    capsys.readouterr()
    train(both)
    assert "were trained by the code of several commits" in capsys.readouterr().err


def test_the_command_that_repeats_a_run_names_its_device(tmp_path):
    from hirm.training import _command
    assert " -p device" not in _command(config(tmp_path), config(tmp_path).members())
    on_a_gpu = copy.copy(config(tmp_path))
    object.__setattr__(on_a_gpu, "device", "cuda:0")
    assert _command(on_a_gpu, on_a_gpu.members()).endswith("-f config.yaml -p device cuda:0")


def test_every_member_of_a_sweep_has_its_own_companion(tmp_path):
    trained = train(config(tmp_path, method="erm", n_seeds=2))
    for run in trained: judged(run)
    beside = companions(config(tmp_path, method="irm", n_seeds=2, penalty_weight=[0.1, 1.0]))
    assert [run.config["seed"] for run in beside] == [0, 0, 1, 1]
    rows = pd.DataFrame({"method": ["erm"] * 4 + ["irm"] * 4, "seed": [0, 0, 1, 1] * 2, "environment": "low", "probe": "none", "turnover": [2.0, 2, 4, 4, 1, 2, 3, 4]})
    assert relative_turnover(rows)["turnover_to_erm"].tolist() == [1, 1, 1, 1, 0.5, 1, 0.75, 1]


def test_policies_of_different_kinds_are_not_loaded_together(tmp_path):
    runs = train(config(tmp_path)) + train(config(tmp_path, realized_vol=False))
    with pytest.raises(ValueError, match="share policy, features, width, instruments"):
        load_policy(runs)


def test_reference_unit_is_the_delta_hedge(tmp_path):
    options = config(tmp_path, n_validation=4000)
    low = ENVIRONMENTS["low"]
    assert risk_unit(low, options) == pytest.approx(cvar(policy_loss(Delta(), common_episodes(low, 4000, "unit")), 0.95).item())
    assert risk_unit(low, dataclasses.replace(options, risk_unit="spot")) == 1.0
    paid = risk_unit(low, dataclasses.replace(options, risk_unit="premium"))
    assert paid == pytest.approx(hedge(Delta(), low.episode(2, torch.Generator())).episode.premium[0, 0].item(), rel=1e-5)


def test_costs_scale_every_environment(tmp_path):
    dear, plain = (judged_environments(config(tmp_path, cost=m)) for m in (2.0, 1.0))
    for name in plain:
        a, b = (hedge(Delta(), next(common_episodes(worlds[name], 50, "x"))).cost for worlds in (dear, plain))
        assert torch.equal(a, 2 * b), name


def test_unwritable_runs_folder_is_refused_before_training(tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(OSError, match="expected one that can be written"):
        train(config(tmp_path))


def test_scales_name_the_protocol_of_record():
    paper = SCALES["paper"]
    assert (paper["pretrain"], paper["ramp"], paper["updates"], paper["n_paths"], paper["learning_rate"]) == (20_000, 10_000, 150_000, 128, 1e-4)
    assert SCALES["laptop"]["n_validation"] >= 100_000


def test_an_entropic_risk_chooses_in_the_unit_in_which_it_trains():
    low = ENVIRONMENTS["low"]
    options = Config(method="erm", environments="low,medium", aversion=2.0, n_validation=4000)
    losses = policy_loss(Delta(), common_episodes(low, 4000, "validation"))
    unit = risk_unit(low, options)
    assert 0.004 < unit < 0.008
    wanted = unit * entropic(losses / unit, 2.0)
    assert torch.allclose(validation_risk(losses, low, options), wanted) and not torch.allclose(entropic(losses, 2.0), wanted, rtol=0.1)
    plain = dataclasses.replace(options, aversion=None)
    assert validation_risk(losses, low, plain).equal(plain.risk(losses))  # to the bit: a CVaR needs no unit


def test_a_unit_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="the unit of environment volmageddon must be clearly positive, got -.* write -p risk_unit spot, or a larger alpha"):
        risk_unit(ENVIRONMENTS["volmageddon"], Config(method="erm", environments="low,medium", alpha=0.5))


def test_without_cost_the_learned_hedge_of_black_scholes_is_delta(tmp_path, monkeypatch):
    frictionless = Environment("black_scholes", "train", GBM(0.2), Proportional(0.0), n_steps=30)
    monkeypatch.setitem(ENVIRONMENTS, "black_scholes", frictionless)
    monkeypatch.setitem(ENVIRONMENTS, "black_scholes_ahead", dataclasses.replace(frictionless, name="black_scholes_ahead", role="validate"))
    options = Config(method="erm", environments="black_scholes", validate_on="black_scholes_ahead", aversion=100.0, risk_unit="spot", n_paths=1024, updates=200,
                     pretrain=0, ramp=0, validate_every=40, n_validation=20_000, realized_vol=False, runs=str(tmp_path / "runs"))
    learned = load_policy(train(options))
    episodes = list(common_episodes(frictionless, 100_000, "judge"))
    def price(policy):  # indifference price of the claim for aversion 1 on a spot of 100
        return 100 * entropic(torch.cat([hedge(policy, e).loss + e.premium for e in episodes], -1), 100.0).item()
    assert price(Delta()) == pytest.approx(2.85, abs=0.01)
    assert price(learned) <= 1.005 * price(Delta())
