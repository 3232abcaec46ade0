"""The experiments as a user starts them: plain papermill lines, from training to the tables of the judgement."""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from hirm.config import Config, judged_environments
from hirm.environments import ENVIRONMENTS
from hirm.evaluation import evaluate, judge, recorded_judgement
from hirm.panel import Inspection, Panel, Trial, _is_oracle, as_panel
from hirm.launch import default_parameters
from hirm.policies import Ensemble
from hirm.runs import Checkpoints, Record, Run, _digest, published, read_tensors, write_tensors
from hirm.tables import answer, beaten
from hirm.training import load_policy

EXPERIMENTS = ("train", "evaluate", "diagnose")
SMOKE = {"scale": "smoke", "environments": "low,medium", "n_evaluation": 400, "n_validation": 400}


def words(parameters):
    "Parameters as papermill takes them."
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


@pytest.fixture(scope="module")
def launch(tool):
    "Runs an experiment by papermill and checks that its own notebook is left as it was."
    def run(name, *words):
        notebook = ROOT / "nbs" / f"{name}.ipynb"
        before = notebook.read_bytes()
        env = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}  # where it stands, a kernel keeps no copy of the terminal
        done = tool("papermill", f"nbs/{name}.ipynb", *words, env=env)
        assert notebook.read_bytes() == before
        return done
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, launch):
    "A folder with the runs of two methods and two seeds."
    folder = tmp_path_factory.mktemp("experiment") / "runs"
    for asked in ({"method": "erm", "n_seeds": 2}, {"method": "irm", "seed": 0, "n_seeds": 1}, {"method": "irm", "seed": 1, "n_seeds": 1, "realized_vol": "false"}):  # another spelling of the default
        done = launch("train", *words({"runs": folder, **SMOKE, **asked}))
        assert done.returncode == 0, done.stdout[-3000:]
        assert "unknown parameter" not in done.stdout  # every parameter of a run is one of the notebook
    return folder


@pytest.fixture(scope="module")
def evaluated(runs, launch):
    "The tables of an evaluation, with one probe."
    done = launch("evaluate", *words({"runs": runs, "n_paths": 400, "probes": "cost × 1.5"}))
    assert done.returncode == 0, done.stdout[-3000:]
    return runs / "evaluate" / "band-blind-n_paths=400-probes=cost_1.5"


@pytest.fixture(scope="module")
def diagnosed(runs, launch, tmp_path_factory):
    "The tables of a diagnosis, in a folder of one's own."
    folder = tmp_path_factory.mktemp("elsewhere")
    done = launch("diagnose", *words({"runs": runs, "environments": "low,crisis,crisis_jumps", "n_paths": 200, "out": folder}))
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


def test_a_run_folder_is_complete(runs):
    folders = sorted(path.name for path in runs.iterdir() if path.name not in ("notebooks", ".locks"))
    assert [name[:-9] for name in folders] == ["erm-s0", "erm-s1", "irm-s0", "irm-s1"]
    assert len({name[-8:] for name in folders}) == 2  # λ is part of the protocol
    for folder in map(runs.joinpath, folders):
        left = {path.name for path in folder.iterdir()}
        assert left == {"config.yaml", "metadata.json", "metrics.jsonl", "checkpoints", "artifacts", "final_metrics.json"}
        assert {"manifest.json"} < {path.name for path in (folder / "checkpoints").iterdir()} and not list(folder.rglob("*.tmp"))
        assert {"metrics.csv", "tails.csv", "learning_curves.png", "tail_qq.png"} <= {path.name for path in (folder / "artifacts").iterdir()}
        facts = json.loads((folder / "metadata.json").read_text())
        assert {"commit", "dirty", "versions", "platform", "device", "threads", "started", "seconds"} <= set(facts)
        assert str(ROOT) not in (folder / "metadata.json").read_text() + (folder / "config.yaml").read_text()
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    rest = "environments=low_medium-n_evaluation=400{}-n_validation=400-scale=smoke.ipynb"
    assert {path.name for path in (runs / "notebooks").glob("train-*")} == {f"train-erm-s0-{rest.format('-n_seeds=2')}", f"train-irm-s0-{rest.format('-n_seeds=1')}",
                                                                        f"train-irm-s1-{rest.format('-n_seeds=1').replace('-scale', '-realized_vol=false-scale')}"}


def test_what_is_hidden_from_a_hedger_is_hidden(runs):
    for folder in runs.glob("irm-s*"):
        record = Checkpoints(folder)
        assert record.config["realized_vol"] is False and record.best()[0]["weight1"].shape[-1] == 3  # delta, gamma, time: no realised vol


def test_the_recorded_config_repeats_the_run(runs, launch, tmp_path):
    first = Record(next(runs.glob("irm-s1-*")))
    assert yaml.safe_load((first.folder / "config.yaml").read_text())["seed"] == 1
    done = launch("train", str(tmp_path / "out.ipynb"), "-f", str(first.folder / "config.yaml"), "-p", "runs", str(tmp_path / "again"))
    assert done.returncode == 0, done.stdout[-3000:]
    again = Record(tmp_path / "again" / first.folder.name)
    assert (again.folder / "final_metrics.json").read_bytes() == (first.folder / "final_metrics.json").read_bytes()
    assert (again.folder / "metrics.jsonl").read_bytes() == (first.folder / "metrics.jsonl").read_bytes()
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells


