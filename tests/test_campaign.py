"""What is run and what is gathered: the table of jobs, and Phase 1 whole at smoke scale, killed, continued, with members that diverge and a run that gets lost."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from hirm.campaign import BASELINES, CAMPAIGNS, CELLS, Job, Plan, as_plan, diverged, gather, jobs, judged, runs_of, split, words
from hirm.config import SCALES, as_config
from hirm.runs import Record, Run

PHASE1 = ("phase1", "--config", "scale=smoke", "seeds=2", "cells=band-seeing")
PLAN = Plan(scale="smoke", seeds=2, cells="band-seeing")
KILLED, PARTLY, WHOLLY = "band-seeing-hirm-s0-1", "band-seeing-vrex-s0-1", "vrex_permuted-s0-1"
PLANTED = {"kill": KILLED, "diverge": {PARTLY: [1], WHOLLY: [0, 1]}}
COMMAND = f"""#!{sys.executable} -SE
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from warm import ask
sys.exit(ask({{socket!r}}, ["papermill", *sys.argv[1:]]))
"""


# The table.

def test_words_come_back_as_they_went():
    odd = dict(rate=1e-05, text="0", seeds="0,1,2", number=0, flag=True, nothing=None, many=[0.1, 1e-7], path="it's; touch x $(y) {z} # é", long="low," * 100)
    assert yaml.safe_load(words(odd)) == odd and "\n" not in words(odd)


@pytest.mark.parametrize("campaign", CAMPAIGNS)
@pytest.mark.parametrize("plan", [Plan(), Plan(seeds=1), Plan(scale="smoke", seeds=3), Plan(scale="paper", seeds=5, primary_seeds=5, cells="band-seeing", device="cuda:1")])
def test_every_job_has_a_name_of_its_own_and_spells_out_what_it_asks(campaign, plan):
    rows = jobs(campaign, plan)
    assert len({job.name for job in rows}) == len(rows) and all(re.fullmatch(r"[\w.-]+", job.name) for job in rows)
    for job in rows:
        assert {"method", "policy", "realized_vol", "environments", "scale", "device", "runs"} <= set(job.asked) and job.asked["device"] == plan.device
        assert job.campaign == campaign and job.n_seeds <= 5 and str(job.asked["runs"]).endswith("" if plan.scale == "laptop" else f"_{plan.scale}")
    for look in CAMPAIGNS[campaign].looks(plan): assert set(look.after) <= {job.name for job in rows if job.cell == look.cell}


def test_each_arm_of_phase_1_has_the_seeds_that_it_is_compared_by():
    rows, plan = jobs("phase1", Plan(seeds=7, primary_seeds=12, control_seeds=11)), {}
    for job in rows: plan.setdefault((job.table, job.cell, job.arm), []).extend(range(job.seed - job.first, job.seed - job.first + job.n_seeds))
    assert {len(plan[key]) for key in plan if key[:2] == ("metrics", "band-seeing") and key[2] != "oracle"} == {12}
    assert {len(plan[key]) for key in plan if key[0] == "metrics" and key[1] != "band-seeing" and key[2] != "oracle"} == {7}
    assert {len(plan[key]) for key in plan if key[0] == "controls"} == {11}
    assert all(seeds == list(range(len(seeds))) for seeds in plan.values())
    assert min(job.seed for job in rows if job.arm == "erm_again") == 1000


def test_what_waits():
    order = {(job.table, job.cell, job.arm, job.seed): job.order for job in jobs("phase1", Plan(seeds=7, primary_seeds=12))}
    assert order["metrics", "band-seeing", "irm", 5] == 0 and order["metrics", "band-seeing", "irm", 10] == 1
    assert order["controls", "band-seeing", "erm_again", 1000] == 0 and order["controls", "band-seeing", "erm_again", 1005] == 2
    assert {value for (_, cell, _, _), value in order.items() if cell != "band-seeing"} == {0}


def test_one_seed_more_is_that_seed_only():
    before, after = ({job.name: job.parameters for job in jobs("phase1", Plan(seeds=seeds))} for seeds in (10, 11))
    new = [after.pop(name) for name in set(after) - set(before)]
    assert after == before and {(asked["seed"], asked["n_seeds"]) for asked in new} == {(10, 1)} and len(new) == 3 * 6


REFUSED = {
    "sede=1": "unknown word of --config 'sede', did you mean 'seeds'?", "seeds=-3": "seeds must be a whole number from 1 to 1000, got -3",
    "seeds=1.5": "seeds must be a whole number from 1 to 1000, got 1.5", "seeds=1e6": "got 1000000.0", "seeds=true": "got True", "seeds=": "got None", "seeds=five": "got 'five'",
    "cells=xyz": "unknown cell 'xyz', did you mean", "cells=mlp-seeing": "cells must name band-seeing", "cells=": "unknown cell 'None'",
    "policies=band": "unknown word of --config 'policies'", "scale=nosuch": "unknown scale 'nosuch', did you mean 'smoke'?",
    "control_seeds=9": "control_seeds must be a whole number from 1 to 2, got 9", "primary_seeds=1": "primary_seeds must be a whole number from 2 to 1000, got 1",
    "device=cpu; touch ran": "device must be cpu, cuda or cuda:<number>, got 'cpu; touch ran'", "device=gpu": "got 'gpu'",
}


def test_a_name_twice_is_refused(monkeypatch):
    job = jobs("learning", Plan())[0]
    monkeypatch.setitem(CAMPAIGNS, "mine", replace(CAMPAIGNS["learning"], jobs=lambda plan: [job, job]))
    with pytest.raises(ValueError, match="expected a name for each, got erm twice"): jobs("mine", Plan())


# Runs made by hand.

def made(folder, members=((0, 0.04), (1, 0.05)), **changed):
    "A job and its finished runs; a member without a number diverged."
    asked = dict(method="erm", policy="band", realized_vol=True, environments="low", scale="smoke", device="cpu", runs=str(folder))
    job = Job("phase1", "controls", "band-seeing", "erm_again", "erm_again-s1000-1001", asked, n_seeds=len(members), seed=1000, first=1000)
    job = replace(job, **changed)
    for (_, run), member, (_, cvar95) in zip(runs_of([job]), as_config(job.parameters).members(), members):
        run.start({**vars(member)})
        if cvar95 is None:
            run.finish({"diverged": 7})
            continue
        rows = [dict(method=name, seed=member.seed, cvar95=cvar95) for name in ("erm", "delta", "hirm")]
        table = pd.DataFrame(rows).assign(environment="crisis", role="test", selection="validation: high", n_paths=100)
        table.assign(member=0, probe="none", turnover_to_erm=1.0, sharpe=0.0, sortino=0.0, cvar99_se=0.0).to_csv(run.artifacts / "metrics.csv", index=False)
        run.finish({})
    return job


def test_runs_are_judged_under_the_name_of_their_arm_and_paired_by_its_first_seed(tmp_path):
    table = judged(runs_of([made(tmp_path)]))
    assert list(table["method"]) == ["erm_again", "delta", "erm_again"] and list(table["seed"]) == [0, 0, 1]  # hirm stood beside it: its own job judges it
    assert list(table["cvar95"]) == [0.04, 0.04, 0.05] and list(table["job"]) == ["erm_again-s1000-1001", "baseline", "erm_again-s1000-1001"]
    assert table.columns[-4:].tolist() == ["policy", "realized_vol", "penalty_weight", "job"] and table["penalty_weight"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("members", [((0, None), (1, 0.05)), ((0, 0.04), (1, None))])
def test_one_that_diverged_keeps_its_rows_without_numbers(tmp_path, members):
    table = judged(runs_of([made(tmp_path, members)]))
    lost = table[table["selection"] == "diverged at update 7"]
    assert {"low", "high", "crisis", "covid"} <= set(lost["environment"]) and lost["cvar95"].isna().all() and lost["seed"].nunique() == 1 and set(lost["method"]) == {"erm_again"}
    assert table["cvar95"].notna().sum() == 2 and table.columns[-4:].tolist() == ["policy", "realized_vol", "penalty_weight", "job"]
    assert set(judged(runs_of([made(tmp_path / "all", ((0, None), (1, None)))]))["selection"]) == {"diverged at update 7"}


def test_an_arm_of_another_cell_or_oracle_is_told_apart(tmp_path):
    runs = runs_of([made(tmp_path, arm="oracle", cell="here")])
    assert judged(runs)["selection"].tolist() == ["oracle", "validation: high", "oracle"]
    assert judged(runs, ("cell", "environments")).columns[-3:].tolist() == ["cell", "environments", "job"]


@pytest.mark.parametrize("members, whole", [(((0, None), (1, None)), True), (((0, None), (1, 0.05)), False), (((0, 0.04), (1, 0.05)), False)])
def test_what_diverged_is_read_from_the_records(tmp_path, members, whole):
    job = made(tmp_path, members)
    assert diverged(words(job.parameters)) is whole
    shutil.rmtree(runs_of([job])[0][1].folder)  # a job that failed for another reason, whatever its log says
    assert not diverged(words(job.parameters))


# Phase 1 whole.

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of the project, of the smallest sizes."
    to = tmp_path_factory.mktemp("campaign")
    for name in ("nbs", "hirm", "profiles"): shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "Snakefile"): shutil.copy(ROOT / name, to)
    return to


@pytest.fixture(scope="module")
def command(project):
    "Runs Snakemake or papermill in that project, forked from a process that is warm."
    socket, programs = str(project / "door"), project / "programs"
    programs.mkdir()
    (programs / "papermill").write_text(COMMAND.format(socket=socket))
    (programs / "papermill").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | dict(PYTHONPATH=str(project), PATH=path)
    warm = subprocess.Popen([sys.executable, ROOT / "tests" / "warm.py", socket], cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not Path(socket).exists() and warm.poll() is None: time.sleep(0.1)
    assert warm.poll() is None, warm.communicate()[0].decode()

    def run(*argv, **planted):
        script = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from warm import ask; sys.exit(ask({socket!r}, {list(argv)!r}))"
        return subprocess.run([sys.executable, "-SEc", script], cwd=project, env=env | dict(PLANTED=json.dumps(planted)), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield run
    warm.kill()
    warm.wait()


def arms_of(campaign, plan=Plan()):
    "Seeds of each arm, by cell."
    found = {}
    for job in jobs(campaign, plan): found.setdefault((job.cell, job.arm), []).extend(range(job.seed, job.seed + job.n_seeds))
    return found


def test_every_arm_of_the_planted_case_has_its_permuted_twin_on_the_same_seeds():
    arms = arms_of("phase2")
    assert {cell for cell, _ in arms} == {"primary", "three_phases", "dose_0", "dose_0.1", "dose_0.4", "markets_3", "markets_5"}
    for (cell, arm), seeds in arms.items():
        assert seeds == list(range(30 if cell == "primary" else 10))
        if arm != "erm_blind": assert arms[cell, arm.removesuffix("_permuted") + "_permuted"] == seeds
    assert ("primary", "erm_blind") in arms


def test_a_cell_of_the_planted_case_differs_in_method_weight_and_labels_only():
    shared = {}
    for job in jobs("phase2", Plan()):
        asked = {name: value for name, value in job.asked.items() if name not in ("method", "penalty_weight", "permute_labels")}
        if job.arm == "erm_blind": asked["extra_features"] = "last_return"
        assert shared.setdefault(job.cell, asked) == asked, job.name
    assert all(asked["realized_vol"] is False and asked["validate_on"] == "coloured_home" for asked in shared.values())
    assert "pretrain" in shared["primary"] and "pretrain" not in shared["three_phases"]


def test_the_pilot_spends_seeds_that_no_other_campaign_uses():
    pilot = set(range(2000, 2003))
    assert {seed for seeds in arms_of("phase2_pilot").values() for seed in seeds} == pilot
    for campaign in set(CAMPAIGNS) - {"phase2_pilot"}:
        assert not pilot & {seed for seeds in arms_of(campaign).values() for seed in seeds}
