"""What is asked: every parameter checked at the door, contents told apart, and the published runs still answer their questions."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT
import hirm.config
from hirm.campaign import Plan
from hirm.gathering import CAMPAIGNS
from hirm.gathering import jobs as campaign_jobs
from hirm.config import Config, as_config, judged_environments
from hirm.environments import ENVIRONMENTS, Environment, common_episodes, nameable_environments, stream
from hirm.features import COLUMNS
from hirm.frictions import Friction, Proportional
from hirm.history import Windows, load_series, same_record
from hirm.markets import GBM
from hirm.objectives import METHODS, SHARP, Sample
from hirm.panel import Panel
from hirm.parameters import fingerprint, given_since, read_claim, read_whole
from hirm.risk import CVaR
from hirm.runs import Run, config_hash
from hirm.training import companions, load_policy, train

SMALL = dict(method="erm", scale="smoke", environments="low,medium", n_paths=32, n_validation=200, n_evaluation=200)


def asked(**options):
    "A small config."
    return as_config({**SMALL, **options})


def name(**options):
    "Fingerprint of a small question."
    return config_hash(asdict(asked(**options).members()[0]))


# Fields that named a run's folder when the published runs were trained.
PUBLISHED_FIELDS = ("scale", "policy", "environments", "history", "realized_vol", "penalty_weight", "alpha", "cost", "risk_unit", "permute_labels",
                    "validate_on", "smoothing", "aversion", "width", "weight_decay", "clip", "keep", "n_paths", "updates", "pretrain", "ramp",
                    "learning_rate", "decay", "validate_every", "n_validation", "n_evaluation", "history_digest")


@pytest.fixture(scope="module")
def jobs():
    "Parameters of every training job as it is asked for by default, by campaign and name."
    return {campaign: {job.name: job.parameters for job in campaign_jobs(campaign, Plan())} for campaign in ("phase1", "learning")}


def published_name(member: Config) -> str:
    "Folder of a run, by the rule of the time when the published runs were trained."
    def number(value): return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    asked = {name: number(getattr(member, name)) for name in PUBLISHED_FIELDS}
    protocol = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return f"{member.method}-s{member.seed}-{protocol}"


@pytest.mark.parametrize("experiment", ["phase1", "learning"])
def test_the_jobs_ask_for_what_was_published(jobs, experiment):
    members = [member for job in jobs[experiment].values() for member in as_config(job).members()]
    recorded = set(json.loads((ROOT / "book" / "results" / experiment / "provenance.json").read_text())["runs"])
    assert recorded in ({published_name(member) for member in members}, {Run.of("runs", asdict(member)).folder.name for member in members})


@pytest.mark.parametrize("table", ["phase1/metrics", "phase1/controls", "phase1/weights", "learning/metrics"])
def test_each_job_is_published_under_its_own_policy_and_columns(jobs, table):
    published = pd.read_csv(ROOT / "book" / "results" / f"{table}.csv").query("job != 'baseline'")
    for name, rows in published.groupby("job"):
        config = as_config(jobs[table.split("/")[0]][name])
        assert set(zip(rows["policy"], rows["realized_vol"])) == {(config.policy, config.realized_vol)}, name


def test_a_hedger_does_not_see_the_realised_vol_unless_it_is_asked_to():
    assert "realized_vol" not in Config().columns and "realized_vol" in Config(realized_vol=True).columns


def test_a_run_is_judged_on_the_families_that_it_was_trained_in():
    regimes = judged_environments(Config(method="erm", environments="low,medium"))
    coloured = judged_environments(Config(method="erm", environments="coloured_strong,coloured_weak", validate_on="coloured_home", extra_features="last_return"))
    assert "crisis" in regimes and not any(name.startswith("coloured") for name in regimes)
    assert "coloured_turned" in coloured and "crisis" not in coloured


def test_extra_features_are_named_or_refused():
    asked = dict(method="erm", environments="low,medium")
    assert Config(**asked, extra_features="last_return").columns == ("delta", "gamma", "tau", "last_return")
    assert Config(**asked, realized_vol=True).columns == ("delta", "gamma", "tau", "realized_vol")
    with pytest.raises(ValueError, match="did you mean 'last_return'"):
        Config(**asked, extra_features="last_retrun")


@pytest.mark.parametrize("value, means", [
    *((word, True) for word in (True, "True", "true", "TRUE", "yes", "Yes", " 1 ", 1)), *((word, False) for word in (False, "False", "false", "no", "NO", "0", 0)),
])
def test_a_claim_means_what_it_says(value, means):
    assert read_claim("realized_vol", value) is means
    assert asked(realized_vol=value).realized_vol is means and asked(permute_labels=value).permute_labels is means
    assert ("realized_vol" in asked(realized_vol=value).columns) is means


@pytest.mark.parametrize("value, means", [(3, 3), (3.0, 3), ("3", 3), ("3.0", 3), (1e3, 1000), ("1e3", 1000), (" 12 ", 12), (np.float64(8), 8)])
def test_a_whole_number_in_every_spelling(value, means):
    read = read_whole("updates", value, 1, 10**6)
    assert read == means and type(read) is int
    assert asked(keep=value).keep == means and type(asked(keep=value).keep) is int


MEANT = {  # fields for which a value below is a good one
    "false way": ("runs",), "nan": ("runs",), "inf": ("runs",), "1,5": ("runs", "penalty_weight"), 1e300: ("penalty_weight",), "": ("extra_features", "plugins"),
    1.5: ("penalty_weight", "cost", "strike", "smoothing", "aversion", "clip"),
}


@pytest.mark.parametrize("value", ["", " ", "false way", float("nan"), float("inf"), [], {}, 1.5, b"low", "nan", "inf", -1, 1e300, "1,5", object()], ids=lambda value: repr(value).partition(" at 0x")[0])
def test_no_field_takes_what_it_cannot_mean(value):
    good = [names for meant, names in MEANT.items() if type(meant) is type(value) and meant == value]
    for field in fields(Config):
        if field.name in (*(good[0] if good else ()), "contents"):
            continue
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            asked(**{field.name: value})
        said = str(refused.value)
        assert field.name in said or "choose from" in said, said  # what
        assert re.search("got .*; |did you mean .*choose from", said) and "\n" not in said, said  # got what, and the cure


WRONG = [
    (dict(method="imr"), "did you mean 'irm'"), (dict(scale="huge"), "smoke, laptop, paper"), (dict(policy="bnad"), "did you mean 'band'"), (dict(sede=1), "did you mean 'seed'"),
    (dict(seed=1.5), "seed must be a whole number .* got 1.5"), (dict(seed=True), "got True"), (dict(seed=-1), "got -1"), (dict(width=31.5), "width must be a whole number"),
    (dict(width=1e7), "from 1 to 1,024, got 10000000.0"), (dict(n_seeds=1e6), "from 1 to 100, got 1000000.0"), (dict(n_seeds=0), "n_seeds"), (dict(updates=0), "updates"),
    (dict(updates="many"), "got 'many'; the usual value is -p updates 600"), (dict(n_seeds=60, penalty_weight="0.1,1", method="irm"), "at most 100 members"),
    (dict(realized_vol="maybe"), "true or false, got 'maybe'"), (dict(realized_vol=1.0), "true or false"), (dict(realized_vol=None), "true or false"), (dict(permute_labels=2), "true or false"),
    (dict(alpha=0.2), "for the worst 20 % write 0.8"), (dict(alpha=0.05), "for the worst 5 % write 0.95"), (dict(alpha=95), "for the worst 5 % write 0.95"), (dict(alpha=1), "lie in"),
    (dict(alpha=0), "lie in"), (dict(alpha="high"), "lie in"), (dict(alpha=True), "lie in"), (dict(alpha=0.999), "the tail must hold at least one path, got n_validation .* at alpha 0.999; write 1000 or more"), (dict(n_evaluation=50, alpha=0.99), "got n_evaluation 50 at alpha 0.99; write 100 or more"), (dict(n_evaluation=10, alpha=0.9), "n_evaluation must be a whole number from 20"),
    (dict(n_paths=0), "n_paths .* from 2 .* got 0"), (dict(n_paths=33), "even.* write 34"), (dict(pretrain=10, updates=12, ramp=4), "must fit"),
    (dict(learning_rate=0.0), "learning_rate"), (dict(learning_rate=1e9), "learning_rate must be a number from 1e-12 to 1"), (dict(cost=-1.0), "cost must be a number from 0 .* got -1"),
    (dict(smoothing=0), "smoothing must be a number"), (dict(aversion=0), "aversion must be a number"), (dict(clip=0), "clip"),
    (dict(penalty_weight=-0.1), "penalty_weight .* got -0.1"), (dict(penalty_weight="much"), "penalty_weight .* got 'much'"), (dict(penalty_weight=[1, 1]), "each weight once, got 1 twice"),
    (dict(penalty_weight="1,1.0"), "each weight once"), (dict(penalty_weight=True), "penalty_weight"), (dict(penalty_weight=[]), "at least one weight"),
    (dict(device="gpu"), "cpu, cuda or cuda:N, got 'gpu'"), (dict(device="cuda:x"), "got 'cuda:x'"), (dict(device=0), "device must be text"), (dict(device="cuda:99"), "this machine has"),
    (dict(environments=""), "empty place"), (dict(environments="low,medium,"), "empty place"), (dict(environments="low,,medium"), "empty place"), (dict(environments=[]), "empty place"),
    (dict(environments="low,low"), "'low' 2 times"), (dict(environments="low, low "), "'low' 2 times"), (dict(environments="low,mediun"), "did you mean 'medium'"),
    (dict(environments="low", method="irm"), "compares environments"), (dict(environments="low,low", method="irm"), "each name once"), (dict(environments="LOW"), "did you mean"),
    (dict(validate_on="hihg"), "did you mean 'high'"), (dict(validate_on="low"), "not trained on, got 'low'"), (dict(environments="low,high"), "not trained on, got 'high'"),
    (dict(environments="low,crisis", validate_on="crisis"), "not trained on, got 'crisis'"),
    (dict(environments="history_low,low", validate_on="history_medium"), "must not share a day .* history_medium and history_low"),
    (dict(runs=""), "runs must be text"), (dict(runs="."), "holds the whole project"), (dict(runs="nbs/.."), "holds the whole project"), (dict(runs="/"), "holds the whole project"), (dict(runs="nbs"), "where the sources of the project are"), (dict(runs="hirm/../tests/runs"), "where the sources of the project are"),
    (dict(runs=5), "-r runs 5"), (dict(history="nowhere.csv"), "no file is"), (dict(risk_unit="euro"), "reference"), (dict(decay="slow"), "cosine"), (dict(extra_features="delta"), "beside the usual"),
    (dict(extra_features="realized_vol"), "-p realized_vol true"), (dict(extra_features="last_return,last_return"), "each name once"), (dict(contents={"method erm": 3}), "fingerprints by name"),
]


@pytest.mark.parametrize("wrong, words", WRONG)
def test_bad_input_is_refused_before_any_folder_is_made(tmp_path, wrong, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        as_config({**SMALL, "runs": str(tmp_path / "runs"), **wrong})
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        asked(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_taken_where_it_is():
    assert asked(device="cuda").device == "cuda" and asked(device="CUDA:0").device == "cuda:0"


def test_an_oracle_may_be_chosen_where_it_was_trained():
    assert asked(environments="low,medium,high,crisis").validate_on == "high"


def test_recorded_sets_do_not_share_windows(monkeypatch):
    first, second = (Windows(start=start, end="2004-12-31") for start in ("2003-01-02", "2004-12-01"))
    for key, market in (("first", first), ("second", second)):
        monkeypatch.setitem(ENVIRONMENTS, key, Environment(key, "train", market, Proportional(1e-4)))
    with pytest.raises(ValueError, match="must not share recorded windows, got first and second with 22 in common, the first of 2004-12-01"):
        asked(environments="first,second")
    assert asked(environments="first,low").names == ["first", "low"]  # a recorded environment of one's own is known by its name
    monkeypatch.setitem(ENVIRONMENTS, "second", Environment("second", "test", second, Proportional(1e-4)))
    with pytest.raises(ValueError, match="chosen or judged by must not share a day .* second and first"):
        asked(environments="first,low")


@pytest.mark.parametrize("spelt", [
    dict(environments="low, medium"), dict(environments=["low", "medium"]), dict(method=" erm "), dict(updates="1.2e1"), dict(realized_vol="No"), dict(penalty_weight=0), dict(penalty_weight=[0.0]),
    dict(penalty_weight="0"), dict(alpha="0.95"), dict(aversion="none"), dict(width=32.0), dict(learning_rate="1e-3"), dict(cost=1), dict(decay="cosine"), dict(history=" sp500"), dict(runs="runs/elsewhere"),
])
def test_another_spelling_is_the_same_question(spelt):
    assert name(**spelt) == name()


def test_the_default_weight_written_out_is_the_same_question():
    assert name(method="irm") == name(method="irm", penalty_weight=0.1) == name(method="irm", penalty_weight="1e-1") != name(method="irm", penalty_weight=0.2)


@pytest.fixture
def prices(tmp_path):
    "A file of daily closes in a folder of its own."
    days = pd.bdate_range("2010-01-04", periods=900)
    close = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, len(days))))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "my.csv"
    pd.DataFrame({"date": days.strftime("%Y-%m-%d"), "close": close.round(4)}).to_csv(path, index=False)
    return path


def test_no_recorded_set_of_the_sp500_stays_beside_a_history_of_ones_own(prices):
    mine = nameable_environments(str(prices))
    recorded = {name: e.market.source for name, e in mine.items() if isinstance(e.market, Windows)}
    assert recorded and all(Path(source).resolve() == prices.resolve() for source in recorded.values()), recorded
    assert {"history_1990_1999", "history_2000_2007", "history_2009_2017"} <= set(nameable_environments())
    with pytest.raises(ValueError, match="unknown environment 'history_1990_1999'"):
        asked(environments="low,history_1990_1999", history=str(prices))


def test_a_file_by_another_path_is_the_same_question(prices, monkeypatch, tmp_path):
    monkeypatch.chdir(prices.parent)
    spellings = ("my.csv", "./my.csv", "../data/my.csv", str(prices))
    shutil.copy(prices, tmp_path / "copy.csv")
    assert len({name(history=spelling) for spelling in (*spellings, str(tmp_path / "copy.csv"))}) == 1 != name()
    kept = asked(history="my.csv")
    assert not os.path.isabs(kept.history) and (ROOT / kept.history).resolve() == prices.resolve()
    monkeypatch.chdir(tmp_path)
    assert Config(**asdict(kept)) == kept  # from wherever it is read back


def test_a_file_that_changed_is_refused(prices):
    kept = asdict(asked(history=str(prices)))
    prices.write_text(prices.read_text().replace("2010-01-04,", "2010-01-04,1"))
    with pytest.raises(ValueError, match="has changed"):
        Config(**kept)


def test_prices_that_were_moved_are_known_by_their_contents(prices, tmp_path):
    kept = asdict(asked(history=str(prices)))
    moved = prices.rename(tmp_path / "moved.csv")
    hirm.config._READ.clear()
    with pytest.raises(FileNotFoundError, match="^history .* must be where it was when this run was made, got no file there; put it back, or say by -p history where it is now"): Config(**kept)
    assert Config(**asdict(asked(history=str(moved)))).contents == kept["contents"]
    assert Config(**kept).history == os.path.relpath(moved, ROOT) and judged_environments(Config(**kept)).keys() == judged_environments(asked(history=str(moved))).keys()
    hirm.config._READ.clear()
    Panel(history=str(moved))
    assert Config(**kept).history == os.path.relpath(moved, ROOT)


@pytest.mark.parametrize("n_steps, kept", [(248, True), (252, False), (504, False)])
def test_a_record_without_a_window_of_a_long_life_is_left_out(n_steps, kept):
    judged = judged_environments(asked(n_steps=n_steps))
    assert ("bear_2022" in judged) is kept and {"gfc", "crisis"} <= judged.keys()
    if not kept:
        for wrong in (dict(environments="low,bear_2022"), dict(validate_on="bear_2022")):
            with pytest.raises(ValueError, match=f"n_steps must fit into what environment bear_2022 records, got {n_steps}; write fewer"): asked(n_steps=n_steps, **wrong)


@pytest.mark.parametrize("change", [lambda close: close, lambda close: 2 * close, lambda close: close.round(1)])
def test_days_of_one_market_overlap_whatever_file_they_come_from(tmp_path, change):
    series = load_series()
    for name, rows in (("one", series), ("two", series.iloc[:-1].assign(close=change(series["close"].iloc[:-1])))): rows.to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "mine.yaml").write_text("mine_a: {file: one.csv, role: train, start: 2008-06-01, end: 2009-06-30, half_spread: 0.001}\n"
                                        "mine_b: {file: two.csv, role: train, start: 2008-01-01, end: 2009-03-30, half_spread: 0.001}\n")
    with pytest.raises(ValueError, match="environments must not share recorded windows, got mine_a and mine_b"): asked(plugins=str(tmp_path / "mine.yaml"), environments="mine_a,mine_b")
    with pytest.raises(ValueError, match="must not share a day with what it is trained on, got gfc and mine_a"): asked(plugins=str(tmp_path / "mine.yaml"), environments="low,mine_a")


def test_other_markets_do_not_overlap(prices, tmp_path):
    assert not same_record("sp500", prices) and same_record("sp500", "sp500")


@pytest.mark.parametrize("folder, says", [("book/results/phase1", "where the sources of the project are"), (".git/x", "where the sources of the project are"), ("profiles", "where the sources"),
                                          ("~/x", "whose ~ is read by a shell only; write /")])
def test_runs_lie_where_nothing_else_does(folder, says):
    with pytest.raises(ValueError, match=says): asked(runs=folder)


def test_runs_do_not_lie_in_a_run(tmp_path):
    (tmp_path / "erm-s0-01234567").mkdir()
    for name in ("config.yaml", "metadata.json"): (tmp_path / "erm-s0-01234567" / name).write_text("{}")
    with pytest.raises(ValueError, match="where the run erm-s0-01234567 is"): asked(runs=str(tmp_path / "erm-s0-01234567" / "more"))


def test_every_seed_is_in_its_range_not_the_first_alone():
    assert asked(seed=10**9).seed == 10**9
    with pytest.raises(ValueError, match="every seed must be a whole number from 0 to 1,000,000,000, got 1,000,000,001, the last of 2"): asked(seed=10**9, n_seeds=2)


def test_names_of_a_notebook_that_are_given_another_value_are_given():
    before = {"mirror": print, "In": []}
    assert given_since(before, before | {"before": before, "seed": 3, "mirror": "offline", "_i": 4}) == {"seed": 3, "mirror": "offline"}
    assert given_since(before, before | {"before": before}) == {}
    assert given_since(before, before | {"_": 1, "___": 1, "_ii": "x", "_i12": "x", "_3": 1, "_exit_code": 0, "__session__": "x"}) == {}
    assert given_since(before, before | {"_seed": 7}) == {"_seed": 7}  # a slip, refused at the door


def test_two_files_of_one_name_are_not_guessed(prices, monkeypatch):
    monkeypatch.setattr("hirm.config.project", lambda: prices.parents[1])
    (prices.parents[1] / "my.csv").write_text(prices.read_text().replace("2010-01-04,", "2010-01-04,1"))
    monkeypatch.chdir(prices.parent)
    with pytest.raises(ValueError, match="one in the working directory and another in the project"):
        asked(history="my.csv")


def test_members_are_checked_once(monkeypatch):
    sweep = asked(method="irm", n_seeds=50, penalty_weight="0.1,1")
    checked = []
    monkeypatch.setattr(Config, "__post_init__", lambda self: checked.append(self))
    members = sweep.members()
    assert len(members) == 100 and not checked
    assert {(member.seed, member.penalty_weight, member.n_seeds) for member in members} == {(seed, weight, 1) for seed in range(50) for weight in (0.1, 1.0)}


def test_a_member_reads_back_as_it_is():
    for member in asked(method="irm", n_seeds=2, penalty_weight=[0.1, 1]).members():
        assert Config(**asdict(member)) == member


# What a name stands for.

def grown(times):
    return lambda trade: times * trade


@dataclass(frozen=True)
class Wide(Friction):
    "A friction of a user's own."
    rate: float = 1e-4
    table: torch.Tensor = torch.arange(3.0)
    shape: object = abs

    def cost(self, trades, prices, paths):
        return self.rate * self.shape(trades) * prices


class Plain:
    "A market of a user's own without fields."
    def __init__(self, vol):
        self.base = GBM(vol)

    def simulate(self, *given, **options):
        return self.base.simulate(*given, **options)


@pytest.mark.parametrize("change", [
    dict(market=GBM(0.3)), dict(friction=Proportional(3e-4)), dict(friction=Wide()), dict(n_steps=30), dict(dt=1 / 365), dict(instruments=("spot", "variance_swap")), dict(role="test"),
    dict(liability=replace(ENVIRONMENTS["low"].liability, strike=1.1)),
], ids=lambda change: next(iter(change)))
def test_an_environment_of_the_same_name_is_another_question(change, monkeypatch):
    before, changed = name(), replace(ENVIRONMENTS["low"], **change)
    assert fingerprint(changed) != fingerprint(ENVIRONMENTS["low"])
    monkeypatch.setitem(ENVIRONMENTS, "low", changed)
    if set(change) & {"n_steps", "dt", "instruments", "liability"}:  # which all environments of a run have in common
        with pytest.raises(ValueError, match=f"environments of one run must (share {next(iter(change))}|trade the same instruments), got .*; "):
            name()
    else:
        assert name() != before


@pytest.mark.parametrize("environment, how", [("high", "validated"), ("crisis_broken", "judged"), ("gfc", "judged"), ("history_low", "trained")])
def test_every_environment_that_a_run_depends_on_counts(environment, how, monkeypatch):
    options = dict(environments="low,history_low") if how == "trained" else {}
    before = name(**options)
    monkeypatch.setitem(ENVIRONMENTS, environment, replace(ENVIRONMENTS[environment], friction=Proportional(4e-4)))
    assert name(**options) != before and nameable_environments()[environment].friction == Proportional(4e-4)


def test_an_environment_that_a_run_does_not_meet_does_not_count(monkeypatch):
    before = name()
    monkeypatch.setitem(ENVIRONMENTS, "sabr_calm", replace(ENVIRONMENTS["sabr_calm"], friction=Proportional(4e-4)))
    monkeypatch.setitem(ENVIRONMENTS, "low", replace(ENVIRONMENTS["low"], source="another note"))
    assert name() == before


@pytest.mark.parametrize("change", [
    dict(dropout=0.5), dict(weight_decay=1e-2), dict(objective=METHODS["vrex"].objective), dict(objective=lambda sample, weight, state: sample.risk.mean(1)), dict(needs=("scale",)),
    dict(min_environments=2),
], ids=lambda change: next(iter(change)))
def test_a_method_of_the_same_name_is_another_question(change, monkeypatch):
    before = name()
    monkeypatch.setitem(METHODS, "erm", replace(METHODS["erm"], **change))
    assert name() != before


def test_a_column_of_the_same_name_is_another_question(monkeypatch):
    before = name()
    monkeypatch.setitem(COLUMNS, "tau", COLUMNS["tau"]._replace(values=lambda episode: 2 * episode.paths.tau.expand_as(episode.paths.spot)))
    assert name() != before


def test_a_done_run_is_not_returned_for_another_question(tmp_path, monkeypatch, capsys):
    options = asked(runs=str(tmp_path / "runs"))
    done = train(options)[0]
    done.finish({})
    assert train(options)[0].folder == done.folder
    monkeypatch.setitem(ENVIRONMENTS, "low", replace(ENVIRONMENTS["low"], friction=Proportional(7e-4)))
    with pytest.raises(ValueError, match="^environment low must be what it was when this run was made"):
        load_policy(done)
    with pytest.raises(ValueError, match="environment low"):
        Config(**done.config)
    capsys.readouterr()
    other = train(asked(runs=str(tmp_path / "runs")))[0]
    assert other.folder != done.folder and not other.done
    said = " ".join(capsys.readouterr().err.split())
    assert f"{done.folder.name} asked the same in words, but since then environment low has become another" in said


@pytest.mark.parametrize("one, same, other", [
    (Wide(), Wide(1e-4, torch.tensor([0.0, 1, 2])), Wide(table=torch.tensor([0.0, 1, 3]))), (Wide(shape=grown(2)), Wide(shape=grown(2.0)), Wide(shape=grown(3))),
    (Plain(0.2), Plain(0.2), Plain(0.3)), (partial(grown, 2), partial(grown, 2), partial(grown, 3)), (np.array([1.0, 2]), np.array([1.0, 2]), np.array([1.0, 2], "f4")),
    (torch.ones(2, 2).T, torch.ones(2, 2), torch.ones(4)), ({1, 2}, {2, 1}, {1, 3}), ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}), ((1, 2), [1.0, 2.0], (2, 1)),
    (np.array(["a", None], object), np.array(["a", None], object), np.array(["b", None], object)),
], ids=["dataclass", "closure", "plain", "partial", "array", "tensor", "set", "mapping", "list", "objects"])
def test_contents_are_taken_by_value(one, same, other):
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


SCRIPT = """
import torch
from dataclasses import dataclass
from functools import cached_property
from hirm.parameters import fingerprint

