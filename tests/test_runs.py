"""The evidence is whole, repeatable, and loud about what is missing."""
import errno
import json
import os
import pickle
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

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


def test_a_full_disk_is_told_with_the_file_and_the_cure(tmp_path, monkeypatch):
    calm, run = whole_run(tmp_path / "calm"), Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    atomic_write(run.artifacts / "metrics.csv", "loss\n0.5\n")
    learn(run, 12, killed_after=7)
    says = "No space left on device, while writing {}; make room and give the same command again: a run goes on from its last kept state"
    log = run.folder / "metrics.jsonl"
    log.rename(kept := log.with_name("kept"))
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match=says.format(log)) as caught: run.log(step=8)
    assert caught.value.errno == errno.ENOSPC
    kept.rename(log)
    def full(file): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(rooms.os, "fsync", full)
        with pytest.raises(OSError, match=says.format(run.folder / "config.yaml")): atomic_write(run.folder / "config.yaml", "new")
        with pytest.raises(OSError, match=says.format(log)): run.save_state(8, {})
    assert not list(run.folder.rglob(".*"))
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)  # the cure
    learn(run, 12)
    assert same(run, calm)


def test_a_kill_while_a_folder_is_tried_leaves_nothing_there(tmp_path):
    code = f"""
import os, signal, tempfile
from hirm import runs
make = tempfile.TemporaryFile
def killed(**where):
    file = make(**where)
    file.write(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
runs.tempfile.TemporaryFile = killed
runs.check_writable({str(tmp_path / 'runs')!r})
"""
    assert python(code).returncode == -signal.SIGKILL and not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("bottom", ["a file", "a read-only place"])
def test_unwritable_folder_is_refused_at_the_door(tmp_path, bottom):
    if bottom == "a file": (tmp_path / "file").touch()
    folder = tmp_path / "file" / "runs" if bottom == "a file" else "/proc/runs"
    with pytest.raises(OSError, match="runs folder: expected one that can be written, got .*; name another"): check_writable(folder)
    with pytest.raises(OSError, match="name another"): Run.of(folder, CONFIG).start(CONFIG)


# --- one writer

