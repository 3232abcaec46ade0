"""What each rung of the ladder trains on, and that few of many environments are drawn fairly."""
from dataclasses import replace

import pytest
import torch

from hirm.campaign import ABOVE, as_plan
from hirm.gathering import jobs
from hirm.batches import batches, exchange, in_turn, keep_environments, random_labels
from hirm.config import Config, judged_environments, training_environments
from hirm.environments import ENVIRONMENTS, RUNGS, stream
from hirm.hedging import stack_episodes
from hirm.objectives import Sample, groupdro, recall, remember
from hirm.training import Learner, log_rows

MANY = ",".join(RUNGS["many"])


def asked(**special):
    return Config(**dict(method="erm", environments=MANY, scale="smoke", n_validation=2_000, draw=5) | special)


def test_every_rung_can_be_trained_on_and_none_trains_on_what_it_is_judged_by():
    for rung, names in RUNGS.items():
        config = Config(method="irm", environments=",".join(names), draw=5 if rung == "many" else None)
        assert list(training_environments(config)) == list(names)
        tests = {name for name, e in judged_environments(config).items() if e.role == "test"}
        assert "crisis" in tests and not tests & set(names)


def test_rungs_change_one_thing():
    of = {name: ENVIRONMENTS[name] for names in RUNGS.values() for name in names}
    assert {of[name].market.v0 for name in RUNGS["varied"]} == {of["low"].market.v0, of["medium"].market.v0}
    assert of["low_jumps"].market.base == of["low"].market and of["low_jumps"].friction == of["low"].friction
    assert of["medium_dear"].market == of["medium"].market and of["medium_dear"].friction != of["medium"].friction
    assert len({repr(of[name].market) for name in RUNGS["many"]}) == 30


def test_every_environment_comes_once_in_a_round_and_each_member_has_an_order_of_its_own():
    order = in_turn([3, 8], 30, 5, turn=4)
    assert order.shape == (2, 6, 5)
    assert order.flatten(1).sort().values.eq(torch.arange(30)).all()
    assert not order[0].equal(order[1]) and not order[0].equal(in_turn([3], 30, 5, turn=5)[0])
    assert order[1:].equal(in_turn([8], 30, 5, turn=4))


