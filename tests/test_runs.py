"""The evidence is whole, repeatable, and loud about what is missing."""
import json
import os
import pickle
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml

from conftest import HANGS
from hirm import runs as rooms
from hirm.environments import stream
from hirm.history import project
from hirm.runs import (LATER, Record, Run, atomic_write, check_writable, collect, config_hash, provenance,
                       read_tensors, run_folder, write_tensors)

CONFIG = dict(method="irm", seed=3, penalty_weight=1e-3, tiny=1e-7, alpha=0.95, environments=("low", "medium"), note=None,
              device="cpu", n_seeds=4, runs="runs", name="x", again=False)


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, **options)


def learn(run, n_steps, killed_after=None):
    "A learner with a weight, a moment and a random stream."
    step, kept, _ = run.resume()
    noise = stream(run.config["seed"], "paths")
    weight, moment = kept.get("weight", torch.ones(3)), kept.get("moment", torch.zeros(3))
    if kept: noise.set_state(kept["noise"])
    while step < n_steps:
        step += 1
        moment = 0.9 * moment + torch.randn(3, generator=noise)
        weight = weight - 0.1 * moment
        run.log(step=step, loss=weight.square().sum())
        run.save_checkpoint(step, {"weight": weight}, weight.square().sum(), rule="square", keep=3)
        if step == killed_after: return
        if step % 5 == 0: run.save_state(step, {"weight": weight, "moment": moment, "noise": noise.get_state()})
    run.finish({"loss": weight.square().sum()})


# --- names

