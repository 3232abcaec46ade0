"""Cost of judging and of building, by hand and on one thread.

    python tests/benchmarks/bench_evaluation.py

Judges ten members side by side, untrained ones (the cost does not depend on what they have learnt), in eight environments on 100,000 common
paths each, baselines included, each kind of hedger in a child process of its own; then builds the book into a folder of its own.
CPU seconds, wall seconds and peak memory of the child. Results go to book/results/benchmarks_evaluation/.
"""
import os
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pandas as pd
import torch

from bench_training import save
from hirm.config import Config
from hirm.evaluation import evaluate
from hirm.environments import ENVIRONMENTS
from hirm.history import project
from hirm.training import Learner

MEMBERS, PATHS = 10, 100_000
WHERE = ("low", "medium", "high", "crisis", "crisis_jumps", "crisis_liquidity", "crisis_broken", "sabr_crisis")


def judged(policy):
    "Judge in this process; the number of rows that came out."
    config = Config(method="erm", n_seeds=MEMBERS, environments="low,medium", policy=policy, realized_vol=True)
    return len(evaluate({"erm": Learner(config, config.members()).policy}, [ENVIRONMENTS[name] for name in WHERE], PATHS, seed=0))


def child(name, command):
    "Run a command to its end; what it cost."
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=project())
    _, status, used = os.wait4(process.pid, 0)  # of this child alone
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return dict(job=name, cpu_seconds=used.ru_utime + used.ru_stime, wall_seconds=time.monotonic() - began, peak_gb=used.ru_maxrss / 2**20)


def main():
    torch.set_num_threads(1)
    if "--judge" in sys.argv:
        return print(judged(sys.argv[-1]))
    with TemporaryDirectory() as folder:
        rows = [child("build the book", ["jupyter-book", "build", "book", "--path-output", folder])]
    rows += [child(f"judge ten members, {policy}", [sys.executable, __file__, "--judge", policy]) for policy in ("band", "mlp")]
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False, float_format="{:.4g}".format))
    save(frame, "benchmarks_evaluation", "evaluation", "python tests/benchmarks/bench_evaluation.py")


if __name__ == "__main__":
    main()
