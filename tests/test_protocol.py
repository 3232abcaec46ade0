"""The protocol, line by line: streams, units, rate, reset, clip, dropout, thresholds, validation, selection. Each test falls with one changed line."""
import dataclasses
import math

import pytest
import torch

import hirm.batches
from hirm import training
from hirm.batches import batches, policy_loss, risk_unit
from hirm.config import Config, training_environments
from hirm.environments import ENVIRONMENTS, common_episodes, stream
from hirm.features import Scaler, features
from hirm.hedging import hedge
from hirm.objectives import METHODS, Sample
from hirm.policies import POLICIES, Delta
from hirm.risk import CVaR, cvar
from hirm.runs import Run
from hirm.training import Learner, curves, load_policy, log_rows, records, sample_losses, train

SMALL = dict(method="erm", scale="smoke", environments="low,medium", realized_vol=True, n_paths=32, n_validation=200)


def config(tmp_path, **options):
    return Config(**{**SMALL, "runs": str(tmp_path / "runs"), **options})


def walk(options, n):
    "A learner on its way: (step, episode, what the update returned), and the learner itself after each."
    learner = Learner(options, options.members())
    for step, episode in zip(range(n), batches(learner.environments, learner.seeds, options)):
        yield learner, step, episode


def money(policy, episode):
    "Loss of each path, (M, E, n_paths), in units of S_0."
    return hedge(policy, episode).loss.detach().flatten(2)


def frozen(learner):
    "A copy of a learner's policy as it is now."
    policy = POLICIES[learner.config.policy]([torch.Generator() for _ in learner.seeds], learner.config.columns, learner.config.width)
    policy.load_state_dict({k: v.clone() for k, v in learner.policy.state_dict().items()})
    return policy


# --- random streams --------------------------------------------------------------------------------------------------------------

def twins(monkeypatch):
    "The same market under three names: whatever differs between their paths comes from the stream."
    names = ("low", "low_a", "low_b")
    for name in names[1:]:
        monkeypatch.setitem(ENVIRONMENTS, name, dataclasses.replace(ENVIRONMENTS["low"], name=name))
    return names


def assert_unrelated(rows, n_errors=5.0):
    "No two rows (n_rows, n) move together or against each other."
    related = torch.corrcoef(rows).fill_diagonal_(0.0).abs().max()
    assert related < n_errors / rows.shape[1] ** 0.5, f"two of {len(rows)} streams have a correlation of {related:.2f}"


def test_environments_seeds_blocks_updates_and_halves_share_no_random_number(tmp_path, monkeypatch):
    options = config(tmp_path, environments=",".join(twins(monkeypatch)), n_paths=4096, updates=99)
    environments, rows = training_environments(options), []
    for start in (0, 4):  # 2¹⁴ paths are drawn at a time: 4 updates to a block
        episodes = batches(environments, [0, 1], options, start)
        rows += [next(episodes).paths.spot[..., -1].log().flatten(0, 2) for _ in range(2)]
    assert_unrelated(torch.cat(rows))  # 4 updates x 2 seeds x 3 environments x 2 halves


def test_training_paths_are_those_of_the_blocks_that_the_records_in_print_were_made_from(tmp_path):
    asked = config(tmp_path, seed=3)
    environments = training_environments(asked)
    episode = next(batches(environments, [3], asked))
    block = 2**14 // asked.n_paths * asked.n_paths
    for own, (name, environment) in zip(episode.paths.spot.unbind(1), environments.items()):
        drawn = environment.episode(block, [stream(3, f"train:{name}:0")]).paths.spot[:, : asked.n_paths]
        assert torch.equal(own.flatten(1, 2), drawn)


