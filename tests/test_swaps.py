"""A variance swap beside the spot: from the question through training and judgement, and what it costs."""
import pandas as pd
import pytest
import torch

from hirm.config import Config, judged_environments
from hirm.environments import ENVIRONMENTS, SWAP_SPREAD, Terms
from hirm.evaluation import choose_hedger, diary, judge, resting_band, scene
from hirm.frictions import PerInstrument, Proportional
from hirm.hedging import settle
from hirm.history import Windows
from hirm.runs import Record
from hirm.training import load_policy, train

SMOKE = dict(scale="smoke", environments="low,medium", instruments="spot,variance_swap", n_validation=400, n_evaluation=400, n_seeds=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A config and its runs, for each kind of policy."
    folder = tmp_path_factory.mktemp("swaps")
    asked = {policy: Config(method=method, policy=policy, runs=str(folder / "runs"), **SMOKE) for policy, method in (("band", "erm_reg"), ("mlp", "hirm"))}
    return {policy: (config, train(config)) for policy, config in asked.items()}


@pytest.mark.parametrize("policy", ["band", "mlp"])
def test_two_instruments_go_all_the_way(trained, policy):
    config, runs = trained[policy]
    members = load_policy(runs)
    assert members.n_instruments == 2 and Record(runs[0].folder).config["instruments"] == "spot,variance_swap"
    judged = judged_environments(config)
    assert {e.instruments for e in judged.values()} == {("spot", "variance_swap")} and "crisis" in judged
    assert not any(isinstance(e.market, Windows) for e in judged.values())  # no record has a price of the swap
    choice = choose_hedger(members, config)
    policies = {config.method: members, choice.name: choice.policy}
    metrics = judge(policies, [judged["low"], judged["crisis"]], 200, 0).metrics
    assert set(metrics["method"]) == {"no_hedge", "delta", "whalley_wilmott", "delta_vega", *policies}
    sold = judged["high"]
    band = resting_band({choice.name: choice.policy}, n_instruments=2)
    environment, start = scene([], like=sold)
    books = diary({choice.name: choice.policy}, environment, start)
    assert len(band) == 12 and isinstance(start, pd.Timestamp) and environment.instruments == sold.instruments and books.notna().all().all()


def test_policies_with_and_without_the_swap_are_not_loaded_together(trained, tmp_path):
    config, runs = trained["band"]
    alone = train(Config(method="erm_reg", runs=str(tmp_path / "runs"), **SMOKE | dict(instruments="spot", n_seeds=1)))
    with pytest.raises(ValueError, match="must share policy, features, width, instruments and limits of the features"):
        load_policy([*runs, *alone])


def test_the_swap_costs_a_spread_of_its_own():
    for name in ("low", "crisis_liquidity"):
        environment = ENVIRONMENTS[name]
        both = Terms(instruments=("spot", "variance_swap")).of(environment)
        episode = both.episode(16, torch.Generator().manual_seed(0), dtype=torch.float64)
        spread = episode.spread()
        torch.testing.assert_close(spread[..., 1], SWAP_SPREAD * spread[..., 0])
        alone = environment.episode(16, torch.Generator().manual_seed(0), dtype=torch.float64)
        held = torch.rand(alone.prices[..., 1:, :].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        nothing = torch.zeros_like(held)
        torch.testing.assert_close(settle(torch.cat([held, nothing], -1), episode).costs, settle(held, alone).costs)
        assert (settle(torch.cat([nothing, held], -1), episode).cost > 0).all()
    with pytest.raises(ValueError, match="factors must be at least 0"):
        PerInstrument((1.0, -1.0), Proportional(1e-4))
