"""Small things that help against a crisis: limited features, worse paths, several members together."""
import pytest
import torch

from hirm.batches import batches, shaken
from hirm.campaign import as_plan
from hirm.gathering import _formulas
from hirm.config import Config
from hirm.environments import ENVIRONMENTS, common_episodes
from hirm.features import Scaler, features
from hirm.risk import cvar
from hirm.runs import config_hash
from hirm.training import Learner, attack, load_policy, train


def asked(**special):
    return Config(**dict(method="erm", environments="low,medium", scale="smoke", realized_vol=True) | special)


def one_batch(config):
    learner = Learner(config, config.members())
    return learner, next(batches(learner.environments, learner.seeds, config))


def test_limits_are_those_of_the_training_features_and_hold_everywhere():
    learner, _ = one_batch(asked(clip_features=0.02))
    policy = learner.policy
    sample = [features(next(common_episodes(e, 4096, "scaler")), policy.columns).flatten(0, -2) for e in learner.environments.values()]
    values = torch.cat(sample)
    wanted = torch.stack([column.sort().values[[int(0.02 * len(values)), int(0.98 * len(values))]] for column in values.T], 1)
    assert torch.allclose(torch.stack([policy.low[0], policy.high[0]]), wanted, rtol=1e-3)
    storm = next(common_episodes(ENVIRONMENTS["crisis"], 200, "evaluation"))
    seen = policy._limited(features(storm, policy.columns).transpose(-2, -3).movedim(-1, 1))
    assert (seen[0].flatten(1).amax(1) <= policy.high[0]).all() and (seen[0].flatten(1).amin(1) >= policy.low[0]).all()
    assert seen[0, 3].max() == policy.high[0, 3]  # the crisis goes beyond it


def test_a_limited_hedger_does_not_see_how_wild_a_crisis_is_and_its_record_keeps_the_limits(tmp_path):
    runs = train(asked(clip_features=0.02, runs=str(tmp_path)))
    policy = load_policy(runs)
    assert policy.low.shape == (1, 4) and (policy.low < policy.high).all()
    storm = next(common_episodes(ENVIRONMENTS["crisis"], 50, "evaluation"))
    storm.probe["realized_vol"] = lambda vol: torch.full_like(vol, 0.9)
    wild = policy(storm)
    storm.probe["realized_vol"] = lambda vol: torch.full_like(vol, 9.0)
    assert policy(storm).equal(wild)


def test_what_was_run_before_keeps_its_name():
    given = {"alpha": 0.95}
    assert config_hash(given | dict(clip_features=None, attack_radius=0.0, draw=None)) == config_hash(given)
    assert len({config_hash(given | dict(clip_features=share)) for share in (None, 0.0, 0.02)}) == 3


@pytest.mark.parametrize("wrong, says", [(dict(clip_features=0.6), "clip_features"), (dict(clip_features=-0.1), "clip_features"), (dict(attack_radius=-1), "attack_radius")])
def test_limits_that_cross_and_a_negative_radius_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        asked(**wrong)
    if wrong.get("clip_features", 0) > 0.5:
        with pytest.raises(ValueError, match="or the limits would cross, got 0.6"):
            Scaler.fit(torch.rand(1, 10, 2), 0.6)


@pytest.mark.parametrize("order", [1, -1])
def test_a_limited_and_an_unlimited_hedger_are_not_loaded_together(tmp_path, order):
    runs = [train(asked(runs=str(tmp_path / name), **special))[0] for name, special in (("limited", dict(clip_features=0.02)), ("free", {}))]
    with pytest.raises(ValueError, match="width, instruments and limits of the features"):
        load_policy(runs[::order])


def test_without_a_radius_nobody_attacks(tmp_path):
    plain, still = (train(asked(runs=str(tmp_path / name), **special))[0] for name, special in (("a", {}), ("b", dict(attack_radius=0))))
    assert plain.best()[0]["head"].equal(still.best()[0]["head"])
    assert plain.folder.name == still.folder.name


@pytest.mark.parametrize("special", [{}, dict(policy="mlp"), dict(aversion=1.0)])
def test_an_attack_has_the_size_asked_and_raises_the_risk_the_more_the_larger(special):
    learner, episode = one_batch(asked(n_paths=1024, **special))
    home = learner.risk(learner.sample(episode).loss)
    risks = [home]
    for radius in (0.01, 0.05):
        changed = attack(learner, episode, radius)
        move = (changed.paths.spot / episode.paths.spot).log().diff(dim=-1) / (episode.paths.iv[..., :-1] * episode.paths.dt**0.5)
        assert torch.allclose(move.square().mean((2, 3, 4)).sqrt(), torch.tensor(radius), rtol=0.03)
        assert changed.paths.iv is episode.paths.iv and torch.allclose(changed.payoff, changed.liability.payoff(changed.paths.spot[..., -1]))
        assert changed.prices[..., 0].equal(changed.paths.spot)
        risks.append(learner.risk(learner.sample(changed).loss))
    assert (risks[0] < risks[1]).all() and (risks[1] < risks[2]).all()


def test_an_attack_beats_a_random_change_of_the_same_size():
    learner, episode = one_batch(asked(n_paths=1024))
    worse = learner.risk(learner.sample(attack(learner, episode, 0.05)).loss)
    noise = torch.randn(episode.paths.iv[..., :-1].shape, generator=torch.Generator().manual_seed(0))
    luck = learner.risk(learner.sample(shaken(episode, 0.05 * noise)).loss)
    assert (worse > 1.05 * luck).all()


def test_training_meets_the_attacked_paths(monkeypatch):
    learner, episode = one_batch(asked(attack_radius=0.05))
    met = []
    monkeypatch.setattr(learner, "differentiate", lambda episode, weight, once=learner.differentiate: met.append(episode) or once(episode, weight))
    learner.update(0, episode)
    assert not met[0].paths.spot.equal(episode.paths.spot)
    assert cvar(met[0].payoff.flatten(), 0.95) > 0


def test_a_formula_is_judged_with_the_parameters_at_home_in_every_crisis_the_recorded_ones_too():
    table = _formulas(as_plan(dict(scale="smoke", seeds=1)))["formulas"].set_index(["environment", "method"])["cvar95"]
    for crisis in ("crisis", "gfc", "covid"):
        assert table[crisis]["minimum_variance_home"] != table[crisis]["delta"] and "minimum_variance_band_home" in table[crisis]
    assert table["medium"]["minimum_variance_home"] == table["medium"]["minimum_variance"]  # at home it believes in its own market
    assert table["crisis"]["minimum_variance_home"] != table["crisis"]["minimum_variance"]