def test_purposes_environments_judgements_and_blocks_of_common_paths_share_no_random_number(monkeypatch):
    monkeypatch.setattr("hirm.environments.BLOCK", 2000)
    monkeypatch.setattr("hirm.environments.BLOCKS", {})
    rows = []
    for name in twins(monkeypatch)[:2]:
        for purpose in ("validation", "evaluation", "unit", "scaler"):
            rows += [e.paths.spot[0, :, -1].log() for e in common_episodes(ENVIRONMENTS[name], 4000, purpose)]
    rows += [e.paths.spot[0, :, -1].log() for e in common_episodes(ENVIRONMENTS[name], 4000, "evaluation", seed=1)]  # another judgement
    rows.append(ENVIRONMENTS["low"].episode(2000, training.stream(0, "train:low:0")).paths.spot[0, :, -1].log())
    assert len(rows) == 19
    assert_unrelated(torch.stack(rows))


def test_training_judges_on_validation_paths_alone(tmp_path, monkeypatch):
    asked = set()
    def noted(environment, n_paths, purpose, seed=0, **options):
        asked.add((purpose, environment.name, n_paths, seed))
        return common_episodes(environment, n_paths, purpose, seed, **options)
    for room in (training, hirm.batches):
        monkeypatch.setattr(room, "common_episodes", noted)
    train(config(tmp_path, updates=1, pretrain=0, ramp=0, seed=5))
    trained = {(purpose, name, n, 0) for name in ("low", "medium") for purpose, n in (("unit", 200), ("scaler", 4096))}
    assert asked == trained | {("validation", "high", 200, 0)}


def test_every_seed_starts_from_weights_of_its_own(tmp_path):
    together, alone = (Learner(c, c.members()) for c in (config(tmp_path, n_seeds=3), config(tmp_path, seed=2)))
    for name, p in together.policy.named_parameters():
        assert not torch.equal(p[0], p[1]) and not torch.equal(p[1], p[2]), name
    for p, q in zip(together.policy.parameters(), alone.policy.parameters()):
        assert torch.equal(p[2], q[0])


# --- what a risk is measured in --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_the_unit_is_the_risk_of_delta_at_the_confidence_asked(tmp_path, alpha):
    learner = Learner(*(lambda c: (c, c.members()))(config(tmp_path, alpha=alpha)))
    for name, unit in zip(("low", "medium"), learner.units):
        losses = policy_loss(Delta(), common_episodes(ENVIRONMENTS[name], 200, "unit"))
        assert unit.item() == pytest.approx(cvar(losses, alpha).item())
    assert risk_unit(ENVIRONMENTS["low"], learner.config) == learner.units[0]


def test_the_objective_sees_losses_divided_by_the_unit_of_their_environment(tmp_path):
    learner, _, episode = next(walk(config(tmp_path, method="irm", n_seeds=2), 1))
    sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, True)
    ledger = hedge(learner.policy, episode)
    unit = learner.units[:, None]
    assert torch.allclose(sample.loss * unit, ledger.loss.flatten(2), atol=1e-7)
    assert torch.allclose(sample.scale_gradient * unit, ledger.scale_gradient().flatten(2), atol=1e-7)


def test_the_log_gives_the_risk_before_the_update_in_units_of_spot(tmp_path):
    for learner, step, episode in walk(config(tmp_path, n_seeds=2), 3):
        expected = cvar(money(learner.policy, episode))
        out = learner.update(step, episode)
        for member in range(2):
            row = log_rows(learner, step, out)[member]
            assert [row["risk.low"], row["risk.medium"]] == pytest.approx(expected[member].tolist(), rel=1e-4)
            assert row["penalty_weight"] == 0 and row["penalty"] == pytest.approx(0, abs=1e-6)


