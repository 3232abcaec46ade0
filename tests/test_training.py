"""The learner is honest: what was asked is done, twice the same, resumable, and λ = 0 is ERM."""
import dataclasses
import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml

from conftest import HANGS
from hirm import training
from hirm.batches import batches, policy_loss, random_labels, risk_unit
from hirm.config import SCALES, Config, judged_environments, training_environments
from hirm.evaluation import relative_turnover
from hirm.frictions import Proportional
from hirm.environments import ENVIRONMENTS, Environment, common_episodes
from hirm.hedging import hedge
from hirm.markets import GBM
from hirm.objectives import METHODS
from hirm.policies import Delta
from hirm.risk import cvar, entropic
from hirm.runs import Run
from hirm.training import Learner, clip_members, companions, curves, load_policy, records, sample_losses, train

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
    options = config(tmp_path, method=method, policy=policy, n_seeds=2, pretrain=0, ramp=0, penalty_weight=0.0 if method == "erm_reg" else 0.5, permute_labels=permuted)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    labels = random_labels(episode, [torch.Generator().manual_seed(seed) for seed in learner.seeds]) if permuted else None
    weight, hedged = (learner.weights if learner.weights.any() else None), []
    monkeypatch.setattr(training, "hedge", lambda policy, e, **options: hedged.append(e.payoff.shape[-1]) or hedge(policy, e, **options))
    if learner.method.dropout:
        learner.policy.drop(0.3, [torch.Generator().manual_seed(seed) for seed in learner.seeds], episode.payoff.shape[1:])
    masks = learner.policy.dropout
    _, objective = learner._differentiate(episode, weight, labels)
    found = [p.grad.clone() for p in learner.policy.parameters()]
    learner.policy.dropout = masks
    sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, weight is not None, labels)
    whole = learner.method(sample, weight, {})
    learner.optimizer.zero_grad()
    whole.sum().backward()
    assert torch.allclose(objective, whole) and hedged[0] == 16 and hedged[1] <= 4  # 5 % of two halves of 16 paths
    for p, grad in zip(learner.policy.parameters(), found):
        assert torch.allclose(grad, p.grad, rtol=1e-3, atol=1e-6 * p.grad.abs().max().item() + 1e-9)


@pytest.mark.parametrize("method", ["irm", "hirm", "iga", "hgca"])
def test_faint_paths_do_not_matter_to_a_penalty(tmp_path, method):
    """Left out: a share of the gradient far below what the sample leaves uncertain."""
    options = config(tmp_path, method=method, n_paths=1024, pretrain=0, ramp=0, penalty_weight=1.0)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    _, objective = learner._differentiate(episode, learner.weights, None)
    found = [p.grad.clone() for p in learner.policy.parameters()]
    sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, True)
    whole, ground = learner.method(sample, learner.weights, {}), sample.risk(sample.loss).mean(-1)
    everything, plain = (torch.autograd.grad(x.sum(), list(learner.policy.parameters()), retain_graph=True) for x in (whole, ground))
    assert (objective - whole).abs() < 0.02 * max(whole.abs(), ground)
    for grad, wanted, erm in zip(found, everything, plain):
        assert (grad - wanted).norm() < 0.05 * max((wanted - erm).norm(), wanted.norm())


@pytest.mark.parametrize("method", ["hirm", "fishr"])
@pytest.mark.parametrize("policy", ["band", "mlp"])
def test_permuted_labels_move_paths_and_nothing_else(tmp_path, method, policy):
    options = config(tmp_path, method=method, policy=policy, permute_labels=True, n_seeds=2)
    learner = Learner(options, options.members())
    episode = next(batches(learner.environments, learner.seeds, options))
    labels = random_labels(episode, [torch.Generator().manual_seed(seed) for seed in learner.seeds])
    true, drawn = (sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, True, x) for x in (None, labels))
    assert labels.sort(1).values.eq(torch.arange(2)[:, None]).all() and 0.4 < labels[0, 0].float().mean() < 0.6
    assert torch.allclose(drawn.loss.sort(1).values, true.loss.sort(1).values)
    assert torch.allclose(drawn.loss, true.loss.gather(1, labels))
    copies, paths = drawn.head.shape[2], drawn.loss.shape[2]
    (by_copy,) = torch.autograd.grad(drawn.loss.sum(), drawn.head, retain_graph=True)
    for e, c in ((0, 0), (1, copies - 1)):  # a copy sees the paths of its own group and half, wherever they come from
        own = drawn.loss[:, e, c * paths // copies:(c + 1) * paths // copies].sum()
        (expected,) = torch.autograd.grad(own, learner.policy.head, retain_graph=True)
        assert torch.allclose(by_copy[:, e, c], expected, rtol=1e-4, atol=1e-5)


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
        with pytest.raises(FloatingPointError, match="training diverged at update 7: the gradient of erm-s0"):
            train(options)
        monkeypatch.setattr(Learner, "update", lambda *_: pytest.fail("was trained again"))


def test_erm_that_diverged_is_not_set_beside_a_method(tmp_path, monkeypatch):
    poison(monkeypatch, 1)
    for run in train(config(tmp_path, n_seeds=2)):
        run.finish({})
    monkeypatch.undo()
    irm = config(tmp_path, method="irm", n_seeds=2)
    assert companions(irm) == {} and set(companions(irm, [0])) == {"erm"}


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
    assert companions(config(tmp_path, method="irm")) == {}
    train(config(tmp_path, method="erm", seed=1))[0].finish({})
    assert companions(config(tmp_path, method="irm")) == {} and set(companions(config(tmp_path, method="irm", seed=1))) == {"erm"}


def test_every_member_of_a_sweep_has_its_own_companion(tmp_path):
    trained = train(config(tmp_path, method="erm", n_seeds=2))
    for run in trained: run.finish({})
    beside = companions(config(tmp_path, method="irm", n_seeds=2, penalty_weight=[0.1, 1.0]))["erm"]
    assert torch.equal(beside.head, torch.stack([load_policy(trained[i]).head[0] for i in (0, 0, 1, 1)]))
    rows = pd.DataFrame({"method": ["erm"] * 4 + ["irm"] * 4, "seed": [0, 0, 1, 1] * 2, "environment": "low", "probe": "none", "turnover": [2.0, 2, 4, 4, 1, 2, 3, 4]})
    assert relative_turnover(rows)["turnover_to_erm"].tolist() == [1, 1, 1, 1, 0.5, 1, 0.75, 1]


def test_policies_of_different_kinds_are_not_loaded_together(tmp_path):
    runs = train(config(tmp_path)) + train(config(tmp_path, realized_vol=False))
    with pytest.raises(ValueError, match="share policy, features and width"):
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