def test_the_recorded_command_repeats_members_that_trained_together(runs, launch, tmp_path):
    first = Record(next(runs.glob("erm-s1-*")))
    command = shlex.split(first.metadata["command"])
    assert command[:4] == ["papermill", "nbs/train.ipynb", "-f", "config.yaml"] and command[4:] == ["-p", "seed", "0", "-p", "n_seeds", "2"]
    assert (first.folder / "config.yaml").read_text().startswith(f"# {first.metadata['command']}\n")
    done = launch("train", str(tmp_path / "out.ipynb"), "-f", str(first.folder / "config.yaml"), *command[4:], "-p", "runs", str(tmp_path / "again"))
    assert done.returncode == 0, done.stdout[-3000:]
    for seed in (0, 1):
        before, after = (next(folder.glob(f"erm-s{seed}-*")) for folder in (runs, tmp_path / "again"))
        assert before.name == after.name and all((before / name).read_bytes() == (after / name).read_bytes() for name in ("final_metrics.json", "metrics.jsonl"))


def test_evaluation_leaves_its_tables(runs, evaluated):
    assert {path.name for path in evaluated.iterdir()} == {"metrics.csv", "tails.csv", "by_spot.csv", "calendar.csv", "provenance.json"}
    metrics = pd.read_csv(evaluated / "metrics.csv")
    assert set(metrics["method"]) == {"no_hedge", "delta", "whalley_wilmott", "minimum_variance", "erm", "irm"} and set(metrics["selection"]) == {"validation: high"}
    assert set(metrics.loc[metrics["method"] == "irm", "seed"]) == {0, 1} and {"crisis", "covid", "low"} <= set(metrics["environment"])
    cost = metrics[metrics["environment"] == "crisis"].pivot_table(index=["method", "seed"], columns="probe", values="cost")
    assert (cost["cost × 1.5"] / cost["none"])[["delta", "erm", "irm"]].sub(1.5).abs().max() < 1e-5  # they do not know of it
    facts = json.loads((evaluated / "provenance.json").read_text())
    assert facts["runs"] == sorted(path.name for path in runs.glob("*-s*")) and "-p probes 'cost × 1.5'" in facts["command"]
    assert published(evaluated, "metrics").equals(metrics) and str(runs) not in json.dumps(facts)


def test_evaluation_agrees_with_the_run_itself(runs, evaluated):
    metrics = pd.read_csv(evaluated / "metrics.csv").query("method == 'irm' and seed == 1 and probe == 'none'").set_index("environment")
    recorded = Record(next(runs.glob("irm-s1-*"))).final_metrics["metrics"]
    for name in ("crisis", "covid"):
        assert metrics.loc[name, "cvar95"] == pytest.approx(recorded[name]["cvar95"], rel=1e-5)


def test_an_evaluation_without_a_test_environment(runs, launch, tmp_path):
    done = launch("evaluate", str(tmp_path / "out.ipynb"), *words({"runs": runs, "environments": "low,medium", "probes": "cost × 1.5", "n_paths": 400, "out": tmp_path / "out"}))
    assert done.returncode == 0, done.stdout[-3000:]
    looked = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(zip(looked["environment"], looked["probe"])) == {("low", "none"), ("medium", "none"), ("crisis", "none"), ("crisis", "cost × 1.5")}