HOLD = """
import sys, time
from hirm.runs import Run
config = {config!r}
run = Run.of({folder!r}, config).start(config)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    "Another process that writes a run, until its standard input is closed."
    started = []
    def start(config):
        code = HOLD.format(config=config, folder=str(tmp_path / "runs"))
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process
    yield start
    for process in started:
        process.kill()
        process.wait(HANGS)
        process.stdin.close()
        process.stdout.close()


PLAIN = {k: list(v) if isinstance(v, tuple) else v for k, v in CONFIG.items()}


def test_a_second_writer_is_told_who_the_first_is_and_writes_nothing(tmp_path, holder):
    first = holder(PLAIN)
    run = Run.of(tmp_path / "runs", CONFIG)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    says = (rf"run {run.folder.name}: expected no other process that writes it, got process {first.pid} on {platform.node()}, "
            rf"since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ; wait for it, or end it there by `kill {first.pid}`, and give the same command again")
    with pytest.raises(BlockingIOError, match=says): run.hold(wait=0)
    with pytest.raises(BlockingIOError, match="kill"): run.start(CONFIG)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    os.kill(first.pid, signal.SIGTERM)  # the cure that was told
    first.wait(HANGS)
    assert Run.of(tmp_path / "runs", CONFIG).start(CONFIG).metadata["resumed"]


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    first = holder(PLAIN)
    first.kill()
    first.wait(HANGS)
    Run.of(tmp_path / "runs", CONFIG).hold(wait=0).release()


def test_another_run_beside_it_is_free_and_a_finished_one_too(tmp_path, holder):
    holder(PLAIN)
    run = Run.of(tmp_path / "runs", {**CONFIG, "seed": 4}).start({**CONFIG, "seed": 4})
    run.resume()
    run.finish({})
    code = f"from pathlib import Path; from hirm.runs import Run; Run(Path({str(run.folder)!r})).hold(wait=0)"
    assert python(code).returncode == 0
    assert not list(run.folder.rglob("*lock*")) and collect(tmp_path / "runs", ["irm"], [4]).shape[0] == 1


def test_a_process_may_start_its_own_run_again(tmp_path):
    for _ in range(2): run = Run.of(tmp_path, CONFIG).start(CONFIG)
    run.release()


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


# --- records that were cut, edited, copied or lost

def cut(text): return text[:len(text) // 2]
def nulls(text): return text[:-120] + b"\0" * 120
def flipped(text): return text[:-1] + bytes([text[-1] ^ 1])
def foreign(text): return b"[1, 2]\n"


DAMAGES = {
    "checkpoints/manifest.json": [None, cut, nulls, foreign, flipped],
    "metadata.json": [None, cut, nulls, foreign, lambda text: text.replace(b'"threads": ', b'"threads": 1'), lambda text: text.replace(b'"threads": ', b'"resumed": 5, "threads": ')],
    "final_metrics.json": [cut, nulls, foreign, lambda text: text.replace(b"loss", b"gain")],
    "metrics.jsonl": [None, cut, nulls, foreign, flipped],
    "checkpoints/step-0000003.safetensors": [None, cut, foreign, flipped],
    "artifacts/metrics.csv": [None, cut, lambda text: text.replace(b"5", b"4")],
    "config.yaml": [None, cut, nulls, foreign, lambda text: text.replace(b"alpha: 0.95", b"alpha: 0.99")],
}


def damage(path, how):
    "Damages a file, or loses it."
    if how is None: return path.unlink()
    before = path.read_bytes()
    path.write_bytes(how(before))
    assert path.read_bytes() != before


def whole_run(folder, config=CONFIG):
    "A finished run with a table."
    run = Run.of(folder, config).start(config)
    atomic_write(run.artifacts / "metrics.csv", "loss\n0.5\n")
    learn(run, 12)
    return run


def cured(run, said, folder):
    "The run after the cure that an error told, its papermill line replaced by the toy's."
    cure = said.rpartition("train anew: ")[2]
    remove, _, again = cure.partition(" && ")
    if not again:
        assert cure.endswith(", then the command that made it")
        remove = cure.partition(", then")[0]
    else:
        words = ["papermill", "nbs/train.ipynb", "-f", str(run.folder / "config.yaml"), "-r", "runs", str(run.folder.parent)]
        assert shlex.split(again) == words and yaml.safe_load((run.folder / "config.yaml").read_text())["method"] == "irm"
    assert str(run.folder) in remove and remove.startswith("rm -r")
    subprocess.run(remove, shell=True, check=True)
    return whole_run(folder)


def same(run, other):
    "Whether two runs left the same bytes."
    files = ("metrics.jsonl", "final_metrics.json", "checkpoints/manifest.json")
    return (all((run.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in files)
            and all(torch.equal(tensor, other.best()[0][name]) for name, tensor in run.best()[0].items()))


@pytest.mark.parametrize("file, how", [(file, how) for file, many in DAMAGES.items() for how in many])
def test_a_damaged_record_is_refused_by_every_reader_and_the_cure_cures(tmp_path, file, how):
    calm, run = whole_run(tmp_path / "calm"), whole_run(tmp_path / "runs")
    assert run.verify() and same(run, calm)
    damage(run.folder / file, how)
    readers = [run.verify, lambda: collect(tmp_path / "runs", ["irm"], [3]), lambda: rooms.publish(tmp_path / "book", {}, [run], "make")]
    for read in readers:
        with pytest.raises(ValueError) as caught: read()
        said = str(caught.value)
        assert re.fullmatch(rf"run {run.folder.name}: expected {file} as the run left it, got [^;]+; put it back, or train anew: .+", said), said
    assert not (tmp_path / "book").exists()
    again = cured(run, said, tmp_path / "runs")
    assert again.verify() and same(again, calm) and "resumed" not in again.metadata


@pytest.mark.parametrize("name", ["irm-s3-01234567", "irm-s4-{protocol}", "erm-s3-{protocol}"])
def test_a_folder_that_was_copied_is_not_another_run(tmp_path, name):
    run = whole_run(tmp_path / "runs")
    copy = run.folder.with_name(name.format(protocol=config_hash(CONFIG)))
    shutil.copytree(run.folder, copy)
    says = f"run {copy.name}: expected config.yaml as the run left it, got one that asks for {run.folder.name}: it was edited, or the folder was copied;"
    for read in (Record(copy).verify, lambda: rooms.publish(tmp_path / "book", {}, [Record(copy)], "make")):
        with pytest.raises(ValueError, match=says): read()
    method, seed = copy.name.split("-")[:2]
    with pytest.raises(ValueError, match=says): collect(tmp_path / "runs", [method], [int(seed[1:])], copy.name[-8:])
    assert run.verify()


@pytest.mark.parametrize("change", [lambda files: None, lambda files: {}, lambda files: [1], lambda files: {name: files[name] for name in files if "manifest" not in name},
                                    lambda files: {name: files[name] for name in files if "final" not in name}])
def test_a_finished_run_whose_fingerprints_were_taken_away_is_refused(tmp_path, change):
    run = whole_run(tmp_path / "runs")
    facts = run.metadata
    assert set(facts["files"]) == {"metrics.jsonl", "final_metrics.json", "artifacts/metrics.csv", "checkpoints/manifest.json",
                                   *(f"checkpoints/{one['file']}" for one in run.manifest()["checkpoints"])}
    (run.folder / "metadata.json").write_text(json.dumps(facts | {"files": change(facts["files"])}))
    for read in (run.verify, lambda: collect(tmp_path / "runs", ["irm"], [3]), lambda: rooms.publish(tmp_path / "book", {}, [run], "make")):
        with pytest.raises(ValueError, match="expected metadata.json as the run left it, got one without the fingerprints of its files"): read()


def test_a_table_that_nobody_closed_is_refused_and_the_cure_cures(tmp_path):
    run, calm = whole_run(tmp_path / "runs"), whole_run(tmp_path / "calm")
    (run.artifacts / "calendar.csv").write_text("method,pnl\nirm,1\n")
    with pytest.raises(ValueError, match="got one without the fingerprints of its files: artifacts/calendar.csv; put it back, or train anew: ") as refused: run.verify()
    assert same(cured(run, str(refused.value), tmp_path / "runs"), calm)


@pytest.mark.parametrize("alpha", [".nan", "2020-01-01", "[2020-01-01]"])
def test_a_config_that_no_run_was_asked_by_is_refused(tmp_path, alpha):
    run = whole_run(tmp_path / "runs")
    (run.folder / "config.yaml").write_text((run.folder / "config.yaml").read_text() + f"alpha: {alpha}\n")
    with pytest.raises(ValueError, match=f"run {run.folder.name}: expected config.yaml as the run left it, got values that no run was asked by"): run.verify()


def test_the_command_that_trains_anew_names_folder_and_device_as_they_are(tmp_path):
    run = Run.of(tmp_path / "2026", CONFIG).start(CONFIG, device="cuda:1")
    assert run._anew("metadata.json").endswith("/2026 -p device cuda:1") and " -r runs " in run._anew("metadata.json")
    assert " -p device" not in Run.of(tmp_path / "cpu", CONFIG).start(CONFIG)._anew("metadata.json")


@pytest.mark.parametrize("listed", ['{"files": {"../victim.txt": "0", "victim.txt": "0", "a/victim.csv": "0"}}', "[]", '{"files": null}', '{"files": 3}'])
def test_a_foreign_list_of_files_removes_nothing_of_others(tmp_path, listed):
    run, book = whole_run(tmp_path / "runs"), tmp_path / "book"
    (book / "a").mkdir(parents=True)
    for place in ("victim.txt", "book/victim.txt", "book/a/victim.csv"): (tmp_path / place).touch()
    (book / "provenance.json").write_text(listed)
    rooms.publish(book, {"toy": pd.DataFrame({"x": [1]})}, [run], "make")
    assert all((tmp_path / place).exists() for place in ("victim.txt", "book/victim.txt", "book/a/victim.csv"))


def test_a_publication_of_unknown_code_does_not_say_that_it_was_clean(tmp_path):
    run = whole_run(tmp_path / "runs")
    run.annotate(commit=None, dirty=None)
    made = rooms.origin(rooms.publish(tmp_path / "book", {"toy": pd.DataFrame({"x": [1]})}, [run], "make"))
    assert (made["commit"], made["dirty"]) == ("unknown", None)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"toy.csv": 3}}'])
def test_a_publication_that_does_not_say_where_it_comes_from_is_refused(tmp_path, text):
    folder = rooms.publish(tmp_path / "book", {"toy": pd.DataFrame({"a": [1]})}, [whole_run(tmp_path / "runs")], "make")
    assert rooms.origin(folder)["command"] == "make"
    (folder / "provenance.json").write_text(text)
    with pytest.raises(ValueError, match="expected provenance.json of book/ as published, got text that was cut or damaged"): rooms.published(folder, "toy")


@pytest.mark.parametrize("file, how", [(file, how) for file, many in DAMAGES.items() if file not in ("final_metrics.json", "artifacts/metrics.csv") for how in many])
def test_a_killed_run_whose_files_were_damaged_ends_as_an_undisturbed_one(tmp_path, file, how):
    """At once, or after the cure that its refusal tells; never with another choice of checkpoints."""
    calm, run = whole_run(tmp_path / "calm"), Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    atomic_write(run.artifacts / "metrics.csv", "loss\n0.5\n")
    learn(run, 12, killed_after=11)
    if "step-" in file: file = f"checkpoints/{run.manifest()['checkpoints'][0]['file']}"
    damage(run.folder / file, how)
    try: run = whole_run(tmp_path / "runs")
    except ValueError as error:
        if "train anew" in str(error): run = cured(run, str(error), tmp_path / "runs")
        else:  # a tensor file: delete it and run the same command again
            assert re.fullmatch(r"checkpoint step-\d+.safetensors: .*; delete it and run the same command again", str(error)), error
            (run.folder / file).unlink()
            run = whole_run(tmp_path / "runs")
    assert run.verify() and same(run, calm)


def test_a_lost_manifest_does_not_lose_the_better_checkpoint(tmp_path):
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    run.resume()
    for step, score in ((1, 1.0), (2, 3.0)): run.save_checkpoint(step, {"w": torch.tensor([step])}, score, "rule")
    for step in (1, 2): run.save_state(step, {})
    (run.folder / "checkpoints" / "manifest.json").unlink()
    run = Run.of(tmp_path, CONFIG).start(CONFIG)
    assert run.resume()[0] == 2
    run.save_checkpoint(3, {"w": torch.tensor([3])}, 2.0, "rule")
    assert run.best()[1] == {"step": 1, "score": 1.0, "rule": "rule"} and len(run.manifest()["checkpoints"]) == 3


@pytest.mark.parametrize("how", [cut, nulls])
def test_a_log_that_is_shorter_than_the_state_believes_is_never_padded(tmp_path, how, capsys):
    calm, run = whole_run(tmp_path / "calm"), Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    learn(run, 12, killed_after=11)
    damage(run.folder / "metrics.jsonl", how)
    run = whole_run(tmp_path / "runs")
    assert f"run {run.folder.name}: its log or a checkpoint was cut, damaged or lost; it goes on from update" in capsys.readouterr().err
    assert same(run, calm)


# --- all or none

def test_collect_names_all_that_is_missing(tmp_path):
    for method, seed in [("erm", 0), ("irm", 0), ("irm", 1)]:
        config = {**CONFIG, "method": method, "seed": seed}
        run = Run.of(tmp_path, config).start(config)
        if (method, seed) != ("irm", 1): run.finish({"crisis": {"cvar95": 3.5 + seed}})
    frame = collect(tmp_path, ["erm", "irm"], [0])
    assert frame.to_dict("list") == {"method": ["erm", "irm"], "seed": [0, 0], "protocol": [config_hash(CONFIG)] * 2, "crisis.cvar95": [3.5, 3.5]}
    with pytest.raises(FileNotFoundError, match=r"expected 6, got 2; missing: erm-s1, erm-s10, irm-s1 \(unfinished\), irm-s10;"):
        collect(tmp_path, ["erm", "irm"], [0, 1, 10])
    other = {**CONFIG, "seed": 0, "alpha": 0.9}
    Run.of(tmp_path, other).start(other).finish({})
    with pytest.raises(ValueError, match="protocol"): collect(tmp_path, ["irm"], [0])
    assert collect(tmp_path, ["irm"], [0], config_hash(CONFIG))["protocol"].tolist() == [config_hash(CONFIG)]
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


def test_runs_of_two_protocols_are_not_gathered_as_one_arm(tmp_path):
    for seed, width in ((0, 32), (1, 64)):
        asked = {**CONFIG, "seed": seed, "width": width}
        run = Run.of(tmp_path / "runs", asked).start(asked)
        run.resume()
        run.finish({"cvar95": 1.0})
    with pytest.raises(ValueError, match="runs of irm: expected one protocol, got .*, .*; say which by protocol"):
        collect(tmp_path / "runs", ["irm"], [0, 1])


def test_what_training_noted_of_itself_outlives_a_kill_after_it_and_no_new_beginning(tmp_path):
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    run.save_state(12, {"weight": torch.ones(2)})
    run.annotate(cpu_seconds_per_update=0.5)
    assert Run.of(tmp_path / "runs", CONFIG).start(CONFIG).metadata["cpu_seconds_per_update"] == 0.5
    again = Run.of(tmp_path / "runs", CONFIG)
    again.resume()
    again.finish({})
    closed = again.metadata
    assert closed["cpu_seconds_per_update"] == 0.5 and "files" in closed
    anew = Run.of(tmp_path / "runs", CONFIG).start(CONFIG).metadata
    assert "cpu_seconds_per_update" not in anew and "files" not in anew


def test_a_publication_leaves_nothing_of_the_one_that_it_replaces(tmp_path):
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    run.resume()
    run.finish({})
    frame = pd.DataFrame({"x": [1]})
    book = rooms.publish(tmp_path / "book", {"kept": frame, "gone": frame}, [run], "make")
    (book / "mine.txt").write_text("a reader's own")
    rooms.publish(tmp_path / "book", {"kept": frame}, [run], "make")
    assert sorted(path.name for path in book.iterdir()) == ["kept.csv", "mine.txt", "provenance.json"]
    with pytest.raises(FileNotFoundError, match="no file"):
        rooms.published(book, "gone")


def test_results_of_no_runs_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="expected the runs behind the frames, got none"):
        rooms.publish(tmp_path / "book", {"toy": pd.DataFrame({"cvar95": [0.04]})}, [], "make")
    assert not (tmp_path / "book").exists()


def test_a_cell_is_read_whole_from_the_last_folder_that_has_it(tmp_path):
    run = Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    run.resume()
    run.finish({})
    books = []
    for name, rows in {"first": [("a", 1), ("b", 2), ("b", 3)], "second": [("b", 4)], "third": [("c", 5)]}.items():
        frame = pd.DataFrame(rows, columns=["cell", "cvar95"])
        books.append(rooms.publish(tmp_path / name, {"toy": frame}, [run], "make"))
    read = rooms.published_cells(books, "toy")
    assert list(read.itertuples(index=False, name=None)) == [("a", 1), ("b", 4), ("c", 5)] and list(read.index) == [0, 1, 2]
    assert rooms.published_cells(books[::-1], "toy")["cvar95"].tolist() == [5, 1, 2, 3]
    (books[0] / "toy.csv").write_text("cell,cvar95\na,0\n")
    with pytest.raises(ValueError, match="edited by hand"):
        rooms.published_cells(books, "toy")


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
        ended = 1767225600 + 60 * minutes + day * (seed == 2)
        run.annotate(started="2025-12-24T00:00:00Z", seconds=60 * minutes, finished=time.strftime(rooms.TIME, time.gmtime(ended)))  # begun long ago and killed
        made.append(run)
    wall = lambda name: json.loads((rooms.publish(tmp_path / name, {}, made, "make") / "provenance.json").read_text())["wall_seconds"]
    assert wall("book") == 60 * (2 + 3)  # side by side once, and no night
    for run in made:  # of before the end was written down
        ended = rooms.timegm(time.strptime(run.metadata["finished"], rooms.TIME))
        (run.folder / "metadata.json").write_text(json.dumps({name: value for name, value in run.metadata.items() if name != "finished"}))
        os.utime(run.folder / "final_metrics.json", (ended, ended))
    assert wall("earlier") == 60 * (2 + 3)


def test_what_was_edited_while_a_run_lay_killed_is_not_gone_on_from(tmp_path):
    calm = whole_run(tmp_path / "calm")
    def turned(text): return text[:-2] + bytes([text[-2] ^ 0x20]) + text[-1:]
    def elsewhere(text): return re.sub(rb'(step\\": )\d', rb'\g<1>7', text)
    for name, change in dict(tensor=turned, header=elsewhere).items():
        run = Run.of(tmp_path / name, CONFIG).start(CONFIG)
        atomic_write(run.artifacts / "metrics.csv", "loss\n0.5\n")
        learn(run, 12, killed_after=8)
        damage(run.folder / "checkpoints" / "last.safetensors", change)
        with pytest.raises(ValueError, match="checkpoint last.safetensors: .* got numbers that have changed since they were written; delete it and run the same command again"):
            Run.of(tmp_path / name, CONFIG).start(CONFIG)
        (run.folder / "checkpoints" / "last.safetensors").unlink()
        learn(again := Run.of(tmp_path / name, CONFIG).start(CONFIG), 12)
        assert again.verify() and same(again, calm)


def test_a_manifest_that_says_another_score_than_its_checkpoints_is_not_believed(tmp_path):
    calm, run = whole_run(tmp_path / "calm"), Run.of(tmp_path / "runs", CONFIG).start(CONFIG)
    atomic_write(run.artifacts / "metrics.csv", "loss\n0.5\n")
    learn(run, 12, killed_after=8)
    manifest = run.folder / "checkpoints" / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["checkpoints"][-1]["score"] -= 100
    manifest.write_text(json.dumps(listed))
    learn(again := Run.of(tmp_path / "runs", CONFIG).start(CONFIG), 12)
    assert again.verify() and same(again, calm)


def test_a_publication_that_fails_leaves_the_one_in_print(tmp_path, monkeypatch):
    run, book = whole_run(tmp_path / "runs"), tmp_path / "book"
    both = lambda x: {name: pd.DataFrame({"x": [x]}) for name in "ab"}
    rooms.publish(book, both(1), [run], "make")
    written = []
    def full(file):
        written.append(file)
        if len(written) == 2: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(rooms.os, "fsync", full)
        with pytest.raises(OSError, match="while writing .*b.csv"): rooms.publish(book, both(2), [run], "make")
    assert [rooms.published(book, name)["x"].item() for name in "ab"] == [1, 1] and len(list(book.iterdir())) == 3
    rooms.publish(book, both(2), [run], "make")
    assert [rooms.published(book, name)["x"].item() for name in "ab"] == [2, 2]


def test_a_publication_says_which_code_gathered_it_and_mixes_no_states_of_one_commit(tmp_path):
    runs = [whole_run(tmp_path / "runs", {**CONFIG, "seed": seed}) for seed in (3, 4)]
    made = rooms.origin(rooms.publish(tmp_path / "book", {}, runs, "make"))
    assert made["gathered"] == {fact: provenance()[fact] for fact in ("commit", "dirty", "versions")}
    runs[0].annotate(code="0" * 16)
    with pytest.raises(ValueError, match="expected runs of one state of the code, got 2 under commit"): rooms.publish(tmp_path / "book", {}, runs, "make")


def test_a_repository_around_the_code_that_does_not_hold_it_says_nothing_of_it(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)
    (tmp_path / "code").mkdir()
    for file in ("thesis.tex", "code/__init__.py"): (tmp_path / file).write_text("")
    monkeypatch.setattr(rooms, "_library", lambda: tmp_path / "code")
    git("init", "-q"), git("add", "thesis.tex"), git("commit", "-qm", "mine")
    assert (provenance()["commit"], provenance()["dirty"]) == (None, None)
    git("add", "."), git("commit", "-qm", "its own")
    assert len(provenance()["commit"]) == 40 and provenance()["dirty"] is False


def test_a_sibling_whose_meaning_was_edited_stops_nobody(tmp_path):
    run = Run.of(tmp_path, CONFIG | dict(contents={"method irm": "0"}))
    run.start(CONFIG | dict(contents="of old"))
    assert rooms.asked_in_the_same_words(Run(tmp_path / "irm-s3-00000000"), CONFIG | dict(contents={"method irm": "1"})) == {}


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
