"""Training on a GPU beside one core, by hand: how long a step takes, and whether the hedgers are the same in law.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cuda.py times
    python tests/benchmarks/bench_cuda.py law

An update draws its paths on the CPU, hedges, differentiates and moves Adam, at the sizes of both scales, on the same configuration.
Milliseconds of the wall clock, after a few updates to warm up; the table is written line by line, so that what was measured is kept when the machine has to be given back.
`law` looks at what `snakemake -c16 phase2 --config device=cuda` has finished of the primary cell, and puts each hedger beside the one
of the same seed in the results in print, which were trained on a CPU. `hirm.runs.published` reads both.
"""
import sys
import time
from itertools import product

import pandas as pd
import torch

from bench_training import save

from hirm.batches import batches
from hirm.campaign import Plan, phase2
from hirm.config import Config
from hirm.gathering import judged, runs_of
from hirm.runs import publish, published
from hirm.training import Learner

METHODS, MEMBERS = ("erm", "hirm"), (1, 10, 30)
UPDATES = {"laptop": 16, "paper": 128}  # a block of paths each
WORLDS = ["coloured_home", "coloured_gone", "coloured_turned"]


def milliseconds(scale, method, members, device):
    "One update, all members together, once the penalty has its full weight."
    config = Config(method=method, scale=scale, n_seeds=members, device=device, environments="low,medium", realized_vol=True)
    learner = Learner(config, config.members())
    start = config.pretrain + config.ramp
    start -= start % UPDATES[scale]
    episodes = batches(learner.environments, learner.seeds, config, start)
    for step in range(3):
        learner.update(start + step, next(episodes))
    began = time.perf_counter()  # an update ends by reading a number back from the device
    for step in range(UPDATES[scale]):
        learner.update(start + 3 + step, next(episodes))
    return 1000 * (time.perf_counter() - began) / UPDATES[scale]


def times():
    "A line for each size and device."
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    gpu = torch.cuda.get_device_name() if len(devices) > 1 else "none"
    rows = []
    for asked in product(UPDATES, METHODS, MEMBERS, devices):
        rows.append(dict(zip(("scale", "method", "members", "device"), asked), ms=milliseconds(*asked), gpu=gpu))
        print(rows[-1], flush=True)
        save(pd.DataFrame(rows), "benchmarks_cuda", "times", "python tests/benchmarks/bench_cuda.py times")


def law():
    "The same seeds on both devices."
    done = [(job, run) for job, run in runs_of(phase2(Plan(device="cuda"))) if job.cell == "primary" and run.done]
    keys = ["method", "seed", "environment"]
    there = judged(done, ("cell",)).query("job != 'baseline'")
    here = published("book/results/phase2", "metrics").query("cell == 'primary'")
    both = there.merge(here, on=keys, suffixes=("_cuda", "_cpu"))
    both = both[both["environment"].isin(WORLDS)]
    print(publish("book/results/cuda", {"law": both[[*keys, "cvar95_cpu", "cvar95_cuda"]]}, [run for _, run in done], "python tests/benchmarks/bench_cuda.py law"))


if __name__ == "__main__":
    {"times": times, "law": law}[sys.argv[1]]()