def test_diagnosis_leaves_its_tables(diagnosed):
    assert {path.name for path in diagnosed.iterdir()} == {"environments.csv", "stability.csv", "sensitivity.csv", "provenance.json"}
    own, compared, felt = (pd.read_csv(diagnosed / f"{name}.csv") for name in ("environments", "stability", "sensitivity"))
    excess = own.groupby(["environment", "method"])["excess"].mean()  # over members: nothing for the best, and only for the best
    assert excess.groupby("environment").min().abs().max() < 1e-7 and (excess > 1e-7).sum() == len(excess) - 3
    assert set(own["environment"]) == {"low", "crisis", "crisis_jumps"} and set(own["seed"]) == {0, 1}
    learned = compared[compared["method"].isin(["erm", "irm"])]
    assert set(compared["set"]) == {"all", "test"} and learned["c3"].between(0, 1).all() and (compared["ig"] >= 0).all()
    assert felt.groupby(["method", "seed", "environment"]).size().eq(9).all()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_misspelt_parameter_is_refused(name, launch, tmp_path):
    done = launch(name, str(tmp_path / "out.ipynb"), "-p", "runs", str(tmp_path / "runs"), "-p", "sede", "1")
    assert done.returncode != 0 and "unknown parameter 'sede', did you mean 'seed" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_missing_seed_is_refused_by_name(runs, launch, tmp_path):
    done = launch("evaluate", str(tmp_path / "out.ipynb"), *words({"runs": runs, "seeds": "0,1,7", "out": tmp_path / "out"}))
    assert done.returncode != 0 and "missing: erm-s7" in done.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong, error, says", [
    (dict(methods="erm,vrex"), FileNotFoundError, "missing: vrex-s0, vrex-s1"), (dict(policy="mlp"), FileNotFoundError, "policy mlp .* got none among its 4"),
    (dict(realized_vol=True), FileNotFoundError, "realized_vol=True"), (dict(protocols="00000000"), FileNotFoundError, "protocols 00000000"), (dict(methods="vrex"), FileNotFoundError, "runs of vrex"),
    (dict(policy="bnad"), ValueError, "did you mean 'band'"), (dict(realized_vol="seeing"), ValueError, "true or false, got 'seeing'"),
    (dict(seeds="0,one"), ValueError, "got 'one'.*-p seeds 0,1,2"), (dict(seeds=""), ValueError, "seeds must be a whole number"), (dict(seeds="0-4"), ValueError, "got '0-4'"),
    (dict(seeds="0,0"), ValueError, "each name once"), (dict(seeds="0,"), ValueError, "seeds must be"), (dict(seeds=1.5), ValueError, "got 1.5"), (dict(seeds=-1), ValueError, "got -1"),
    (dict(seeds=True), ValueError, "got True"), (dict(seeds="all,1"), ValueError, "got 'all'"), (dict(methods=""), ValueError, "methods must be names"), (dict(methods="erm,"), ValueError, "empty place"),
    (dict(methods="erm,erm"), ValueError, "each name once"), (dict(methods="emr"), ValueError, "did you mean 'erm'"), (dict(methods="all,erm"), ValueError, "methods must be all or names"),
    (dict(n_paths=0), ValueError, "n_paths"), (dict(n_paths=1.5), ValueError, "n_paths must be a whole number"), (dict(n_paths="many"), ValueError, "got 'many'"), (dict(n_paths=1e12), ValueError, "n_paths"),
    (dict(runs=""), ValueError, "runs must be text that is not empty"), (dict(runs="."), ValueError, "holds the whole project"), (dict(runs=7), ValueError, "-r runs 7"),
    (dict(out=""), ValueError, "out must be text"), (dict(out="."), ValueError, "holds the whole project"), (dict(device="gpu"), ValueError, "device must be cpu"),
    (dict(protocols="0000"), ValueError, "eight hexadecimal digits"), (dict(protocols=1.5), ValueError, "-r protocols"), (dict(protocols=""), ValueError, "protocols must be names"),
    (dict(environments="crisi"), ValueError, "did you mean 'crisis'"), (dict(environments=""), ValueError, "environments must be names"), (dict(environments="low,low"), ValueError, "each name once"),
    (dict(environments="low,"), ValueError, "empty place"), (dict(probes="cost 1.5"), ValueError, "did you mean 'cost × 1.5'"), (dict(probes=""), ValueError, "probes must be names"),
    (dict(probes="all,none"), ValueError, "probes must be all or names"), (dict(probed="nosuch"), ValueError, "unknown environment 'nosuch'"), (dict(probed=""), ValueError, "probed must be names"),
    (dict(probe="jumps"), ValueError, "unknown parameter 'probe', did you mean 'probes'"),
])
def test_what_is_not_there_or_cannot_be_meant_is_refused_at_the_door(runs, wrong, error, says):
    before = sorted(path.name for path in runs.rglob("*"))
    with pytest.raises(error, match=says): as_panel({"runs": str(runs), **wrong}, Trial)
    assert sorted(path.name for path in runs.rglob("*")) == before


def test_a_panel_is_read_in_every_spelling(runs):
    plain = as_panel(dict(runs=str(runs), methods="erm,irm", seeds="0,1", realized_vol=False), Trial)
    assert as_panel(dict(runs=str(runs), methods=["erm", " irm"], seeds=["0", 1], realized_vol="no", n_paths="1e5"), Trial) == plain
    assert as_panel(dict(runs=str(runs), methods="erm", seeds=1)).members == [1]  # papermill's number
    protocol = next(runs.glob("erm-s0-*")).name[-8:]
    assert Panel(protocols="00012345").protocols == Panel(protocols=12345).protocols == "00012345" and Panel(runs=str(runs), methods="erm", protocols=protocol).members == [0, 1]
    with pytest.raises(ValueError, match="unknown parameter 'probes'"): as_panel({"probes": "all"})
    assert [probe.name for probe in Trial(probes="jumps, realised vol masked").changes] == ["jumps", "realised vol masked"]
    assert Trial(probes="none").changes == [] and len(Trial().changes) > 3


@pytest.fixture
def altered(runs, tmp_path):
    "A copy of the runs, and a way to change one file of one run."
    shutil.copytree(runs, tmp_path / "runs")
    def change(pattern, old, new):
        path = next((tmp_path / "runs").glob(pattern))
        text = path.read_text()
        assert re.search(old, text)
        path.write_text(re.sub(old, new, text, count=1))
        asked_so(path.parent)
        return Panel(runs=str(tmp_path / "runs"))
    return change