FACTOR = {factor}

def helper(x):
    "{words}"
    return FACTOR * x  {comment}

class Friction:
    step = {step}
    def __init__(self):
        self.noise, self.names = torch.ones(3), {{"a", "b", "c", "d"}}
    def cost(self, trades, prices, paths):
        return [helper(x) for x in trades]
    @cached_property
    def heavy(self): return 1
    @property
    def wide(self): return {wide}

one = Friction()
first = fingerprint(one)
one.heavy
assert fingerprint(one) == first
print(first)
"""


def test_contents_are_the_same_in_every_process_and_follow_what_is_calculated():
    plain = {"factor": 2.0, "words": "", "comment": "", "step": 1, "wide": 3}
    changes = {}, {"words": "other words", "comment": "# a comment"}, {"factor": 3.0}, {"step": 2}, {"wide": 4}
    program = f"for text in {[SCRIPT.format(**plain | change) for change in changes]!r}: exec(text, {{'__name__': '__main__'}})"
    found = []
    for seed in ("0", "7"):  # of the order of sets
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0] == found[1] and found[0][0] == found[0][1] and len(set(found[0])) == 4


PARTS = {  # what a user's part may rest on, and what changes in it
    "generator": ("thing = lambda x: sum(text == {} for text in x)", "'a'", "'b'"),
    "told in its own words": ("def thing(x):\n    {}\n    return {}", "'a'", "'b'"),
    "decorator": ("def twice(f):\n    @wraps(f)\n    def g(x): return {} * f(x)\n    return g\n@twice\ndef thing(x): return x", 2, 3),
    "decorated method": ("def twice(f):\n    @wraps(f)\n    def g(self): return {} * f(self)\n    return g\nclass thing:\n    @twice\n    def cost(self): return 1", 2, 3),
    "cached": ("@cache\ndef thing(x): return {} * x", 2, 3),
    "cached helper": ("@cache\ndef helper(x): return {} * x\nthing = lambda x: helper(x)", 2, 3),
    "cached in a closure": ("def made():\n    @cache\n    def helper(x): return {} * x\n    return lambda x: helper(x)\nthing = made()", 2, 3),
    "cached in a field": ("@cache\ndef helper(x): return {} * x\n@dataclass(frozen=True)\nclass Part: f: object\nthing = Part(helper)", 2, 3),
    "cached static method": ("class thing:\n    @staticmethod\n    @cache\n    def cost(x): return {} * x", 2, 3),
    "partial helper": ("def helper(a, b, x): return a * x\nhalf = partial(helper, {}, None)\nthing = lambda x: half(x)", 2, 3),
    "partial method": ("def helper(self, a): return a\nclass thing: cost = partialmethod(helper, {})", 2, 3),
    "table": ("RATES = dict(low={}, high=[1.0])\nthing = lambda x: RATES[x]", 0.1, 0.2),
    "table of a class": ("class thing:\n    RATES = [{}]\n    def cost(self): return self.RATES", 0.1, 0.2),
    "table beside what is filled": ("KNOTS = [0.0, [{}]]\ndef thing(x):\n    x[0] = KNOTS[1]\n    return x", 0.1, 0.2),
    "ufunc": ("act = {}\nthing = lambda x: act(x)", "np.exp", "np.log"),
    "builtin": ("act = {}\nthing = lambda x: act(x)", "torch.relu", "torch.tanh"),
    "builtin of another module": ("def thing(x, f={}): return f(x)", "math.sqrt", "cmath.sqrt"),
    "own start of a dataclass": ("@dataclass\nclass Base:\n    r: float = 1.0\nclass thing(Base):\n    def __init__(self): self.r = {}", 2.0, 3.0),
    "default factory": ("@dataclass\nclass thing: r: list = field(default_factory=lambda: [{}])", 2, 3),
    "slot": ("@dataclass(slots=True)\nclass thing: r: float = {}", 2.0, 3.0),
    "enum": ("class thing(Enum): A = {}", 2, 3),
    "member of an enum": ("class Kind(Enum):\n    A = 1\n    B = 2\nkind = {}\nthing = lambda x: kind", "Kind.A", "Kind.B"),
    "star": ("def thing({}): return sum(x)", "x", "*x"),
    "star between": ("def thing({}): return a + b", "a, b", "a, *, b"),
}


@pytest.mark.parametrize("part", PARTS)
def test_whatever_a_function_of_ones_own_rests_on_makes_it_another(part):
    text, one, other = PARTS[part]

    def made(value):
        return fingerprint(in_a_room(text.replace("{}", str(value)))["thing"])
    assert made(one) == made(one) != made(other)


def in_a_room(text):
    "What a file of a user's own defines."
    room = {"__name__": "my_parts"}
    head = "import cmath, math, torch\nimport numpy as np\nfrom dataclasses import dataclass, field\nfrom enum import Enum\nfrom functools import cache, cached_property, partial, partialmethod, wraps\n"
    exec(head + text, room)
    return room


@pytest.mark.parametrize("text", [
    "seen = {}\ndef thing(x):\n    seen[x] = x\n    return x", "_CACHE = {}\nKEY = 3\ndef thing(x):\n    _CACHE[max(x, KEY), 'a'] = torch.ones(3)\n    return x",
    "SEEN = []\ndef thing(x):\n    SEEN.append(x)\n    return x", "SEEN = {}\ndef thing(x): return SEEN.setdefault(x, torch.ones(2))",
    "class Part:\n    CACHE = {}\n    def __call__(self, x): self.CACHE[x] = x\nthing = Part()", "class Part:\n    @cached_property\n    def c(self): return 1\n    def __call__(self, x): return self.c\nthing = Part()",
    "PARTS = dict(one=dict)\ndef thing(x): return len(PARTS)\ndef other(): PARTS['two'] = list", "@cache\ndef thing(x): return x",
])
def test_what_a_part_only_remembers_does_not_make_it_another(text):
    room = in_a_room(text)
    before = fingerprint(room["thing"])
    room["thing"](1)
    room.get("other", int)()
    assert fingerprint(room["thing"]) == before


def test_a_docstring_may_be_added():
    assert fingerprint(in_a_room("def thing(x): x.sort()")["thing"]) == fingerprint(in_a_room("def thing(x):\n    'Sort it.'\n    x.sort()")["thing"])


@pytest.mark.parametrize("use", ["import helpers_of_mine\nthing = lambda x: helpers_of_mine.RATE * x", "import helpers_of_mine as h\nthing = lambda x: h.cost(x)",
                                 "def thing(x):\n    from helpers_of_mine import RATE\n    return RATE * x"])
def test_a_module_of_ones_own_counts_by_what_is_read_from_it(use, monkeypatch):
    def made(rate, unread):
        module = ModuleType("helpers_of_mine")
        exec(f"RATE, UNREAD = {rate}, {unread}\ndef cost(x): return RATE * x", vars(module))
        monkeypatch.setitem(sys.modules, "helpers_of_mine", module)
        return fingerprint(in_a_room(use)["thing"])
    assert made(2, 0) == made(2, 1) != made(3, 0)


def test_what_has_no_contents_is_refused():
    with pytest.raises(TypeError, match="must have contents that can be told, got .* make it a dataclass"):
        fingerprint(open(os.devnull))


def test_functions_of_the_package_go_by_name():
    assert fingerprint(METHODS["irm"].objective) == hashlib.sha256(repr(("name", "hirm.objectives.irm")).encode()).hexdigest()[:8]


# Where random numbers are drawn.

def test_random_numbers_are_drawn_on_the_cpu_whatever_the_device():
    assert stream(0, "train:low:0").device.type == "cpu" and list(signature(stream).parameters) == ["seed", "purpose"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("environment", ["low", "crisis_jumps", "sabr_crisis", "gfc"])
def test_a_gpu_meets_the_same_paths(environment):
    here, there = (next(common_episodes(ENVIRONMENTS[environment], 2_000, "evaluation", device=device)) for device in ("cpu", "cuda"))
    assert there.prices.device.type == "cuda"
    torch.testing.assert_close(there.prices.cpu(), here.prices, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("asked, says", [
    (dict(method="erm_reg", weight_decay=0.01), "weight_decay is erm_reg's own, 0.001, and must be left out, got 0.01"),
    (dict(method="erm", aversion=1.0, smoothing=0.05), "smoothing belongs to the CVaR and must be left out where aversion asks for the entropic risk, got 0.05"),
    (dict(method="erm", aversion=1.0, alpha=0.9, risk_unit="spot"), "alpha belongs to the CVaR and must be left out"),
    (dict(method="wcvar", aversion=1.0), "wcvar is the worst case of a CVaR, and has no use for aversion, got 1"),
    (dict(method="vrex", smoothing=0.9), "smoothing is for penalties that look at a smoothed tail, and vrex reads none, got 0.9; leave it out"),
    (dict(method="irm", smoothing=0.9, penalty_weight=0), "and irm without weight has none, got 0.9"),
    (dict(method="erm", environments="coloured_strong,coloured_weak", validate_on="coloured_home", history="{prices}"), "history must be read by what is trained on or judged in, got .* beside coloured_strong, coloured_weak alone; leave it out"),
    (dict(method="erm", environments="sabr_calm,low", attack_radius=0.03, instruments="spot,variance_swap"), "attack_radius shakes the spot alone, got it beside spot,variance_swap; leave one of the two out"),
])
def test_what_would_be_left_unread_is_refused(tmp_path, asked, says):
    if "history" in asked:
        load_series().to_csv(tmp_path / "prices.csv", index=False)
        asked = asked | dict(history=str(tmp_path / "prices.csv"))
    with pytest.raises(ValueError, match=says): Config(**dict(scale="smoke", environments="low,medium") | asked)
    Config(scale="smoke", environments="low,medium", method="erm", aversion=1.0, alpha=0.9)  # delta's CVaR is the unit of the losses


def test_the_bandwidth_of_the_tail_is_read_by_all_methods_but_those_that_say_otherwise():
    generator = torch.Generator().manual_seed(0)
    loss, scale = torch.randn(1, 2, 64, generator=generator), torch.randn(1, 2, 64, generator=generator)
    told_by = {}
    for name in ("erm", "erm_pool", "erm_reg", "groupdro", "wcvar", "vrex", "term", "irm"):
        anchor = torch.zeros(1, 2)
        samples = [Sample(loss.clone().requires_grad_(), CVaR(smoothing=smoothing), scale, None, anchor) for smoothing in (0.02, 0.9)]
        risks = [METHODS[name](sample, torch.ones(1), {}) for sample in samples]
        told_by[name] = not torch.equal(*risks) or not torch.equal(*(torch.autograd.grad(risk.sum(), sample.loss)[0] for risk, sample in zip(risks, samples)))
    assert [name for name, told in told_by.items() if told] == ["irm"]
    assert {name for name, method in METHODS.items() if method.objective in SHARP} == told_by.keys() - {"irm"}


def test_every_job_of_every_campaign_is_taken_at_the_door_and_finds_its_erm():
    asked = {json.dumps(job.parameters | dict(seed=0, n_seeds=1), sort_keys=True) for campaign in CAMPAIGNS for job in campaign_jobs(campaign, Plan())}
    assert len(asked) > 100
    for words in sorted(asked): assert companions(Config(**json.loads(words))) == []


def test_a_record_of_when_less_was_refused_can_still_be_read():
    for was in (dict(method="erm", smoothing=0.9), dict(method="irm", smoothing=0.9, penalty_weight=0.0), dict(method="erm_reg", weight_decay=0.01)):
        with pytest.raises(ValueError): Config(scale="smoke", environments="low,medium", **was)
        assert Config(scale="smoke", environments="low,medium", contents={}, **was).contents
    swept = Config(scale="smoke", environments="low,medium", method="irm", smoothing=0.9, penalty_weight=[0, 1])
    assert [Config(**asdict(member)).weights for member in swept.members()] == [[0.0], [1.0]]


def test_minus_zero_is_no_weight_and_no_other_run():
    names = {config_hash(asdict(Config(method="irm", scale="smoke", environments="low,medium", penalty_weight=weight).members()[0])) for weight in (0, 0.0, -0.0, "-0")}
    assert len(names) == 1


@pytest.mark.parametrize("asked", [dict(runs="x" * 300), dict(runs="a\0b"), dict(history="x" * 300), dict(history="a\0b"), dict(plugins="x" * 300 + ".py"), dict(plugins="x" * 300), dict(runs="x/" * 3000)])
def test_what_no_file_can_be_called_is_refused_in_words(asked):
    (name, value), = asked.items()
    with pytest.raises(ValueError, match=rf"{name} must be a path, got .* of {len(value):,} characters, which no file can have; write a shorter one"): Config(scale="smoke", environments="low,medium", **asked)
