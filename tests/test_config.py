"""What is asked: every parameter checked at the door, and the published runs still answer their questions."""
import hashlib
import json
from dataclasses import asdict

import pandas as pd
import pytest

from conftest import ROOT
from hirm.campaign import Plan, jobs as campaign_jobs
from hirm.config import as_config, Config, judged_environments

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
    hash8 = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return f"{member.method}-s{member.seed}-{hash8}"


@pytest.mark.parametrize("experiment", ["phase1", "learning"])
def test_the_jobs_ask_for_what_was_published(jobs, experiment):
    asked = {published_name(member) for job in jobs[experiment].values() for member in as_config(job).members()}
    recorded = json.loads((ROOT / "book" / "results" / experiment / "provenance.json").read_text())["runs"]
    assert asked == set(recorded)


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