def test_the_log_gives_penalty_and_weight_of_each_member(tmp_path):
    options = config(tmp_path, method="vrex", penalty_weight=[0.5, 8.0], pretrain=0, ramp=0, clip=1e-3)
    learner, step, episode = next(walk(options, 1))
    losses = money(learner.policy, episode) / learner.units[:, None]
    out = learner.update(step, episode)
    risks = CVaR()(losses.unflatten(2, (2, -1)))
    off = risks - risks.mean(1, keepdim=True)
    for member, weight in enumerate((0.5, 8.0)):  # a large weight divides the objective, not the log
        row = log_rows(learner, step, out)[member]
        assert row["penalty_weight"] == weight
        assert row["penalty"] == pytest.approx(weight * (off[..., 0] * off[..., 1]).mean(1)[member].item(), rel=1e-3, abs=1e-7)  # a product of differences of float32 risks
        assert row["gradient_norm"] > 2e-3  # as it was, not as it was clipped


def test_curves_are_in_percent_and_a_validation_stands_after_its_update(tmp_path):
    run = train(config(tmp_path, updates=4, pretrain=0, ramp=0, validate_every=2))[0]
    log, frame = run.metrics(), curves([run])
    validated = frame[frame["role"] == "validate"]
    assert validated["step"].tolist() == [2, 4] and set(validated["environment"]) == {"high"}
    assert validated["risk"].tolist() == pytest.approx((100 * log["validation.high"].dropna()).tolist())
    low = frame[frame["environment"] == "low"]
    assert low["step"].tolist() == [0, 1, 2, 3] and low["risk"].tolist() == pytest.approx((100 * log["risk.low"]).tolist())


# --- the optimiser ---------------------------------------------------------------------------------------------------------------

def moves(options, n):
    "For each update: the rate, and how far each weight with a gradient moved, (n_weights,)."
    for learner, step, episode in walk(options, n):
        before = [p.detach().clone() for p in learner.policy.parameters()]
        learner.update(step, episode)
        moved = [(p.detach() - b)[p.grad.abs() > 1e-4].abs() for p, b in zip(learner.policy.parameters(), before)]
        yield learner, learner.optimizer.param_groups[0]["lr"], torch.cat(moved)


def test_the_rate_falls_as_a_cosine_to_a_twentieth(tmp_path):
    options = config(tmp_path, updates=8, pretrain=3, ramp=2, learning_rate=2e-3, decay="cosine")
    rates = [rate for _, rate, _ in moves(options, 8)]
    assert rates == pytest.approx([2e-3 * (0.05 + 0.95 * (1 + math.cos(math.pi * step / 8)) / 2) for step in range(8)])
    assert rates[0] == pytest.approx(2e-3) and all(later < earlier for earlier, later in zip(rates, rates[1:]))
    assert Learner(options, options.members()).rate(8) == pytest.approx(1e-4)


def test_a_constant_rate_stays(tmp_path):
    options = config(tmp_path, updates=4, pretrain=2, ramp=1, learning_rate=2e-3, decay="constant")
    assert [rate for _, rate, _ in moves(options, 4)] == pytest.approx([2e-3] * 4)


@pytest.mark.parametrize("method", ["erm", "irm"])
def test_adam_forgets_when_the_penalty_sets_in_and_at_no_other_time(tmp_path, method):
    """Without memory Adam moves every weight by the rate, whatever its gradient; so it does at its first update and when it was reset."""
    options = config(tmp_path, method=method, updates=8, pretrain=3, ramp=2, learning_rate=2e-3, weight_decay=0.0)
    forgot = [torch.allclose(moved, torch.full_like(moved, rate), rtol=0.01) for _, rate, moved in moves(options, 8)]
    assert forgot == [step in (0, 3) for step in range(8)]
    learner = [learner for learner, _, _ in moves(options, 8)][-1]
    assert {int(state["step"]) for state in learner.optimizer.state.values()} == {5}


@pytest.mark.parametrize("method, asked, decay", [("erm", {"weight_decay": 0.02}, 0.02), ("vrex", {"weight_decay": 0.02}, 0.02), ("erm_reg", {}, 1e-3)])
def test_weight_decay_is_the_methods_own_or_the_protocols(tmp_path, method, asked, decay):
    options = config(tmp_path, method=method, penalty_weight=0.0, updates=4, pretrain=2, ramp=1, **asked)
    assert [learner.optimizer.param_groups[0]["weight_decay"] for learner, _, _ in moves(options, 4)] == [decay] * 4