def test_a_drawn_group_holds_the_paths_of_its_environment():
    config = asked()
    environments = training_environments(config)
    few = batches(environments, [3, 8], config)
    for update in range(7):  # over the end of a round
        episode = next(few)
        turn, place = divmod(update, 6)
        assert episode.drawn.equal(in_turn([3, 8], 30, 5, turn)[:, place])
        name = list(environments)[episode.drawn[1, 2]]
        simulated = environments[name].episode((2**14 // 64 // 6) * 64, [stream(8, f"train:{name}:0")])
        assert episode.paths.spot[1, 2].flatten(0, 1).equal(simulated.paths.spot[0, 64 * turn:64 * (turn + 1)])
        assert episode.premium[1, 2].eq(simulated.premium[0, 0]).all()
    alone = batches(environments, [8], config, start=6)
    assert next(alone).paths.spot.equal(episode.paths.spot[1:])


def test_drawn_paths_pay_their_own_costs_also_where_labels_are_permuted():
    names = ["low", "low_dear", "crisis"]
    episodes = [ENVIRONMENTS[name].episode(8, [torch.Generator().manual_seed(0)]) for name in names]
    trades = lambda e: torch.ones_like(e.prices)
    chosen = torch.tensor([[2, 0]])
    few = keep_environments(stack_episodes(episodes, halves=2), chosen)
    paid = few.costs(trades(few)).flatten(2, 3)
    for place, e in enumerate(chosen[0]):
        assert torch.allclose(paid[0, place], episodes[e].costs(trades(episodes[e]))[0])
    mixed = exchange(few, random_labels(few, [torch.Generator().manual_seed(1)]))
    assert set(mixed.origin.unique().tolist()) == {0, 2}
    dearer = mixed.costs(trades(mixed))[..., 0][mixed.origin == 2]
    assert torch.allclose(dearer, episodes[2].costs(trades(episodes[2]))[0, 0, 0])
    assert mixed.drawn.equal(chosen)


def test_memory_belongs_to_the_environment_and_not_to_its_place():
    state, losses = {}, torch.arange(4.0).expand(1, 2, 4)
    first = Sample(losses, drawn=torch.tensor([[4, 1]]), among=6)
    remember(first, state, "threshold", torch.tensor([[40.0, 10.0]]))
    later = Sample(losses, drawn=torch.tensor([[1, 2]]), among=6)
    assert recall(later, state, "threshold", torch.tensor([[7.0, 8.0]])).tolist() == [[10.0, 8.0]]
    remember(later, state, "threshold", torch.tensor([[11.0, 20.0]]))
    assert state["threshold"][0, [1, 2, 4]].tolist() == [11.0, 20.0, 40.0] and state["threshold"][0, [0, 3, 5]].isnan().all()


def test_the_adversary_moves_only_the_weights_of_the_environments_that_it_met():
    state, weight = {}, torch.tensor([0.5])
    losses = torch.tensor([[1.0, 1, 1, 1], [3.0, 3, 3, 3]])[None]
    for drawn in ([[0, 1]], [[2, 3]], [[1, 2]]):
        groupdro(Sample(losses, drawn=torch.tensor(drawn), among=4), weight, state)
    q = state["q"][0]
    assert q[0] < 0.5 < q[3] and torch.isclose(q[[0, 1]].sum() + q[[2, 3]].sum(), torch.tensor(2.0))


def test_the_log_names_the_environments_that_a_member_met():
    config = asked(n_seeds=2)
    learner = Learner(config, config.members())
    episode = next(batches(learner.environments, learner.seeds, config))
    rows = log_rows(learner, 0, learner.update(0, episode))
    for member, row in enumerate(rows):
        met = [list(learner.environments)[place] for place in episode.drawn[member]]
        assert [name for name in row if name.startswith("risk.")] == [f"risk.{name}" for name in met]
        loss = learner.units[episode.drawn[member]]
        assert all(0.2 < row[f"risk.{name}"] / unit < 5 for name, unit in zip(met, loss.tolist()))


def test_a_price_that_no_float_holds_is_blamed_on_the_environment_that_the_member_met():
    config = asked(n_seeds=2)
    learner = Learner(config, config.members())
    episode = next(batches(learner.environments, learner.seeds, config))
    prices = episode.prices.clone()
    prices[1, -1, 0, 0, 1:] = float("inf")
    to_blame = list(learner.environments)[episode.drawn[1, -1]]
    assert to_blame != list(learner.environments)[prices.shape[1] - 1]  # whoever stands at this place of the list
    with pytest.raises(ValueError, match=f"environment {to_blame}: expected prices that single precision can hold"):
        learner.update(0, replace(episode, prices=prices))


@pytest.mark.parametrize("draw", [4, 30, 31])
def test_a_draw_that_leaves_somebody_out_is_refused(draw):
    with pytest.raises(ValueError, match=rf"draw must divide .* got {draw} of 30; write one of 1, 2, 3, 5"):
        asked(draw=draw)


def test_a_draw_of_one_is_too_few_for_a_method_that_compares():
    with pytest.raises(ValueError, match="irm compares environments and needs at least 2, got 1"):
        asked(method="irm", draw=1)


def test_each_rung_has_every_method_its_twin_and_two_rivals():
    rows = jobs("ladder", as_plan(dict(seeds=3)))
    methods = {"erm", "irm", "hirm", "vrex", "groupdro"}
    for rung in ABOVE:
        arms = {job.arm for job in rows if job.cell == rung}
        assert arms == methods | {f"{method}_permuted" for method in methods} | {"erm_reg", "erm_blind"}
        assert all(job.asked["environments"] == ",".join(RUNGS[rung]) and job.n_seeds == 3 for job in rows if job.cell == rung)
        assert all(job.asked.get("draw") == (5 if rung == "many" else None) for job in rows if job.cell == rung)
