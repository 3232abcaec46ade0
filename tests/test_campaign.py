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
from datetime import date, timedelta
from itertools import chain
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from hirm.campaign import ABOVE, CHOSEN, FAMILY, MOST_SEEDS, PORTIONS, Job, Plan, as_plan, words
from hirm.gathering import BASELINES, CAMPAIGNS, diverged, jobs, judged, publications, published_rows, refuse_unread, runs_of, sources
from hirm.config import as_config
from hirm.history import CRISES
from hirm.objectives import METHODS
from hirm.launch import default_parameters
from hirm.runs import Record

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
        assert campaign.startswith(job.campaign) and job.n_seeds <= (10 if campaign == "phase1" else 5) and str(job.asked["runs"]).endswith("" if plan.scale == "laptop" else f"_{plan.scale}")
    for look in CAMPAIGNS[campaign].looks(plan): assert set(look.after) <= {job.name for job in rows if job.cell == look.cell}


def test_each_arm_of_phase_1_has_the_seeds_that_it_is_compared_by():
    rows, plan = jobs("phase1", Plan(seeds=7, primary_seeds=12, control_seeds=11)), {}
    for job in rows: plan.setdefault((job.table, job.cell, job.arm), []).extend(range(job.seed - job.first, job.seed - job.first + job.n_seeds))
    assert {len(plan[key]) for key in plan if key[:2] == ("metrics", "band-seeing") and key[2] != "oracle"} == {12}
    assert {len(plan[key]) for key in plan if key[0] == "metrics" and key[1] != "band-seeing" and key[2] != "oracle"} == {7}
    assert {len(plan[key]) for key in plan if key[0] == "controls"} == {11}
    assert all(seeds == list(range(len(seeds))) for seeds in plan.values())
    assert min(job.seed for job in rows if job.arm == "erm_again") == 1000


def test_the_protocol_of_record_is_the_comparison_alone():
    plan = Plan(scale="paper", seeds=3, primary_seeds=3, cells="band-seeing")
    arms = arms_of("phase1", plan)
    assert {arm for _, arm in arms} == {"erm", "erm_reg", "irm", "hirm", "groupdro", "vrex"} and set(map(tuple, arms.values())) == {(0, 1, 2)}
    assert {job.asked["scale"] for job in jobs("phase1", plan)} == {"paper"} and {look.page for look in CAMPAIGNS["phase1"].looks(plan)} == {"evaluate", "diagnose"}


def test_methods_that_are_not_asked_for_are_in_no_table_of_phase_1():
    plan = Plan(methods="irm,erm")
    assert {job.asked["method"] for job in jobs("phase1", plan)} == {"irm", "erm"}
    assert {job.arm for job in jobs("phase1", plan) if job.table == "controls"} == {"erm_again", "irm_permuted", "erm_permuted", "erm_early"}
    assert {job.arm for job in jobs("phase1", plan) if job.table == "weights"} == {"irm"}


@pytest.mark.parametrize(("said", "folder"), [
    ({}, "phase1"),
    (dict(scale="paper"), "phase1_paper"),
    (dict(scale="paper", methods="erm,vrex,groupdro"), "phase1_paper_vrex-groupdro"),
    (dict(methods="groupdro,erm,vrex"), "phase1_vrex-groupdro"),  # in whatever order
    (dict(methods="erm"), "phase1_erm"),
    (dict(methods="erm,irm,hirm,vrex,groupdro,erm_reg"), "phase1"),  # all of them are no choice
])
def test_a_choice_of_methods_is_looked_at_and_published_apart_and_trained_with_all(said, folder):
    plan = Plan(**said)
    assert plan.published("phase1") == folder and plan.published("ladder") == plan.apart("ladder")
    assert {job.asked["runs"].split("/")[1] for job in jobs("phase1", plan) if job.table == "metrics"} == {plan.apart("phase1")}
    for look in CAMPAIGNS["phase1"].looks(plan):
        assert look.name == f"{look.page}-{look.cell}{folder.removeprefix(plan.apart('phase1'))}" and look.parameters["out"].endswith(look.name.replace("-", "/", 1))
        assert set(look.asked.get("methods", ",".join(FAMILY)).split(",")) == set(plan.family)