def test_hash_is_the_same_in_every_process():
    asked = {k: list(v) if isinstance(v, tuple) else v for k, v in CONFIG.items()}
    out = python(f"from hirm.runs import config_hash; print(config_hash({asked!r}))", env={**os.environ, "PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == config_hash(CONFIG), out.stderr


@pytest.mark.parametrize("field, value", [("alpha", 0.99), ("penalty_weight", 0.002), ("environments", ("low",)), ("note", "x")])
def test_hash_sees_what_changes_results(field, value):
    assert config_hash({**CONFIG, field: value}) != config_hash(CONFIG)


@pytest.mark.parametrize("field, value", [("runs", "other"), ("device", "cuda"), ("n_seeds", 1), ("seed", 4), ("method", "erm"), ("again", True)])
def test_hash_ignores_what_does_not(field, value):
    assert config_hash({**CONFIG, field: value}) == config_hash(CONFIG)


def test_runs_made_before_a_parameter_joined_keep_their_names():
    assert config_hash(CONFIG | LATER) == config_hash(CONFIG)
    assert config_hash(CONFIG | dict(draw=5)) != config_hash(CONFIG)


def test_hash_takes_one_for_one_point_zero_but_not_for_true():
    assert config_hash({"weight": 1}) == config_hash({"weight": 1.0}) != config_hash({"weight": True})


def test_relative_runs_are_anchored_on_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder("runs", "erm", 0, "0" * 8) == project() / "runs" / "erm-s0-00000000"
    assert run_folder(tmp_path, "erm", 0, "0" * 8).parent == tmp_path


def test_streams_do_not_touch():
    draw = lambda *name: torch.rand(8, generator=stream(*name))
    assert torch.equal(draw(0, "a"), draw(0, "a"))
    assert len({tuple(draw(seed, purpose).tolist()) for seed in range(5) for purpose in "ab"}) == 10


# --- whole files

def test_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "config.yaml"
    atomic_write(target, "old")
    out = python(f"import os, signal\nfrom hirm import runs\nruns.os.fsync = lambda f: os.kill(os.getpid(), signal.SIGKILL)\n"
                 f"runs.atomic_write({str(target)!r}, 'new' * 100_000)")
    assert out.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # the dead process's temporary file lies beside it …
    Run(tmp_path).start({"method": "erm"})
    assert not list(tmp_path.rglob(".*.tmp"))  # … until the next start


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError): atomic_write(tmp_path / "x", 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bottom", ["a file", "a read-only place"])
def test_unwritable_folder_is_refused_at_the_door(tmp_path, bottom):
    if bottom == "a file": (tmp_path / "file").touch()
    folder = tmp_path / "file" / "runs" if bottom == "a file" else "/proc/runs"
    with pytest.raises(OSError, match="runs folder: expected one that can be written, got .*; name another"): check_writable(folder)
    with pytest.raises(OSError, match="name another"): Run.of(folder, CONFIG).start(CONFIG)


# --- tensors

def test_tensors_come_back_bit_for_bit(tmp_path):
    whole = torch.randn(4, 5, dtype=torch.float64)
    given = {"member": whole[1], "turned": whole.T, "noise": stream(0, "x").get_state(), "head": whole[2].float().requires_grad_()}
    write_tensors(tmp_path / "t", given, {"step": 7})
    back, facts = read_tensors(tmp_path / "t")
    assert facts == {"step": 7}
    for name, tensor in given.items(): assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype


def test_other_files_are_refused_and_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self): return (os.mkdir, (str(tmp_path / "boom"),))
    write_tensors(tmp_path / "good", {"weight": torch.ones(100)}, {})
    from safetensors.torch import save
    files = {"pickle": pickle.dumps(Bomb()), "truncated": (tmp_path / "good").read_bytes()[:200], "empty": b"", "text": b"weights",
             "another origin": save({"weight": torch.ones(2)})}
    for word, content in files.items():
        (tmp_path / "bad").write_bytes(content)
        expected = word if word in ("pickle", "another origin") else "truncated or foreign"
        with pytest.raises(ValueError, match=f"checkpoint bad: expected tensors .*, got .*{expected}.*; "): read_tensors(tmp_path / "bad")
    torch.save({"weight": torch.ones(2)}, tmp_path / "bad")
    with pytest.raises(ValueError, match="a pickle"): read_tensors(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="no such file"): read_tensors(tmp_path / "none")
    assert not (tmp_path / "boom").exists()


# --- a run's life

def test_folder_is_complete_and_done_comes_last(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(rooms, "atomic_write", lambda path, data: (order.append(path.name), atomic_write(path, data)))
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    assert not run.done
    learn(run, 7)
    assert run.done and order[-1] == "final_metrics.json"
    names = {f.relative_to(run.folder).as_posix() for f in run.folder.rglob("*")}
    assert {"config.yaml", "metadata.json", "metrics.jsonl", "artifacts", "checkpoints/manifest.json", "final_metrics.json"} <= names
    assert "checkpoints/last.safetensors" not in names


def test_config_is_a_papermill_parameters_file(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    resolved = {k: list(v) if isinstance(v, tuple) else v for k, v in CONFIG.items() if k not in rooms.LOCAL}
    assert run.config == resolved | {"n_seeds": 1}  # this run alone
    assert isinstance(yaml.safe_load((run.folder / "config.yaml").read_text())["tiny"], float)
    assert Run.of(tmp_path, run.config).folder == run.folder


def test_metadata_tells_the_code_but_no_secret_and_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HIRM_SECRET", "tell-nobody")
    run = Run.of(tmp_path, CONFIG).start(CONFIG, command="papermill nbs/train.ipynb -p method irm")
    run.finish({})
    text = (run.folder / "metadata.json").read_text()
    assert {"commit", "dirty", "versions", "platform", "device", "threads", "started", "seconds", "command"} <= set(run.metadata)
    assert run.metadata["versions"]["torch"] == torch.__version__ and run.metadata["commit"] == provenance()["commit"]
    for secret in ("tell-nobody", str(project()), str(tmp_path), sys.prefix, os.uname().nodename, os.path.expanduser("~") + "/"): assert secret not in text


@pytest.mark.parametrize("killed_after", [1, 5, 8])
def test_killed_run_ends_as_an_undisturbed_one(tmp_path, killed_after):
    calm, killed = (Run.of(tmp_path / name, CONFIG).start(CONFIG) for name in ("calm", "killed"))
    learn(calm, 12)
    learn(killed, 12, killed_after)
    with open(killed.folder / "metrics.jsonl", "a") as file: file.write('{"step": 99, "lo')  # killed while it wrote a line
    assert len(killed.metrics()) == killed_after  # which a reader does not trip over
    learn(Run.of(tmp_path / "killed", CONFIG).start(CONFIG), 12)
    for name in ("metrics.jsonl", "final_metrics.json", "checkpoints/manifest.json"):
        assert (killed.folder / name).read_bytes() == (calm.folder / name).read_bytes(), name
    assert all(torch.equal(calm.best()[0][k], killed.best()[0][k]) for k in calm.best()[0])
    assert len(killed.metadata["resumed"]) == 1 and "resumed" not in calm.metadata


def test_a_finished_run_that_is_started_again_begins_anew(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    learn(run, 6)
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    assert not run.done and run.resume()[0] == 0 and run.metrics().empty


def test_nan_is_refused(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    for number in (float("nan"), torch.tensor(float("inf"))):
        with pytest.raises(ValueError, match="finite"): run.log(step=1, loss=number)
        with pytest.raises(ValueError, match="finite"): run.finish({"crisis": {"cvar95": number}})
        with pytest.raises(ValueError, match="finite"): run.save_checkpoint(1, {}, number, "rule")
    assert not run.done and run.metrics().empty and not list((run.folder / "checkpoints").iterdir())


# --- the best few

def test_the_best_few_are_kept_and_the_rule_is_named(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    best = [run.save_checkpoint(step, {"w": torch.tensor([step])}, score, "cvar95 on high", keep=2)
            for step, score in enumerate([5.0, 3.0, 4.0, 3.0, 2.0])]
    assert best == [True, True, False, False, True]
    assert [(one["step"], one["score"]) for one in run.manifest()["checkpoints"]] == [(4, 2.0), (1, 3.0)]  # of equals the earlier
    assert run.best() == ({"w": torch.tensor([4])}, {"step": 4, "score": 2.0, "rule": "cvar95 on high"})
    assert sorted(f.name for f in (run.folder / "checkpoints").iterdir()) == ["manifest.json", "step-0000001.safetensors", "step-0000004.safetensors"]
    with pytest.raises(ValueError, match="expected 'cvar95 on high' as before, got 'oracle'"): run.save_checkpoint(5, {}, 1.0, "oracle")


def test_reading_what_is_not_there_says_so(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    with pytest.raises(FileNotFoundError, match="unfinished"): run.final_metrics
    with pytest.raises(FileNotFoundError, match="manifest"): run.best()


# --- all or none

def test_collect_names_all_that_is_missing(tmp_path):
    for method, seed in [("erm", 0), ("irm", 0), ("irm", 1)]:
        config = {**CONFIG, "method": method, "seed": seed}
        run = Run.of(tmp_path, config).start(config)
        if (method, seed) != ("irm", 1): run.finish({"crisis": {"cvar95": 3.5 + seed}})
    frame = collect(tmp_path, ["erm", "irm"], [0])
    assert frame.to_dict("list") == {"method": ["erm", "irm"], "seed": [0, 0], "hash8": [config_hash(CONFIG)] * 2, "crisis.cvar95": [3.5, 3.5]}
    with pytest.raises(FileNotFoundError, match=r"expected 6, got 2; missing: erm-s1, erm-s10, irm-s1 \(unfinished\), irm-s10;"):
        collect(tmp_path, ["erm", "irm"], [0, 1, 10])
    other = {**CONFIG, "seed": 0, "alpha": 0.9}
    Run.of(tmp_path, other).start(other).finish({})
    with pytest.raises(ValueError, match="hash8"): collect(tmp_path, ["irm"], [0])
    assert collect(tmp_path, ["irm"], [0], config_hash(CONFIG))["hash8"].tolist() == [config_hash(CONFIG)]
    assert json.loads((Record(run_folder(tmp_path, "erm", 0, config_hash(CONFIG))).folder / "final_metrics.json").read_text())


def test_results_name_every_machine_that_made_them(tmp_path):
    made = []
    for seed, platform in ((0, "Linux x86_64"), (1, "Darwin arm64"), (2, "Darwin arm64")):
        run = Run.of(tmp_path / "runs", {**CONFIG, "seed": seed}).start({**CONFIG, "seed": seed})
        run.annotate(platform=platform)
        if seed == 2:  # killed, and continued on another machine
            run.start({**CONFIG, "seed": seed}, device="cuda")
            run.annotate(platform="Linux aarch64")
        run.resume()
        run.finish({})
        made.append(run)
    origin = json.loads((rooms.publish(tmp_path / "book", {"toy": pd.DataFrame({"x": [1]})}, made, "make") / "provenance.json").read_text())
    found = {(machine["platform"], machine["device"]): machine["runs"] for machine in origin["machines"]}
    assert found == {("Linux x86_64", "cpu"): 1, ("Darwin arm64", "cpu"): 2, ("Linux aarch64", "cuda"): 1}
    assert origin["machine"]["platform"] == "Darwin arm64"  # where most of them were made


def test_results_are_published_whole_and_an_edited_file_is_refused(tmp_path):
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    frame = pd.DataFrame({"method": ["irm"], "cvar95": [0.04]})
    with pytest.raises(ValueError, match="unfinished irm-s"):
        rooms.publish(tmp_path / "book", {"toy": frame}, [run], "make")
    run.resume()
    run.finish({})
    book = rooms.publish(tmp_path / "book", {"toy": frame}, [run], "make")
    assert rooms.published(book, "toy").equals(frame) and json.loads((book / "provenance.json").read_text())["runs"] == [run.folder.name]
    (book / "toy.csv").write_text("method,cvar95\nirm,0.03\n")
    with pytest.raises(ValueError, match="edited by hand"):
        rooms.published(book, "toy")
    with pytest.raises(FileNotFoundError, match="no file"):
        rooms.published(book, "other")


def test_runs_of_different_commits_make_no_result(tmp_path):
    made = []
    for name, commit in (("a", "1" * 40), ("b", "2" * 40)):
        run = Run.of(tmp_path / name, CONFIG).start(CONFIG)
        run.resume()
        run.finish({})
        (run.folder / "metadata.json").write_text(json.dumps({**run.metadata, "commit": commit}))
        made.append(run)
    with pytest.raises(ValueError, match="one commit, got 111111111111, 222222222222"):
        rooms.publish(tmp_path / "book", {}, made, "make")


def test_a_run_that_another_commit_continued_makes_no_result(tmp_path):
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    (run.folder / "metadata.json").write_text(json.dumps({**run.metadata, "commit": "1" * 40, "dirty": True}))
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    run.resume()
    run.finish({})
    assert run.dirty and run.commits == [str(provenance()["commit"])[:12], "1" * 12]
    with pytest.raises(ValueError, match="expected runs of one commit, got .*111111111111"):
        rooms.publish(tmp_path / "book", {}, [run], "make")


def test_provenance_tells_the_time_in_which_a_run_was_under_way_once(tmp_path):
    made, day = [], 24 * 3600
    for seed, minutes in enumerate((1, 2, 3)):
        run = Run.of(tmp_path / "runs", {**CONFIG, "seed": seed}).start({**CONFIG, "seed": seed})
        run.resume()
        run.finish({})
        run.annotate(started="2025-12-24T00:00:00Z", seconds=60 * minutes)  # begun long ago and killed
        os.utime(run.folder / "final_metrics.json", (1767225600 + 60 * minutes + day * (seed == 2),) * 2)
        made.append(run)
    book = rooms.publish(tmp_path / "book", {}, made, "make")
    assert json.loads((book / "provenance.json").read_text())["wall_seconds"] == 60 * (2 + 3)  # side by side once, and no night


# --- foreign and former states

def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_written(tmp_path):
    one, other = (Run.of(tmp_path, {**CONFIG, "alpha": alpha}).start({**CONFIG, "alpha": alpha}) for alpha in (0.9, 0.95))
    for run in (one, other):
        run.resume()
        run.save_checkpoint(1, {"w": torch.tensor([run.config["alpha"]])}, 1.0, "rule")
        run.save_state(1, {"w": torch.tensor([run.config["alpha"]])})
    for file in ("step-0000001.safetensors", "last.safetensors"):
        (one.folder / "checkpoints" / file).write_bytes((other.folder / "checkpoints" / file).read_bytes())
    with pytest.raises(ValueError, match=f"expected one of run {one.folder.name}, got one of {other.folder.name}; put its own"):
        one.best()
    before = (one.folder / "metadata.json").read_bytes()
    with pytest.raises(ValueError, match="checkpoint last.safetensors: expected one of run"):
        Run.of(tmp_path, one.config).start(one.config)
    assert (one.folder / "metadata.json").read_bytes() == before


def test_a_run_goes_back_to_the_state_before_the_last(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    run.resume()
    assert run.states() == {0: None}
    for step in (1, 2, 3):
        run.log(step=step)
        run.save_checkpoint(step, {"w": torch.tensor([step])}, float(step), "rule")
        run.save_state(step, {"w": torch.tensor([step])})
    assert sorted(run.states()) == [2, 3]
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    assert run.resume(2)[1]["w"].item() == 2 and run.metrics()["step"].tolist() == [1, 2]
    assert [kept["step"] for kept in run.manifest()["checkpoints"]] == [1, 2] and sorted(run.states()) == [0, 2]
    run.save_state(3, {"w": torch.tensor([3])})
    assert sorted(run.states()) == [2, 3]


def test_a_diverged_run_is_a_result(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    assert run.diverged is None
    run.finish({"diverged": 7})
    assert run.diverged == 7 and collect(tmp_path, ["irm"], [CONFIG["seed"]])["diverged"].tolist() == [7]
