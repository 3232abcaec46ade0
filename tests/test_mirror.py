"""A finished run is copied to W&B when that is asked for, as it is, once, and without a connection that nobody wanted."""
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest

from conftest import HANGS, ROOT
from hirm import mirror as room
from hirm.config import Config
from hirm.mirror import kept_files, mirror, summary
from hirm.training import records, train

SMOKE = dict(scale="smoke", method="erm", environments="low,medium", n_validation=400, n_evaluation=400)


def config(folder, **changed):
    return Config(**SMOKE | dict(runs=str(folder / "runs")) | changed)


def finished(folder, **changed):
    "Two trained runs, closed with a number each."
    asked = config(folder, n_seeds=2, **changed)
    for place, run in enumerate(train(asked)):
        (run.artifacts / "metrics.csv").write_text("loss\n0.5\n")
        run.finish({"selection": "validation: high", "metrics": {"crisis": {"cvar95": 0.03 + place, "cost": None}}})
    return asked


# ---- without the package ---------------------------------------------------------------------------------------------------------

def test_the_word_is_no_part_of_the_question(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    names = {records(config(tmp_path, wandb=word))[0].folder.name for word in ("off", "offline", "online", "disabled")}
    assert len(names) == 1
    run = records(config(tmp_path, wandb="offline"))[0].start(asdict(config(tmp_path, wandb="offline")))
    assert "wandb" not in run.config
    run.release()


def test_a_word_that_is_not_one_is_refused_and_the_variable_counts_when_it_is_asked_for(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown wandb 'ofline', did you mean 'offline'"): config(tmp_path, wandb="ofline")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert config(tmp_path).wandb == "off" and config(tmp_path, wandb=False).wandb == "off"  # YAML reads off as false
    assert config(tmp_path, wandb="WANDB_MODE").wandb == "online" and config(tmp_path, wandb="offline").wandb == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    with pytest.raises(ValueError, match="WANDB_MODE must be offline, online, disabled where wandb asks for it, got dryrun"): config(tmp_path, wandb="WANDB_MODE")


@pytest.mark.parametrize("word, said", [("off", ""), ("offline", "No copy of erm-s0-")])
def test_a_package_that_is_missing_is_said_in_one_line_and_only_to_those_who_asked(tmp_path, monkeypatch, capsys, word, said):
    asked = finished(tmp_path, wandb=word)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, "wandb", None)
    capsys.readouterr()
    mirror(asked)
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == bool(said)
    assert not said or "the package wandb is missing; pip install wandb). The run itself is complete; the same command tries again" in told
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


def test_a_record_that_was_edited_is_not_copied(tmp_path, monkeypatch, capsys):
    asked = finished(tmp_path, wandb="offline")
    monkeypatch.setattr(room, "_copy", lambda *_: pytest.fail("was copied"))
    for run in records(asked): (run.folder / "metrics.jsonl").write_text("{}\n")
    mirror(asked)
    assert "expected metrics.jsonl as the run left it" in capsys.readouterr().err


# ---- with it ---------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def outside():
    "Stands for the world outside: every address that W&B or a proxy could be asked for leads here, and who calls is counted and sent away."
    calls, server = [], socket.create_server(("127.0.0.1", 0))
    def answer():
        while True:
            try: caller, _ = server.accept()
            except OSError: return
            calls.append(caller.recv(200))
            caller.close()
    threading.Thread(target=answer, daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    elsewhere = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "", "no_proxy": "", **dict.fromkeys(names, address)}
    yield elsewhere, calls
    server.close()


SPY = """
import socket, sys
connect = socket.socket.connect
def spied(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"): print("CALLED", address, flush=True)
    return connect(self, address)
socket.socket.connect = spied
import hirm.mirror
from hirm.config import Config
hirm.mirror.PATIENCE |= dict(init_timeout=5.0, finish_timeout=5.0)
assert "wandb" not in sys.modules
hirm.mirror.mirror(Config(**{asked!r}))
"""


@pytest.fixture
def copy(outside, tmp_path):
    "Copies runs by a process of its own, and counts who was called."
    pytest.importorskip("wandb")
    elsewhere, calls = outside
    def run(asked):
        given = {**SMOKE, "runs": asked.runs, "n_seeds": 2, "wandb": asked.wandb}
        done = subprocess.run([sys.executable, "-c", SPY.format(asked=given)], cwd=ROOT, env={**os.environ, "HOME": str(tmp_path), **elsewhere},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANGS)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout, len(calls)
    return run


def pieces(path):
    "Whole records of W&B's file: chunks in blocks of 32768 bytes, each with a checksum, a length and a kind, after a head of 7."
    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # what is left of a block holds no head
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the only one, or the last
            yield whole
            whole = b""


def told(path):
    "What a file of W&B says, read by its own records."
    from wandb.proto.wandb_internal_pb2 import Record
    found = dict(rows=[], config={}, summary={}, files=set(), ids=set(), ended=False)
    for piece in pieces(path):
        record = Record.FromString(piece)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["ids"].add((record.run.project, record.run.run_id))
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if kind == "history": found["rows"].append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
        if kind == "summary": found["summary"] |= {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update}
        if kind == "artifact": found["files"] |= {one.path for one in record.artifact.manifest.contents}
        if kind == "request" and record.request.HasField("log_artifact"): found["files"] |= {one.path for one in record.request.log_artifact.artifact.manifest.contents}
        found["ended"] |= kind == "exit"
    return found


def test_a_copy_says_what_the_record_says_and_nobody_is_called(tmp_path, copy):
    asked = finished(tmp_path, wandb="offline")
    before = {path: path.read_bytes() for run in records(asked) for path in run.folder.rglob("*") if path.is_file()}
    said, n_calls = copy(asked)
    assert not said and not n_calls  # neither by Python, nor by the program that W&B starts beside it
    assert {path: path.read_bytes() for run in records(asked) for path in run.folder.rglob("*") if path.is_file()} == before
    for run in records(asked):
        (file,) = (tmp_path / "runs" / "wandb").glob(f"offline-run-*/run-{room.copy_id(run)}.wandb")
        found = told(file)
        assert found["ids"] == {("invariant-hedging", room.copy_id(run))} and found["ended"]
        for row, (step, numbers) in zip(found["rows"], room.logged(run), strict=True):
            assert row.pop("_step") == step and {name: value for name, value in row.items() if name[0] != "_"} == numbers
        assert {name: found["summary"][name] for name in summary(run)} == summary(run)
        assert {name: found["config"][name] for name in run.config} == run.config and found["config"]["provenance"]["commit"] == run.metadata["commit"]
        assert found["files"] == {path.relative_to(run.folder).as_posix() for path in kept_files(run)} and "artifacts/metrics.csv" in found["files"]
        assert socket.gethostname() not in json.dumps(found["config"])


def test_asked_again_the_copy_stays_one(tmp_path, copy):
    asked = finished(tmp_path, wandb="offline")
    for _ in range(2): assert copy(asked) == ("", 0)
    copies = sorted((tmp_path / "runs" / "wandb").glob("offline-run-*"))
    assert len(copies) == 2
    (copies[0] / room.WHOLE).unlink()  # a copy that was cut
    assert copy(asked) == ("", 0) and len(list((tmp_path / "runs" / "wandb").glob("offline-run-*"))) == 3


def test_a_run_that_is_trained_anew_has_a_copy_of_its_own(tmp_path, copy):
    asked = finished(tmp_path, wandb="offline")
    assert copy(asked) == ("", 0)
    record = records(asked)[0]
    record.annotate(started="2001-01-01T00:00:00Z")
    assert copy(asked) == ("", 0)
    assert len(list((tmp_path / "runs" / "wandb").glob(f"offline-run-*-{record.folder.name}-*"))) == 2 and len(list((tmp_path / "runs" / "wandb").glob("offline-run-*"))) == 3


def test_nobody_answers(tmp_path, copy):
    asked = finished(tmp_path, wandb="online")
    said, n_calls = copy(asked)
    (line,) = [line for line in said.splitlines() if not line.startswith("wandb: ")]  # what W&B itself may say about the key
    assert n_calls and re.fullmatch(r"No copy of erm-s0-\w+ in W&B \(CommError: .+\)\. The run itself is complete; the same command tries again", line), said
    assert all(run.verify() for run in records(asked))


def test_disabled_writes_and_calls_nothing(tmp_path, copy):
    assert copy(finished(tmp_path, wandb="disabled")) == ("", 0) and not (tmp_path / "runs" / "wandb").exists()