def asked_so(folder):
    "Makes a folder what it would be if what stands in its config had been asked."
    record = Checkpoints(folder)
    own = Run.of(folder.parent, record.config).folder
    for path in (folder / "checkpoints").glob("step-*"):
        tensors, facts = read_tensors(path)
        write_tensors(path, tensors, facts | {"run": own.name})
    facts = json.loads((folder / "metadata.json").read_text())
    facts.pop("fingerprint", None)
    folder.rename(own)
    facts["files"] = {name: _digest((own / name).read_bytes()) for name in facts["files"]}
    (own / "metadata.json").write_text(json.dumps(facts))


def test_runs_that_do_not_belong_together_are_refused(altered):
    for seed in (0, 1): panel = altered(f"irm-s{seed}-*/config.yaml", "width: 32", "width: 16")
    with pytest.raises(ValueError, match="must share width, got 32 in erm-s0-.* and 16 in irm-s0"): panel.records


def test_runs_of_two_commits_are_refused(altered):
    with pytest.raises(ValueError, match="must share commit"): altered("irm-s1-*/metadata.json", '"commit": "[0-9a-f]+"', '"commit": "0000000"').records


def test_a_run_whose_prices_are_gone_is_named_and_blocks_nobody_else(altered):
    panel = altered("irm-s1-*/config.yaml", "history: sp500", "history: gone.csv")
    assert list(replace(panel, methods="erm").records) == ["erm"]
    with pytest.raises(FileNotFoundError, match="run irm-s1-.*gone.csv.*where no file is"): panel.records


def test_runs_of_another_meaning_are_refused(altered):
    for seed in (0, 1): panel = altered(f"irm-s{seed}-*/config.yaml", "environment medium: '?[0-9a-f]{8}'?", "environment medium: '00000000'")
    with pytest.raises(ValueError, match="run irm-s0-.*: environment medium must be what it was"): panel.records


def test_an_unfinished_run_is_refused(altered, tmp_path):
    panel = altered("erm-s1-*/config.yaml", "seed: 1", "seed: 1")
    next((tmp_path / "runs").glob("erm-s1-*/final_metrics.json")).unlink()
    with pytest.raises(FileNotFoundError, match=r"erm-s1 \(unfinished\)"): panel.records


def test_two_protocols_of_one_method_are_refused_until_one_is_named(altered, tmp_path):
    panel = altered("irm-s1-*/config.yaml", "seed: 1", "seed: 1")
    here = next((tmp_path / "runs").glob("irm-s1-*"))
    shutil.copytree(here, other := here.with_name("irm-s1-0123abcd"))
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("clip: 1.0", "clip: 2.0"))
    asked_so(other)
    with pytest.raises(ValueError, match="expected one protocol, got .*, which differ in clip; say which by -r protocols"): panel.records
    both = ",".join({path.name[-8:] for path in (tmp_path / "runs").glob("*-s0-*")})
    assert set(Panel(runs=str(tmp_path / "runs"), protocols=both).records) == {"erm", "irm"}


def test_seeds_are_put_together_to_one_hedger_without_training(runs):
    asked = dict(runs=str(runs), methods="erm,irm", seeds="0,1", environments="low", n_paths=500, probes="none")
    together = as_panel(asked | dict(ensemble=2), Trial)
    judged = together.judge("low").metrics.set_index("method")
    by_hand = evaluate({name: Ensemble(policy) for name, policy in together.policies.items()}, [ENVIRONMENTS["low"]], 500, 0).set_index("method")
    for name in ("erm", "irm"):
        assert judged.loc[name, "seed"] == 0 and judged.loc[name, "cvar95"] == by_hand.loc[name, "cvar95"]
    alone = as_panel(asked, Trial).judge("low").metrics
    assert judged.loc["erm", "cvar95"] != pytest.approx(alone[alone["method"] == "erm"]["cvar95"].mean(), rel=1e-9)


@pytest.mark.parametrize("ensemble, says", [(3, "ensemble must divide the number of seeds, got 3 and 2 seed.*train 1 more"), (1, "ensemble must"), (1.5, "ensemble must be a whole number"), ("two", "ensemble must")])
def test_groups_that_the_seeds_do_not_fill_are_refused(runs, ensemble, says):
    with pytest.raises(ValueError, match=says):
        as_panel(dict(runs=str(runs), methods="erm,irm", seeds="0,1", ensemble=ensemble), Trial)


def test_a_method_that_diverged_stands_in_the_summary_as_left_out():
    record = SimpleNamespace(folder=Path("erm-s0-12345678"), config=dict(penalty_weight=0.0, environments="low"), manifest=lambda: dict(rule="validation: high"))
    panel = SimpleNamespace(records={"erm": [record]}, diverged={"irm": "seed 3 at update 4"}, complete={"irm": [record, record]})
    table = Panel.summary(panel)
    assert table.loc["irm"].to_dict() == {"runs": 2, "protocol": "", "λ": "", "trained on": "", "chosen by": "left out: seed 3 at update 4"}
    assert table.loc["erm", "chosen by"] == "validation: high"