def test_every_member_is_clipped_by_its_own_norm_at_the_bound_asked(tmp_path):
    options = config(tmp_path, n_seeds=2, clip=0.01, environments="low")
    learner, step, episode = next(walk(options, 1))
    with torch.no_grad():
        learner.policy.head[1] *= 0.01  # hardly a gradient in the body of this member
    norm = learner.update(step, episode).norm
    clipped = sum(p.grad.flatten(1).square().sum(1) for p in learner.policy.parameters()).sqrt()
    assert clipped.tolist() == pytest.approx(norm.clamp(max=0.01).tolist(), rel=1e-4) and norm.max() > 0.02


def test_gradients_of_an_update_are_its_own(tmp_path):
    """A second update on the same batch, by a learner that stood still, meets the same gradient: nothing is added up."""
    learner, step, episode = next(walk(config(tmp_path, learning_rate=1e-12, clip=1e9), 1))
    first, second = (learner.update(step, episode).norm for _ in range(2))
    assert torch.allclose(first, second, rtol=1e-4)


# --- dropout, features, anchor ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", POLICIES)
def test_dropout_lets_the_share_asked_rest_and_lifts_the_others(kind):
    policy = POLICIES[kind]([torch.Generator().manual_seed(i) for i in range(2)])
    policy.drop(0.3, [torch.Generator().manual_seed(i) for i in range(2)], (3, 2, 100))
    mask = policy.dropout
    assert mask.shape == (2, 2, 32, 3, 2, 1, 100) and set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    for resting in (mask == 0).float().flatten(2).mean(-1).flatten():  # each layer and member; 19,200 units
        assert resting.item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 19_200))
    assert_unrelated(mask.flatten(2).flatten(0, 1))


def test_dropout_is_drawn_anew_for_each_update_and_rests_in_judgement(tmp_path, monkeypatch):
    worn = []
    def noted(policy, episode, **options):
        worn.append(getattr(policy, "dropout", None))
        return hedge(policy, episode, **options)
    monkeypatch.setattr(training, "hedge", noted)
    for learner, step, episode in walk(config(tmp_path, method="erm_reg", n_seeds=2), 2):
        learner.update(step, episode)
        assert learner.policy.dropout is None
    looked = [mask for mask in worn if mask.shape[-1] == 16]  # the first look, at all 16 paths of each half
    assert len(looked) == 2
    resting = (torch.stack(looked) == 0).float()
    assert resting.mean().item() == pytest.approx(METHODS["erm_reg"].dropout, abs=4 * math.sqrt(0.3 * 0.7 / resting.numel()))
    assert_unrelated(torch.stack(looked).flatten(2).flatten(0, 1).flatten(1).reshape(8, -1))
    worn.clear()
    for learner, step, episode in walk(config(tmp_path, method="vrex"), 1):
        learner.update(step, episode)
    assert worn == [None] * len(worn) != []


def test_features_are_scaled_by_the_training_environments(tmp_path):
    options = config(tmp_path, n_seeds=2)
    policy = Learner(options, options.members()).policy
    seen = [features(next(common_episodes(ENVIRONMENTS[name], 4096, "scaler"))) for name in ("low", "medium")]
    scaler = Scaler.fit(torch.cat(seen, 1))
    for found, wanted in ((policy.mean, scaler.mean), (policy.std, scaler.std)):
        assert torch.allclose(found, wanted.expand(2, -1), rtol=1e-5)


