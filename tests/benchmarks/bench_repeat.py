"""Whether a training that is done once more ends in the same bytes: by hand, once there are runs.

    python tests/benchmarks/bench_repeat.py runs/phase1_paper/erm-s0-95ba8d8c …

Trains each run again, beside the members that it was trained beside, by the command in its record, into runs/repeated; killed and started again it goes
on. Then every file that both records closed is compared by its fingerprint: the log, the checkpoints, the tables and figures, the final metrics.
Results go to book/results/benchmarks_repeat/, one row a run; those of earlier goes stay.
"""
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from bench_training import save
from hirm.history import project
from hirm.runs import Record, published

FOLDER, AGAIN = "benchmarks_repeat", "runs/repeated"


def company(run):
    "The seeds that were trained beside a run, itself among them, and the command that trains them again."
    words = shlex.split(run.metadata["command"])
    asked = {name: int(value) for name, value in zip(words[1:], words[2:]) if name in ("seed", "n_seeds")}
    first, n_seeds = asked.get("seed", 0), asked.get("n_seeds", 1)
    words[words.index("config.yaml")] = str(run.folder / "config.yaml")
    return range(first, first + n_seeds), [*words, "-p", "runs", AGAIN]


def compared(first, second):
    "One row: how many files of two records of one run are the same."
    before, after = (record.metadata["files"] for record in (first, second) if record.verify())
    same = [file for file in before if before[file] == after.get(file)]
    return dict(scale=first.config["scale"], method=first.config["method"], seed=first.config["seed"], run=first.folder.name, updates=first.config["updates"], commit=first.commits[0],
                files=len(before | after), same=len(same), log="metrics.jsonl" in same)


def main():
    rows = {}
    if (project() / "book/results" / FOLDER / "repeat.csv").exists():
        rows = {row["run"]: row for row in published(f"book/results/{FOLDER}", "repeat").to_dict("records")}
    for run in map(Record, map(Path, sys.argv[1:])):
        seeds, command = company(run)
        if subprocess.run(command, cwd=project(), stdin=subprocess.DEVNULL).returncode:
            raise SystemExit(f"{shlex.join(command)} failed")
        for seed in seeds:
            name = run.folder.name.replace(f"-s{run.config['seed']}-", f"-s{seed}-")
            rows[name] = compared(Record(run.folder.with_name(name)), Record(project() / AGAIN / name))
    frame = pd.DataFrame(rows.values())
    print(frame.to_string(index=False))
    save(frame, FOLDER, "repeat", "python tests/benchmarks/bench_repeat.py " + " ".join(sys.argv[1:]))


if __name__ == "__main__":
    main()