def test_a_run_trained_on_the_test_environment_is_the_oracle(altered, tmp_path):
    panel = altered("irm-s1-*/config.yaml", "seed: 1", "seed: 1")
    for path in (tmp_path / "runs").glob("irm-s*/config.yaml"): path.write_text(path.read_text().replace("low,medium", "low,crisis"))
    for path in list((tmp_path / "runs").glob("irm-s*")): asked_so(path)
    assert list(panel.records) == ["erm", "oracle"] and panel.policies["oracle"].head.shape[0] == 2
    assert panel.summary().loc["oracle", "trained on"] == "low,crisis"
    for path in list((tmp_path / "runs").glob("irm-s*")):
        (path / "config.yaml").write_text((path / "config.yaml").read_text().replace("cost: 1.0", "cost: 20.0"))
        asked_so(path)
    with pytest.raises(ValueError, match="must share cost, got 1.0 in erm-s0-.* and 20.0 in irm-s0-"): Panel(runs=str(tmp_path / "runs")).records


@pytest.mark.parametrize("pattern, old, new, says", [
    ("irm-s1-*/config.yaml", "cost: 1.0", "cost: 2.0", "config.yaml as the run left it, got one that asks for irm-s1-[0-9a-f]+: it was edited, or the folder was copied"),
    ("irm-s1-*/config.yaml", "policy: band", "policy: mlp", "config.yaml as the run left it, got one that asks for irm-s1-"), ("irm-s1-*/config.yaml", "realized_vol: false", "realized_vol: true", "config.yaml as the run left it, got one that asks for irm-s1-"),
    ("irm-s1-*/metadata.json", '"commit": ', '"commit": "0", "was": ', "metadata.json as the run left it, got facts that have changed since they were written"),
    ("irm-s1-*/artifacts/metrics.csv", "delta", "dleta", "artifacts/metrics.csv as the run left it, got one that has changed"),
    ("irm-s1-*/final_metrics.json", '"cvar95": 0', '"cvar95": 1', "final_metrics.json as the run left it, got one that has changed"),
    ("irm-s1-*/checkpoints/manifest.json", "validation", "test", "checkpoints/manifest.json as the run left it, got one that has changed")])
def test_an_edited_record_is_refused_by_panel_and_policy(runs, tmp_path, pattern, old, new, says):
    shutil.copytree(runs, tmp_path / "runs")
    path = next((tmp_path / "runs").glob(pattern))
    path.write_text(path.read_text().replace(old, new))
    for read in (lambda: Panel(runs=str(tmp_path / "runs")).records, lambda: load_policy(Run((tmp_path / "runs").joinpath(path.relative_to(tmp_path / "runs").parts[0])))):
        with pytest.raises(ValueError, match=f"run irm-s1-[0-9a-f]+: expected {says}.*; put it back, or train anew: "): read()
    assert list(Panel(runs=str(tmp_path / "runs"), methods="erm").records) == ["erm"]  # and blocks nobody else