def test_the_anchor_is_the_squared_distance_to_delta_and_pulls_towards_it(tmp_path):
    options = config(tmp_path, method="erm_reg", penalty_weight=1e4, updates=30, pretrain=0, ramp=0, learning_rate=1e-2, decay="constant")
    distances = []
    for learner, step, episode in walk(options, 30):
        away = (hedge(learner.policy, episode).positions - Delta()(episode)).square().flatten(2).mean(-1)
        sample = sample_losses(learner.policy, learner.method, episode, learner.units, learner.risk, True)
        assert torch.allclose(sample.anchor, away)
        assert torch.allclose(METHODS["erm_reg"](sample, torch.ones(1), {}), CVaR()(sample.loss).mean(-1) + away.mean(-1))
        distances.append(away.mean().item())
        learner.update(step, episode)
    assert sum(distances[-5:]) < 0.5 * sum(distances[:5])


# --- what a method remembers -----------------------------------------------------------------------------------------------------

def test_thresholds_are_carried_from_update_to_update(tmp_path):
    options, expected = config(tmp_path, method="irm", n_seeds=2, updates=6, pretrain=2, ramp=1), None
    for learner, step, episode in walk(options, 6):
        own = CVaR().threshold(money(learner.policy, episode) / learner.units[:, None])
        learner.update(step, episode)
        if step < 2:  # pre-training computes no penalty
            assert learner.state == {}
            continue
        expected = own if expected is None else 0.9 * expected + 0.1 * own
        assert torch.allclose(learner.state["threshold"], expected, rtol=1e-3, atol=1e-4)


def test_the_adversary_of_groupdro_starts_even_and_is_carried(tmp_path):
    q = torch.full((1, 2), 0.5)
    for learner, step, episode in walk(config(tmp_path, method="groupdro", penalty_weight=2.0, pretrain=0, ramp=0), 3):
        risks = CVaR()(money(learner.policy, episode) / learner.units[:, None])
        learner.update(step, episode)
        q = torch.softmax(q.log() + 2.0 * risks, -1)
        assert torch.allclose(learner.state["q"], q, rtol=1e-3)


# --- validation and selection ----------------------------------------------------------------------------------------------------

def test_a_checkpoint_holds_the_weights_that_its_score_was_measured_on(tmp_path, monkeypatch):
    options = config(tmp_path, n_seeds=2, alpha=0.8, updates=12, pretrain=1, ramp=1, validate_every=2, keep=5, learning_rate=0.05)
    runs, judged = train(options), list(common_episodes(ENVIRONMENTS["high"], 200, "validation"))
    for run in runs:
        kept = run.manifest()["checkpoints"]
        assert len(kept) == 5 and run.manifest()["rule"] == "validation: high"
        assert [one["score"] for one in kept] == sorted(one["score"] for one in kept)
        logged = run.metrics().set_index("step")["validation.high"].dropna()
        for one in kept:
            policy = load_policy(run)
            policy.load_state_dict({k: v[None] for k, v in run._own(one["file"])[0].items()})
            assert cvar(policy_loss(policy, judged), 0.8).item() == pytest.approx(one["score"], rel=1e-5)
            assert logged[one["step"] - 1] == pytest.approx(one["score"], rel=1e-5)
        assert one["score"] <= logged[logged.index >= 1].max()
    both = load_policy(runs)
    assert cvar(policy_loss(both, judged), 0.8).tolist() == pytest.approx([run.manifest()["checkpoints"][0]["score"] for run in runs], rel=1e-5)


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_checkpoints_are_kept_as_were_asked_for(tmp_path, keep):
    run = train(config(tmp_path, updates=8, pretrain=0, ramp=0, validate_every=2, keep=keep))[0]
    assert len(run.manifest()["checkpoints"]) == keep == len(list((run.folder / "checkpoints").glob("step-*")))


def test_members_of_a_sweep_train_under_the_weight_of_their_own_record(tmp_path):
    options = config(tmp_path, method="vrex", penalty_weight=[0.5, 4.0], n_seeds=2, updates=3, pretrain=1, ramp=1)
    for run in train(options):
        assert run.metrics()["penalty_weight"].tolist() == pytest.approx([0.0, run.config["penalty_weight"], run.config["penalty_weight"]])
    assert len(records(options)) == 4