def test_what_waits():
    order = {(job.table, job.cell, job.arm, job.seed): job.order for job in jobs("phase1", Plan(seeds=7, primary_seeds=12))}
    assert order["metrics", "band-seeing", "irm", 0] == 0 and order["metrics", "band-seeing", "irm", 10] == 1
    assert order["controls", "band-seeing", "erm_again", 1000] == 0 and order["controls", "band-seeing", "erm_again", 1010] == 2
    assert {value for (_, cell, _, _), value in order.items() if cell != "band-seeing"} == {0}


def test_one_seed_more_is_that_seed_only():
    before, after = ({job.name: job.parameters for job in jobs("phase1", Plan(seeds=seeds))} for seeds in (10, 11))
    new = [after.pop(name) for name in set(after) - set(before)]
    assert after == before and {(asked["seed"], asked["n_seeds"]) for asked in new} == {(10, 1)} and len(new) == 3 * 6


REFUSED = {
    "sede=1": "unknown word of --config 'sede', did you mean 'seeds'?", "policies=band": "unknown word of --config 'policies'",
    "seeds=-3": "seeds must be a whole number from 1 to 1,000, got -3", "seeds=1.5": "seeds must be a whole number from 1 to 1,000, got 1.5",
    "seeds=1e6": "got 1000000.0", "seeds=True": "got True", "seeds=": "got None", "seeds=five": "got 'five'", "scale=nosuch": "unknown scale 'nosuch', did you mean 'smoke'?",
    "cells=xyz": "unknown cell 'xyz', did you mean", "cells=mlp-seeing": "cells must name band-seeing", "methods=irm": "methods must name erm, with which the others are compared, got 'irm'; write erm,irm", "methods=term,erm": "unknown method of Phase 1 'term'", "cells=": "cells must be names", "cells=all,band-seeing": "unknown cell 'all'",
    "control_seeds=9": "control_seeds must be a whole number from 1 to 2, got 9", "primary_seeds=1": "primary_seeds must be a whole number from 2 to 1,000, got 1",
    "primary_seeds=": "primary_seeds must have a value, got None; write primary_seeds=VALUE, or leave it out", "control_seeds=": "control_seeds must have a value",
    "device=cpu; touch ran": "device must be cpu, cuda or cuda:<number>, got 'cpu; touch ran'", "device=gpu": "got 'gpu'",
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_wrong_word_is_refused(said):
    from snakemake.cli import parse_config
    with pytest.raises(ValueError) as refused: as_plan(parse_config(["scale=smoke", "seeds=2", said]))
    assert REFUSED[said] in str(refused.value)


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
    "A copy of the project, of the smallest sizes, in which a crisis keeps its first weeks only."
    to = tmp_path_factory.mktemp("campaign")
    for name in ("nbs", "hirm", "profiles"): shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copytree(ROOT / "book" / "results", to / "book" / "results")
    for name in ("settings.ini", "Snakefile"): shutil.copy(ROOT / name, to)
    source = to / "hirm" / "history.py"  # in the file, for every process of the campaign: what a crisis is belongs to a run's name
    text = source.read_text()
    for first, last in CRISES.values():
        early = min(str(date.fromisoformat(first) + timedelta(days=40)), last)
        assert text.count(f'("{first}", "{last}")') == 1
        text = text.replace(f'("{first}", "{last}")', f'("{first}", "{early}")')
    source.write_text(text)
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
    with open(project / "warm.log", "w") as log: warm = subprocess.Popen([sys.executable, ROOT / "tests" / "warm.py", socket], cwd=project, env=env, stdout=log, stderr=log)
    while not Path(socket).exists() and warm.poll() is None: time.sleep(0.1)
    assert warm.poll() is None, (project / "warm.log").read_text()

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
    assert {cell for cell, _ in arms} == {"primary", *chain.from_iterable(PORTIONS["phase2"].values())} - {("primary", "oracle")}
    assert arms.pop(("primary", "oracle")) == list(range(10))
    assert arms.pop(("primary", "erm_blind")) == list(range(30))
    for arm in ("erm_reg", "erm_blind", "oracle"): assert arms.pop(("levels", arm)) == list(range(10))
    for (cell, arm), seeds in arms.items():
        if cell == "weights":
            continue  # of a method whose twin stands in the primary cell, at the registered weight
        assert seeds == list(range(30 if cell == "primary" else 10))
        assert arms[cell, arm.removesuffix("_permuted") + "_permuted"] == seeds


def test_what_stands_beside_the_primary_cell_of_the_planted_case_can_be_run_and_published_in_portions():
    whole = jobs("phase2", Plan())
    portions = [job for portion in PORTIONS["phase2"] for job in jobs(f"phase2_{portion}", Plan())]
    assert sorted(job.name for job in portions) == sorted(job.name for job in whole if job.cell != "primary" or job.arm == "oracle")
    assert all(job in whole for job in portions)  # the same runs, so one finds what the other has made
    assert {job.cell for job in jobs("phase2_doses", Plan())} == {"dose_0", "dose_0.1", "dose_0.4"}


def test_the_ladder_is_climbed_a_rung_at_a_time_or_whole():
    whole, rungs = jobs("ladder", Plan()), {rung: jobs(f"ladder_{rung}", Plan()) for rung in ABOVE}
    assert [job for rows in rungs.values() for job in rows] == whole
    assert all({job.cell for job in rows} == {rung} for rung, rows in rungs.items())


def test_a_cell_of_the_planted_case_differs_in_method_weight_and_labels_only():
    shared = {}
    for job in jobs("phase2", Plan()):
        asked = {name: value for name, value in job.asked.items() if name not in ("method", "penalty_weight", "permute_labels")}
        if job.arm == "erm_blind": asked |= dict(realized_vol=True) if job.cell == "levels" else dict(extra_features="last_return")
        if job.arm == "oracle": asked["environments"] = "low,medium" if job.cell == "levels" else "coloured_strong,coloured_weak"
        assert shared.setdefault(job.cell, asked) == asked, job.name
    of_phase1 = shared.pop("levels")
    assert of_phase1["environments"] == "low,medium" and of_phase1["realized_vol"] is True and "extra_features" not in of_phase1
    assert all(asked["realized_vol"] is False and asked["validate_on"] == "coloured_home" for asked in shared.values())
    assert "pretrain" in shared["primary"] and "pretrain" not in shared["three_phases"]
    assert {shared[cell]["environments"].count(",") for cell in ("markets_3", "markets_5")} == {2, 4}


def test_the_swept_weights_are_those_of_the_plan():
    weights = {}
    for job in jobs("phase2", Plan()):
        if "penalty_weight" in job.asked and job.cell in ("primary", "weights"):
            weights.setdefault(job.asked["method"], set()).add(job.asked["penalty_weight"])
    assert weights == {"irm": {0.01, 0.1, 1, 10}, "hirm": {0.01, 0.1, 1, 10, 100}, "vrex": {1, 5, 10, 100, 1000}}


def test_the_weights_asked_once_more_are_those_that_validation_would_choose_and_their_seeds_had_no_say():
    swept = pd.concat([pd.read_csv(ROOT / "book" / "results" / "phase1_first" / f"{name}.csv") for name in ("weights", "metrics")])
    swept = swept[(swept["policy"] == "band") & swept["realized_vol"] & (swept["seed"] < 3) & (swept["environment"] == "high")]
    risk = swept[swept["method"].isin(["irm", "hirm", "vrex"])].groupby(["method", "penalty_weight"])["cvar95"].mean()
    best = {method: weight for method, weight in risk.groupby("method").idxmin()}
    assert {method: weight for method, weight in best.items() if weight != METHODS[method].weight} == CHOSEN
    arms = arms_of("tuned")
    seeds = set(arms.pop(("tuned", "erm")))
    assert len(seeds) == 10 and all(set(own) == seeds for own in arms.values())
    for campaign in set(CAMPAIGNS) - {"tuned"}: assert not seeds & {seed for own in arms_of(campaign).values() for seed in own}


def test_phase2_is_read_from_its_portions_where_they_are_in_print(tmp_path, monkeypatch):
    import hirm.gathering
    import hirm.runs
    for room in (hirm.gathering, hirm.runs): monkeypatch.setattr(room, "project", lambda: tmp_path)

    def put(folder, **tables):
        path = tmp_path / "book" / "results" / folder
        path.mkdir(parents=True)
        for name, text in tables.items(): (path / f"{name}.csv").write_text(text)
        (path / "provenance.json").write_text(json.dumps({"files": {f"{name}.csv": hirm.runs._digest(text) for name, text in tables.items()}}))

    table = lambda *rows: "cell,method,seed,cvar95\n" + "".join(f"{row}\n" for row in rows)
    put("phase2", metrics=table("primary,erm,0,1", "primary,oracle,0,8", "dose_0,erm,0,2", "dose_0,delta,0,3", "levels,erm,0,4"), known="cell,column\nlevels,5\n")
    put("phase2_doses", metrics=table("dose_0,erm,0,6", "dose_0,erm,1,5", "dose_0,delta,0,3"))
    put("phase2_oracle", metrics=table("primary,oracle,0,9", "primary,oracle,1,10"))
    put("phase2_pilot", metrics="cell,cvar95\nprimary,7\n")
    assert publications("phase2") == ["book/results/phase2", "book/results/phase2_doses", "book/results/phase2_oracle"] and publications("phase2", "known") == ["book/results/phase2"]
    assert published_rows("phase2", "metrics").values.tolist() == [
        ["primary", "erm", 0, 1], ["levels", "erm", 0, 4], ["dose_0", "erm", 0, 6], ["dose_0", "erm", 1, 5], ["dose_0", "delta", 0, 3], ["primary", "oracle", 0, 9], ["primary", "oracle", 1, 10]]
    for folder in ("phase2", "phase2_doses", "phase2_oracle"):
        facts = json.loads((tmp_path / "book" / "results" / folder / "provenance.json").read_text())
        facts |= dict(commit="0123456789ab", dirty=False, command=f"snakemake -c2 {folder}", runs=dict.fromkeys(range(1200), ""))
        (tmp_path / "book" / "results" / folder / "provenance.json").write_text(json.dumps(facts))
    assert sources("phase2").splitlines()[1] == "- 1,200 runs of commit 0123456789ab, `snakemake -c2 phase2_doses`: [metrics](results/phase2_doses/metrics.csv)"
    with pytest.raises(ValueError, match="unknown campaign of portions 'phase1'"): publications("phase1")
    (tmp_path / "book" / "results" / "phase2_doses" / "metrics.csv").unlink()  # nothing older takes its place in silence
    with pytest.raises(FileNotFoundError, match="expected metrics.csv and provenance.json in phase2_doses/"): published_rows("phase2", "metrics")
    shutil.rmtree(tmp_path / "book" / "results" / "phase2_doses")
    shutil.copytree(tmp_path / "book" / "results" / "phase2", tmp_path / "book" / "results" / "phase2_doses")
    with pytest.raises(ValueError, match="book/results/phase2_doses must hold dose_0, dose_0.1, dose_0.4, got levels, primary: a copy of another publication"): published_rows("phase2", "metrics")
    for rows in (["dose_0,erm,0,6"], ["dose_0,erm,0,6", "dose_0,irm,0,6", "dose_0,irm,1,6"]):  # as old as the whole, or older
        shutil.rmtree(tmp_path / "book" / "results" / "phase2_doses")
        put("phase2_doses", metrics=table(*rows))
        with pytest.raises(ValueError, match="phase2_doses must hold more seeds than book/results/phase2, .*got 1 of dose_0, erm, and 1 there"): published_rows("phase2", "metrics")


def test_the_pilot_spends_seeds_that_no_other_campaign_uses():
    pilot = {2000, 2001}
    assert {seed for seeds in arms_of("phase2_pilot").values() for seed in seeds} == pilot
    for campaign in set(CAMPAIGNS) - {"phase2_pilot"}:
        assert not pilot & {seed for seeds in arms_of(campaign).values() for seed in seeds}


@pytest.fixture(scope="module")
def ended(command):
    "How Phase 1 went: killed in the middle of a job, locked, unlocked, and continued to its end."
    said = [command("snakemake", "-c1", *PHASE1, **PLANTED), command("snakemake", "-c1", *PHASE1), command("snakemake", "--unlock", *PHASE1),
            command("snakemake", "-c1", *PHASE1, **PLANTED)]
    assert said[-1].returncode == 0, said[-1].stdout[-5000:]
    return said


@pytest.fixture
def results(ended, project):
    "The published tables by name."
    return {path.stem: pd.read_csv(path) for path in (project / "book" / "results" / "phase1_smoke_band-seeing").glob("*.csv")}


def notebook(project, name):
    return nbformat.read(project / "runs" / "phase1_smoke" / "notebooks" / f"{name}.ipynb", 4)


@pytest.mark.parametrize("said", ["seeds=-3", "cells=xyz", "device=cpu; touch ran"])
def test_a_wrong_word_ends_the_campaign_before_its_first_job(command, project, said):
    done = command("snakemake", "-c1", "phase1", "--config", "scale=smoke", "seeds=2", said)
    assert done.returncode == 1 and REFUSED[said] in done.stdout and not (project / "ran").exists() and "rule train" not in done.stdout


def test_a_choice_of_methods_makes_neither_the_results_of_all_nor_their_pages(command):
    said = command("snakemake", "-n", "-c1", "phase1", "--config", "scale=smoke", "seeds=1", "methods=erm,vrex").stdout
    assert "output: book/results/phase1_smoke_vrex/.made" in said
    said = command("snakemake", "-n", "-c1", "phase1", "--config", "seeds=1", "methods=erm,vrex").stdout
    assert "output: book/results/phase1_vrex/.made" in said and "made_of_phase1" not in said
    said = command("snakemake", "-n", "-c1", "phase1", "--config", "seeds=1").stdout
    assert "made_of_phase1" in said


def test_a_whole_and_its_portion_asked_for_at_once_train_nothing_twice(command):
    said = command("snakemake", "-n", "-c1", "ladder", "ladder_jumps", "--config", "scale=smoke", "seeds=1").stdout
    assert f"train {len(jobs('ladder', Plan(scale='smoke', seeds=1)))}" in " ".join(said.split())
    assert "runs/ladder_smoke/notebooks/jumps-erm-s0-0.ipynb" in said and "ladder_jumps_smoke/notebooks" not in said


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_runs_of_a_portion_are_those_of_the_whole(campaign):
    assert all(job in jobs(job.campaign, Plan()) for job in jobs(campaign, Plan()))


@pytest.mark.parametrize(("campaign", "said", "unread"), [
    ("learning", dict(scale="smoke", methods="erm,irm", cells="band-seeing"), "methods, cells"), ("phase2", dict(primary_seeds=3, control_seeds=2), "control_seeds"),
    ("phase2_pilot", dict(seeds=3), "seeds"), ("ladder_jumps", dict(primary_seeds=3), "primary_seeds"), ("phase1", dict(methods="erm", control_seeds=3), None)])
def test_a_word_that_a_campaign_does_not_read_is_refused(campaign, said, unread):
    if unread is None:
        return refuse_unread(campaign, said)
    with pytest.raises(ValueError, match=f"--config of {campaign} must be of .*, got {unread}, which it does not read; leave it out"): refuse_unread(campaign, said)


@pytest.mark.parametrize("campaign", [name for name, campaign in CAMPAIGNS.items() if "seeds" in campaign.reads])
def test_more_seeds_than_a_campaign_holds_are_refused_not_left_out(campaign):
    trained = lambda seeds: sum(job.n_seeds for job in jobs(campaign, Plan(scale="smoke", seeds=seeds)))
    most = CAMPAIGNS[campaign].most_seeds
    refuse_unread(campaign, dict(scale="smoke", seeds=most))
    if campaign == "phase1":
        with pytest.raises(ValueError, match="control_seeds mean nothing at scale paper, which is the comparison alone, got 5"): refuse_unread(campaign, dict(scale="paper", control_seeds=5))
    if most == MOST_SEEDS:
        return
    assert trained(most - 1) < trained(most) == trained(most + 1)
    with pytest.raises(ValueError, match=f"--config seeds of {campaign} must be at most {most}, got {most + 1}, .*write seeds={most}"):
        refuse_unread(campaign, dict(scale="smoke", seeds=most + 1))


@pytest.mark.parametrize("campaign", [name for name, campaign in CAMPAIGNS.items() if campaign.most_seeds == MOST_SEEDS and "seeds" in campaign.reads])
def test_every_seed_asked_for_is_trained(campaign):
    trained = [sum(job.n_seeds for job in jobs(campaign, Plan(scale="smoke", seeds=seeds))) for seeds in (6, 7, 20)]
    assert trained == sorted(set(trained))


def test_killed_in_the_middle_it_says_how_to_go_on_and_does(ended):
    killed, locked, unlocked, end = ended
    assert killed.returncode == 128 + signal.SIGKILL and locked.returncode == 1 and "--unlock" in locked.stdout and unlocked.returncode == 0
    assert [end.stdout.count(f"rule {name}:") for name in ("train", "look", "results")] == [17 - killed.stdout.count("Finished job"), 2, 1]


def test_a_job_that_was_killed_ends_as_if_it_had_not_been(ended, command, project):
    job = next(job for job in jobs("phase1", PLAN) if job.name == KILLED)
    asked = words(job.parameters | dict(runs="runs/reference"))
    done = command("papermill", "nbs/train.ipynb", "runs/reference.ipynb", "-y", asked)
    assert done.returncode == 0, done.stdout[-3000:]
    for kept in (project / "runs" / "phase1_smoke").glob("hirm-s[01]-*"):
        assert len(Record(kept).metadata["resumed"]) == 1
        for file in ("metrics.jsonl", "final_metrics.json", "checkpoints/manifest.json", "artifacts/metrics.csv"):
            assert (kept / file).read_bytes() == (project / "runs" / "reference" / kept.name / file).read_bytes()


def test_jobs_start_in_the_order_of_the_table(ended, project):
    waiting = [job.name for job in sorted(jobs("phase1", PLAN), key=lambda job: job.order)]
    started = sorted(waiting, key=lambda name: notebook(project, name).metadata["papermill"]["start_time"])
    assert started == waiting


def test_every_arm_and_seed_is_gathered(results):
    metrics, controls, weights = results["metrics"], results["controls"], results["weights"]
    assert set(results) == {"metrics", "controls", "weights", "probes", "tails", "calendar", "environments", "stability", "sensitivity"}
    methods = {"irm", "hirm", "vrex", "groupdro", "erm_reg", "erm", "oracle"}
    assert set(metrics["method"]) == methods | (set(BASELINES) - {"delta_vega"})
    assert set(controls["method"]) == {"erm_again", "erm_early", *(f"{name}_permuted" for name in ("irm", "hirm", "vrex", "groupdro", "erm"))} | (set(BASELINES) - {"delta_vega"})
    environments = set(metrics["environment"])
    assert {"low", "medium", "high", "crisis", "crisis_broken", "gfc", "covid"} <= environments
    for table in (metrics, controls):
        own = table[table["job"] != "baseline"]
        assert set(own.groupby("method")["seed"].unique().map(sorted).map(tuple)) == {(0, 1)}
        assert own.groupby(["method", "seed"]).size().eq(len(environments)).all()
        assert table[table["job"] == "baseline"].groupby(["method", "environment"]).size().eq(1).all()
    swept = weights[weights["job"] != "baseline"].groupby("method")
    assert swept["penalty_weight"].nunique().eq(3).all() and swept["seed"].nunique().eq(3).all() and swept.size().eq(9 * len(environments)).all()
    assert set(metrics.loc[metrics["method"] == "oracle", "selection"]) == {"oracle"}


def test_the_second_arm_is_paired_with_the_first(results, project):
    again = results["controls"].query("method == 'erm_again' and environment == 'crisis'").set_index("seed")["cvar95"]
    for seed in (0, 1):
        run = Record(next((project / "runs" / "phase1_controls_smoke").glob(f"erm-s{1000 + seed}-*")))
        assert again[seed] == pytest.approx(run.final_metrics["metrics"]["crisis"]["cvar95"], abs=1e-8)


def test_who_diverged_stands_without_numbers_and_is_left_out_of_the_looks(results, project):
    for table, method, seeds in (("metrics", "vrex", {1}), ("controls", "vrex_permuted", {0, 1})):
        lost = results[table][results[table]["cvar95"].isna()]
        assert set(lost["method"]) == {method} and set(lost["seed"]) == seeds and set(lost["selection"]) == {"diverged at update 5"}
    for page in ("probes", "stability"): assert "vrex" not in set(results[page]["method"]) and {"irm", "erm", "oracle"} <= set(results[page]["method"])
    assert "training diverged" in (project / "runs" / "phase1_smoke" / "logs" / f"{WHOLLY}.log").read_text()


def test_the_results_say_where_they_come_from(ended, project):
    facts = json.loads((project / "book" / "results" / "phase1_smoke_band-seeing" / "provenance.json").read_text())
    assert facts["command"] == "snakemake -c2 phase1 --config scale=smoke seeds=2 cells=band-seeing"
    assert len(facts["runs"]) == 7 * 2 + 7 * 2 + 9 * 3 and len(set(facts["runs"])) == len(facts["runs"])


def test_what_is_done_is_not_done_again(ended, command):
    done = command("snakemake", "-c1", *PHASE1)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout


def test_a_run_that_got_lost_is_refused_by_name_and_the_cure_cures(ended, results, command, project):
    lost = next((project / "runs" / "phase1_smoke").glob("erm_reg-s1-*"))
    shutil.rmtree(lost)
    in_print = project / "book" / "results" / "phase1_smoke_band-seeing"
    before = {path.name: path.read_bytes() for path in in_print.glob("[!.]*")}
    (in_print / ".made").unlink()
    refused = command("snakemake", "-c1", *PHASE1)
    assert refused.returncode == 1 and f"expected 55 that are finished, got 54; missing: {lost.name}; " in refused.stdout
    assert {path.name: path.read_bytes() for path in in_print.glob("[!.]*")} == before  # what is in print stays there
    cure = re.search(r"give the same command once more with (--forcerun \S+)", refused.stdout)[1]
    cured = command("snakemake", "-c1", *PHASE1, *shlex.split(cure))
    assert cured.returncode == 0 and cured.stdout.count("rule train:") == 1, cured.stdout[-5000:]
    again = pd.read_csv(project / "book" / "results" / "phase1_smoke_band-seeing" / "metrics.csv")
    pd.testing.assert_frame_equal(again, results["metrics"], rtol=1e-2)  # alone it was trained in other company


# The main job.

def test_the_main_job_is_the_command_as_it_stands():
    defaults = default_parameters(ROOT / "nbs" / "train.ipynb")
    rows = jobs("main_job", Plan())
    for job in rows:
        changed = {name for name, value in job.parameters.items() if value != defaults[name]}
        assert changed - {"seed", "runs"} == {"irm": set(), "erm": {"method"}, "irm_seeing": {"realized_vol"}}[job.arm]
    seeds = {arm: sorted(seed for job in rows if job.arm == arm for seed in range(job.seed, job.seed + job.n_seeds)) for arm in ("irm", "erm", "irm_seeing")}
    assert all(found == list(range(15)) for found in seeds.values())  # five hedgers of three, none of which shares a member


def test_hedgers_are_gathered_with_what_they_were_chosen_by(tmp_path):
    runs = []
    for arm, seed in (("irm", 0), ("erm", 3)):
        found = runs_of([made(tmp_path / arm, table="members", arm=arm, name=f"{arm}-s{seed}-{seed + 1}", seed=seed, first=0)])
        for _, run in found:
            table = pd.read_csv(run.artifacts / "metrics.csv")
            blend = table[table["method"] == "delta"].assign(method="blend", cvar95=0.03 + 0.01 * seed)
            pd.concat([table, blend]).to_csv(run.artifacts / "metrics.csv", index=False)
            pd.DataFrame({"hedger": ["delta", "blend"], "scale": [np.nan, 0.01], "risk": [0.02, 0.01], "chosen": [False, True]}).to_csv(run.artifacts / "validation.csv", index=False)
        runs += found
    frames = CAMPAIGNS["main_job"].tables(Plan(), runs)
    hedgers, validation = frames["hedgers"], frames["validation"]
    own = hedgers[hedgers["hedger"] == "blend"]
    assert set(zip(own["method"], own["seed"])) == {("irm", 0), ("erm", 3)} and own.groupby("method")["cvar95"].first().to_dict() == {"irm": 0.03, "erm": 0.06}
    assert not hedgers.duplicated(["method", "seed", "environment"]).any() and "delta" in set(hedgers["method"])  # the baselines once
    assert validation.groupby(["method", "seed"]).size().to_dict() == {("irm", 0): 2, ("erm", 3): 2}


def test_the_limits_and_the_swap_ask_for_what_they_say():
    rows = jobs("limits", Plan())
    assert {(job.asked["strike"], job.asked["n_steps"]) for job in rows} == {(0.95, 20), (0.95, 60), (1.0, 20), (1.05, 20), (1.05, 60)}
    assert sum(job.n_seeds for job in rows) == 150 and {job.arm for job in rows} == {"erm", "irm", "hirm", "erm_reg", "erm_blind", "irm_permuted"}
    terms = as_config(rows[0].parameters).terms
    assert (terms.liability.strike, terms.n_steps) == (0.95, 20)
    rows = jobs("swaps", Plan())
    assert {(job.cell, as_config(job.parameters).n_instruments) for job in rows} == {("spot", 1), ("swap", 2)} and sum(job.n_seeds for job in rows) == 35


def test_a_gpu_is_given_more_seeds_side_by_side_and_groups_of_five_stay_groups():
    sizes = lambda campaign, device: {job.n_seeds for job in jobs(campaign, Plan(device=device))}
    assert sizes("phase2", "cpu") == {5} and sizes("phase2", "cuda") == {10}
    assert sizes("cures", "cuda") == sizes("cures", "cpu") == {5}
    assert arms_of("phase2") == arms_of("phase2", Plan(device="cuda:1"))