def test_a_seed_whose_config_was_edited_is_not_left_out_in_silence(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    path = next((tmp_path / "runs").glob("erm-s1-*/config.yaml"))
    path.write_text(path.read_text().replace("realized_vol: false", "realized_vol: true"))
    with pytest.raises(ValueError, match="run erm-s1-.*expected config.yaml as the run left it"): Panel(runs=str(tmp_path / "runs"), methods="erm").members


def test_a_bandwidth_need_only_be_shared_by_those_that_read_it(altered, tmp_path):
    for seed in (0, 1): panel = altered(f"irm-s{seed}-*/config.yaml", "smoothing: 0.15", "smoothing: 0.01")
    assert set(panel.records) == {"erm", "irm"}
    one = next((tmp_path / "runs").glob("irm-s1-*"))
    (one / "config.yaml").write_text((one / "config.yaml").read_text().replace("smoothing: 0.01", "smoothing: 0.02"))
    asked_so(one)
    with pytest.raises(ValueError, match="runs of irm: expected one protocol, got .*, which differ in smoothing"): Panel(runs=str(tmp_path / "runs")).records


def test_a_run_that_lost_its_config_or_its_name_is_not_left_out_in_silence(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    folder = next((tmp_path / "runs").glob("irm-s1-*"))
    (folder / "config.yaml").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="run irm-s1-.*: expected its config.yaml, got none; put it back"): Panel(runs=str(tmp_path / "runs")).records
    assert list(Panel(runs=str(tmp_path / "runs"), methods="erm").records) == ["erm"]
    (tmp_path / "kept").rename(folder / "config.yaml")
    folder.rename(folder.with_name(folder.name + "x"))
    with pytest.raises(ValueError, match="must be folders named METHOD-sSEED-PROTOCOL, got irm-s1-.*x, which holds a run"): Panel(runs=str(tmp_path / "runs")).records


@pytest.mark.parametrize("asked, oracle", [
    (dict(environments="low,medium", validate_on="high"), False), (dict(environments="until_2007_low,until_2007_medium", validate_on="high"), False),
    (dict(environments="low,history_low", validate_on="high"), False), (dict(environments="low,gfc", validate_on="high"), True),
    (dict(environments="low,years_2008_2012", validate_on="high"), True), (dict(environments="low,medium", validate_on="years_2018_2022"), True),
    (dict(environments="low,worst_2002_08", validate_on="high"), True), (dict(environments="low,medium", validate_on="holdout"), True)])
def test_who_has_met_a_test_is_an_oracle_whatever_the_test_is_called(asked, oracle):
    assert _is_oracle(asked) is oracle


def test_what_another_command_published_is_not_written_over(runs, tmp_path):
    asked = dict(runs=str(runs), methods="erm", seeds="0,1", environments="low", n_paths=100, out=str(tmp_path / "out"))
    panel = as_panel(asked, Inspection)
    panel.write(table=pd.DataFrame({"a": [1]}))
    as_panel(asked, Inspection).write(table=pd.DataFrame({"a": [2]}))  # the same command may
    with pytest.raises(ValueError, match="out must be a folder of its own, got .*out, where the results of another command are published"): as_panel(asked, Trial)
    assert pd.read_csv(tmp_path / "out" / "table.csv")["a"].tolist() == [2]
    with pytest.raises(ValueError, match="n_paths must be .*100"): as_panel(dict(runs=str(runs), n_paths=20))


def test_what_a_run_was_found_to_lose_is_what_a_second_judgement_finds(runs):
    erm, irm = ([Checkpoints(folder) for folder in sorted(runs.glob(f"{method}-s*"))] for method in ("erm", "irm"))
    config = replace(Config(**erm[0].config), runs=str(runs))
    judged = {method: judge({method: load_policy(records)}, judged_environments(config).values(), config.n_evaluation, 0, seeds=[0, 1], selection=records[0].manifest()["rule"])
              for method, records in (("erm", erm), ("irm", irm))}
    of_erm, both = recorded_judgement(erm), judged["irm"].beside(recorded_judgement(erm))
    for field in fields(of_erm):
        anew, kept, joined = getattr(judged["erm"], field.name), getattr(of_erm, field.name), getattr(both, field.name)
        own = anew[anew["method"] == "erm"].reset_index(drop=True)
        where = [column for column in own if own[column].dtype.kind not in "f"]
        for found in (kept, joined[joined["method"] == "erm"]):
            found = found.astype(own.dtypes.to_dict()).sort_values(where, ignore_index=True)
            pd.testing.assert_frame_equal(found[own.columns], own.sort_values(where, ignore_index=True), check_exact=True)
    metrics = both.metrics.set_index(["method", "seed", "environment"])
    metrics = metrics.sort_index()
    assert (metrics.loc["irm", "turnover_to_erm"] == metrics.loc["irm", "turnover"] / metrics.loc["erm", "turnover"]).all()
    together = judge({"irm": load_policy(irm), "erm": load_policy(erm)}, judged_environments(config).values(), config.n_evaluation, 0, seeds=[0, 1], selection=irm[0].manifest()["rule"])
    assert both.metrics["environment"].tolist() == together.metrics["environment"].tolist()


def test_a_look_at_a_part_takes_no_place_of_the_look_at_all(runs):
    looks = {"band-blind": Trial(), "band-blind-methods=erm": Trial(methods="erm"), "band-blind-seeds=0": Trial(seeds="0"), "band-blind-n_paths=400-ensemble=2": Trial(ensemble=2, n_paths=400),
             "band-blind-environments=low-n_paths=100": Trial(environments="low", n_paths=100), "band-blind-probes=cost_1.5-probed=low": Trial(probes="cost × 1.5", probed="low")}
    looks = {name: replace(look, runs=str(runs)) for name, look in looks.items()}
    assert [look.folder for look in looks.values()] == [Path(runs) / "evaluate" / name for name in looks]
    assert Path(looks["band-blind-methods=erm"].write(table=pd.DataFrame({"a": [1]}))[0]).parent.name == "band-blind-methods=erm"
    shutil.rmtree(looks["band-blind-methods=erm"].folder)
    assert Inspection(runs=str(runs)).folder.name == "band-blind" and Inspection(runs=str(runs), environments="low,crisis").folder.name == "band-blind-environments=low_crisis"
    long = Trial(runs=str(runs), seeds=",".join(map(str, range(90)))).folder.name
    assert len(long) <= 150 and long != Trial(runs=str(runs), seeds=",".join(map(str, range(91)))).folder.name


def test_a_plugin_of_the_look_gives_it_environments(runs, registries, tmp_path):
    (tmp_path / "look.py").write_text("from dataclasses import replace\nfrom hirm.environments import ENVIRONMENTS\nENVIRONMENTS['looked_at'] = replace(ENVIRONMENTS['crisis'], name='looked_at')\n")
    asked = dict(runs=str(runs), environments="low,looked_at")
    with pytest.raises(ValueError, match="unknown environment 'looked_at'"): as_panel(asked, Trial)
    panel = as_panel(asked | dict(plugins=str(tmp_path / "look.py")), Trial)
    assert list(panel.worlds) == ["low", "looked_at"]
    with pytest.raises(ValueError, match="unknown environment 'looked_at'"): as_panel(asked, Trial)  # it belongs to the other look alone


def test_a_plugin_that_an_edited_record_names_is_not_run(runs, registries, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for path in (tmp_path / "runs").glob("*/config.yaml"):
        path.write_text(re.sub("^plugins: .*$", f"plugins: {tmp_path / 'evil.py'}", path.read_text(), flags=re.M))
    with pytest.raises(ValueError, match="plugin evil must be what it was when this run was made"): Panel(runs=str(tmp_path / "runs")).policies
    assert not (tmp_path / "ran").exists()


def test_a_history_that_is_no_text_is_refused_at_the_door(runs):
    with pytest.raises(ValueError, match="history must be text"): Panel(runs=str(runs), history=2020)


@pytest.mark.parametrize("line", ["environments: [low, medium]", "alpha: .nan", "validate_on: 3"])
def test_a_config_that_was_edited_is_refused_by_the_name_of_its_run(runs, tmp_path, line):
    shutil.copytree(runs, tmp_path / "runs")
    path = next((tmp_path / "runs").glob("erm-s0-*")) / "config.yaml"
    path.write_text(re.sub(f"^{line.split(':')[0]}: .*$", line, path.read_text(), flags=re.M))
    with pytest.raises(ValueError, match=f"run {path.parent.name}: expected config.yaml as the run left it"): Panel(runs=str(tmp_path / "runs")).policies


def test_the_command_of_a_look_can_be_typed_as_it_stands(runs, tmp_path):
    panel = Trial(runs="runs/it's $X", out=str(tmp_path / "out"))
    object.__setattr__(panel, "records", {"erm": Trial(runs=str(runs)).records["erm"]})
    panel.write(toy=pd.DataFrame({"x": [1]}))
    words = shlex.split(json.loads((tmp_path / "out" / "provenance.json").read_text())["command"])
    assert words == ["papermill", "nbs/evaluate.ipynb", "-r", "runs", "runs/it's $X"]


@pytest.mark.parametrize("kind", [Trial, Inspection])
def test_what_is_left_out_is_what_the_page_says(kind):
    page = default_parameters(ROOT / "nbs" / f"{kind.experiment}.ipynb")
    assert {field.name: field.default for field in fields(kind)} == page


@pytest.mark.parametrize("out", ["/proc/nowhere", "file"])
def test_a_folder_for_tables_that_cannot_be_written_is_refused_before_anything_is_judged(runs, tmp_path, out):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="out folder: expected one that can be written, got .*; name another by -p out FOLDER"): as_panel(dict(runs=str(runs), out=str(tmp_path / out)), Trial)
    as_panel(dict(runs=str(runs), out=str(tmp_path / "deep" / "er")), Trial)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("name", ["erm_s1", "old", "irm-s1"])
def test_a_run_under_another_name_is_refused_and_not_left_out(runs, tmp_path, name):
    shutil.copytree(runs, tmp_path / "runs")
    folder = next((tmp_path / "runs").glob("irm-s1-*"))
    folder.rename(folder.with_name(name))
    with pytest.raises(ValueError, match=f"must be folders named METHOD-sSEED-PROTOCOL, got {name}, which holds a run"): Panel(runs=str(tmp_path / "runs")).members


def test_the_command_that_an_edited_record_is_told_makes_it_anew(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    run = Record(next((tmp_path / "runs").glob("irm-s1-*")))
    whole = run.final_metrics
    (run.folder / "checkpoints" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="train anew") as caught: run.verify()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(str(caught.value).rpartition("train anew: ")[2], shell=True, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run.verify() and run.final_metrics == whole


@pytest.mark.parametrize("name, asked", [("train", Config), ("evaluate", Trial), ("diagnose", Panel)])
def test_every_parameter_is_declared_and_explained(name, asked, tool):
    said = tool("papermill", "--help-notebook", f"nbs/{name}.ipynb").stdout
    told = dict(re.findall(r"^  (\w+): .*?\(default .*?\)\s+(\S.*)$", said, re.M))
    defaults = default_parameters(ROOT / "nbs" / f"{name}.ipynb")
    assert set(told) == set(defaults) == {field.name for field in fields(asked)} and min(map(len, told.values())) > 8, said
    own = {"environments", "n_paths"} if name != "train" else {"n_seeds"}  # a page may look elsewhere than the library, and make one hedger of several seeds
    assert {key: value for key, value in defaults.items() if key not in own} == {field.name: field.default for field in fields(asked) if field.name not in own}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_defines_nothing(name):
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)
    assert notebook.cells[0].cell_type == "raw" and "skip_exec: true" in notebook.cells[0].source
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in notebook.cells if cell.cell_type == "code")


# ---- the main job ----------------------------------------------------------------------------------------------------------------

def shown(notebook):
    "Every output of a page as text, by the id of its cell."
    texts = {}
    for cell in nbformat.read(notebook, 4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts[cell.id] = texts.get(cell.id, "") + (output.get("text") or data.get("text/markdown") or data.get("text/plain") or "")
    return texts


QUICK = {"scale": "smoke", "n_evaluation": 400, "n_validation": 400, "updates": 6, "pretrain": 2, "ramp": 2, "validate_every": 3}


@pytest.fixture(scope="module")
def main_job(tmp_path_factory, launch):
    "The main job with two members, small: its folder of runs, what the terminal and the page showed."
    folder = tmp_path_factory.mktemp("main")
    done = launch("train", str(folder / "out.ipynb"), *words({"runs": folder / "runs", "n_seeds": 2, **QUICK}))
    assert done.returncode == 0, done.stdout[-3000:]
    return folder / "runs", done.stdout, shown(folder / "out.ipynb")


def test_the_main_job_says_how_long_it_takes_and_ends_in_an_answer(main_job):
    runs, terminal, page = main_job
    said = [line for line in terminal.splitlines() if line.startswith(("Training ", "In "))]
    assert re.fullmatch(r"Training two members and judging them takes about \d+ seconds of one processor core\.", said[0])
    metrics = pd.read_csv(next(runs.glob("irm-s1-*")) / "artifacts" / "metrics.csv")
    (hedger,) = {"ensemble", "blend"} & set(metrics["method"])
    sentence = answer(beaten(metrics, hedger, ["crisis", "gfc", "volmageddon", "covid", "bear_2022"]))
    assert said[1] == f"{sentence} The recorded ones are cases, and no test. This was a smoke test; for a result, try `-p scale laptop`."
    cells = list(page)
    assert page[cells[-1]] == said[1] and cells.index("mj000001") < cells.index("mj000005") and page["mj000001"] == said[0]


def test_one_hedger_is_made_of_the_members_by_validation(main_job):
    runs, _, page = main_job
    for folder in runs.glob("irm-s*"):
        validation = pd.read_csv(folder / "artifacts" / "validation.csv")
        assert list(validation["hedger"]) == ["delta", "irm", "ensemble", *["blend"] * 6] and validation["chosen"].sum() == 1
        candidates = validation[validation["hedger"].isin(["ensemble", "blend"])]
        assert candidates.loc[candidates["chosen"], "risk"].item() == candidates["risk"].min()
        metrics = pd.read_csv(folder / "artifacts" / "metrics.csv")
        hedger = candidates.loc[candidates["chosen"], "hedger"].item()
        assert set(metrics["method"]) == {"no_hedge", "delta", "whalley_wilmott", "minimum_variance", "irm", hedger} and metrics.query("method != 'minimum_variance'").groupby("method")["environment"].nunique().eq(14).all()
    assert page["mj000005"].count("chosen") == 1


def test_the_main_job_shows_what_its_hedger_does(main_job):
    _, _, page = main_job
    assert all(edge in page["mj000010"] for edge in ("18 ", "55 ", "45 ", "0.95", "1.05")) and page["mj000010"].count("delta 0.") == 12
    days = re.findall(r"^(2020-\d\d-\d\d) ", page["mj000014"], re.M)
    assert len(days) == 10 and days[0] == "2020-03-10" and days[-1] == "2020-03-23"  # ten days, the last with the lowest close


def test_a_series_of_ones_own_is_judged_on_its_own_worst_days(tmp_path, launch):
    step = np.random.default_rng(0).normal(0, 0.008, 2400)
    step[1900:1920] *= 6  # wild for twenty days, in a year that no crisis of the calendar falls into
    days = pd.bdate_range("1997-01-01", periods=2400)
    pd.DataFrame({"date": days.strftime("%Y-%m-%d"), "close": 100 * np.exp(step.cumsum())}).to_csv(tmp_path / "mine.csv", index=False)
    done = launch("train", str(tmp_path / "out.ipynb"), *words({"runs": tmp_path / "runs", "history": tmp_path / "mine.csv", "n_seeds": 1, **QUICK}))
    assert done.returncode == 0, done.stdout[-3000:]
    page = shown(tmp_path / "out.ipynb")
    worst = (pd.Series(step) ** 2).rolling(20).mean().argmax()  # 1920: the first of the wild days happens to be the stillest of all
    name, first, last_start, last_day = f"worst_{days[worst]:%Y_%m}", *(f"{days[worst + shift]:%Y-%m-%d}" for shift in (-60, -20, 40))
    rows = {cells[0]: cells[1:] for cells in map(str.split, page["mj000003"].splitlines()) if cells}
    assert rows[name][:4] == [first, last_start, last_day, "41"], page["mj000003"]
    (last,) = [text for text in page.values() if "this hedger" in text]
    assert "three crises" in last and name in last and "holdout" not in last and "irm" not in last
    assert f"{days[1899]:%Y-%m-%d}" <= min(re.findall(r"^(\d{4}-\d\d-\d\d) ", page["mj000014"], re.M))[:10] <= f"{days[1979]:%Y-%m-%d}"
