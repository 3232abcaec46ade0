"""The step of training on a GPU beside one core's, by hand.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cuda.py

An update draws its paths on the CPU, hedges, differentiates and moves Adam, at the sizes of both scales, on the same configuration.
Milliseconds of the wall clock, after a few updates to warm up. Results go to book/results/benchmarks_cuda/, which `hirm.runs.published` reads.
"""
import time
from itertools import product

import pandas as pd
import torch

from bench_training import save

from hirm.batches import batches
from hirm.config import Config
from hirm.training import Learner

METHODS, MEMBERS = ("erm", "irm", "hirm"), (1, 5, 10, 30)
UPDATES = {"laptop": 16, "paper": 128}  # a block of paths each


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


def main():
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for asked in product(UPDATES, METHODS, MEMBERS, devices):
        rows.append(dict(zip(("scale", "method", "members", "device"), asked), ms=milliseconds(*asked)))
        print(rows[-1], flush=True)
    gpu = torch.cuda.get_device_name() if len(devices) > 1 else "none"
    save(pd.DataFrame(rows).assign(gpu=gpu), "benchmarks_cuda", "cuda", "python tests/benchmarks/bench_cuda.py")


if __name__ == "__main__":
    main()
