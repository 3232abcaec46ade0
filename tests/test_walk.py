"""Folds of the record: what is judged comes after what was learnt from, and no day counts twice."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from hirm.campaign import Plan
from hirm.gathering import _walked, jobs
from hirm.config import as_config, judged_environments
from hirm.environments import ENVIRONMENTS, WALKS, nameable_environments, walk_forward


def test_a_fold_is_judged_on_later_days_than_it_saw_and_all_folds_cover_the_record_once():
    judged = []
    for year in WALKS:
        fold = walk_forward(year)
        *train, test = fold.values()
        assert [e.role for e in train] == ["train", "train"] and test.role == "test" and {e.family for e in fold.values()} == {f"walk_{year}"}
        assert max(e.market.spans["last"].max() for e in train) <= pd.Timestamp(f"{year}-12-31") < test.market.spans["past"].min()
        judged.extend(test.market.dates)
    assert len(judged) == len(set(judged)) and (judged[0].year, judged[-1].year) == (1998, 2022)
    assert np.diff(sorted({day.year for day in judged})).max() == 1


def test_a_fold_can_be_named_stands_in_no_table_and_is_judged_on_its_own_years_alone():
    assert set(walk_forward(2007)) <= set(nameable_environments()) and not set(walk_forward(2007)) & set(ENVIRONMENTS)
    rows = jobs("walk_forward", Plan())
    assert len(rows) == 15 and sum(job.n_seeds for job in rows) == 45
    config = as_config(next(job for job in rows if job.name == "until_2007-hirm").parameters)
    assert set(judged_environments(config)) == {"until_2007_low", "until_2007_medium", "years_2008_2012", "high"}


def test_days_gathered_are_those_ahead_of_members_alone_of_members_together_and_of_delta(tmp_path):
    ahead, behind = ("years_2008_2012", "2008-02-01"), ("until_2007_low", "2001-02-01")
    runs = []
    for seed, pnl in enumerate((1.0, 3.0, 100.0)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows = [("erm", *ahead, pnl), ("erm", *behind, 9.0), ("delta", *ahead, -0.5), ("blend", *ahead, 2.5), ("whalley_wilmott", *ahead, 7.0)]
        table = pd.DataFrame(rows, columns=["method", "environment", "date", "pnl"])
        table.to_csv(folder / "calendar.csv", index=False)
        table.assign(cvar95=0.1 * table["pnl"], mean_pnl=table["pnl"], turnover=1.0).to_csv(folder / "metrics.csv", index=False)
        job = SimpleNamespace(cell="until_2007", arm="blind", asked={"method": "erm"}, campaign="walk_forward", name="until_2007-blind")
        runs.append((job, SimpleNamespace(artifacts=folder, folder=ROOT / "runs" / "walk_forward" / f"erm-s{seed}", diverged=7 if seed == 2 else None)))
    found = _walked(Plan(), runs)
    row = lambda method, pnl: dict(cell="until_2007", method=method, date="2008-02-01", pnl=pnl)
    assert found["days"].to_dict("records") == [row("blind", 2.0), row("delta", -0.5), row("blind_together", 2.5)]
    mixed = pd.read_csv(tmp_path / "1" / "metrics.csv")
    mixed.loc[mixed["method"] == "blend", "cvar95"] = 0.3
    assert found["together"].to_dict("records") == [dict(cell="until_2007", method="blind_together", environment="years_2008_2012", cvar95=0.25, mean_pnl=2.5, turnover=1.0)]
    mixed.to_csv(tmp_path / "1" / "metrics.csv", index=False)  # judged when there were fewer seeds
    with pytest.raises(ValueError, match="expected one of all seeds of blind in until_2007, got several.*rm -r runs/walk_forward/erm-s0 .*--forcerun runs/walk_forward/notebooks/until_2007-blind.ipynb"): _walked(Plan(), runs)
