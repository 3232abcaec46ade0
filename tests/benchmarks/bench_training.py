"""Cost of training, by hand and on one thread, beside pfhedge 0.23.0 on the same job.

    pip install --no-deps --target SOMEWHERE pfhedge==0.23.0
    PYTHONPATH=SOMEWHERE python tests/benchmarks/bench_training.py

The job: a European call, 60 dates, geometric Brownian motion at 20 %, proportional cost 1e-3, CVaR-95. A step simulates new paths,
hedges, differentiates and moves Adam; ours also clips. pfhedge trains its recurrent network of 4 hidden layers of 32 units (3,361
parameters). Ours trains the band at its own 2 x 32 units (1,282) and at 2 x 54 units (3,350, the same number). CPU seconds per step and
member, contenders in turn, medians of REPEATS after two to warm up. Peak memory is that of a child process each, imports included.
Contenders run as they are started; as the C library hands freed memory back and forth then, 4,096 paths are timed once more
in a child where it keeps it, as the Snakefile asks. Without pfhedge on the path its lines are left out. Results go to book/results/benchmarks/, which `hirm.runs.published` reads.
"""
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pandas as pd
import torch

from hirm.batches import exchange, random_labels
from hirm.config import Config
from hirm.frictions import Proportional
from hirm.environments import ENVIRONMENTS, Environment
from hirm.hedging import stack_episodes
from hirm.markets import GBM
from hirm.history import project
from hirm.runs import atomic_write, provenance
from hirm.training import Learner

REPEATS, DATES = 11, 60
BLACK_SCHOLES = Environment("black_scholes", "train", GBM(0.2), Proportional(1e-3))
ENVIRONMENTS["black_scholes"] = BLACK_SCHOLES


def ours(n_paths, members=1, width=32, method="erm", environments="black_scholes", n_steps=DATES, permuted=False):
    "One step of ours, as a function; `permuted` draws the environment of each path at random."
    ENVIRONMENTS["black_scholes"] = replace(BLACK_SCHOLES, n_steps=n_steps)
    config = Config(method=method, n_seeds=members, environments=environments, realized_vol=True, n_paths=n_paths, width=width, updates=10_000,
                    pretrain=0, ramp=0, n_validation=4096)
    learner = Learner(config, config.members())
    generators = [torch.Generator().manual_seed(i) for i in range(members)]
    def batch():
        episode = stack_episodes([e.episode(n_paths, generators) for e in learner.environments.values()], halves=2)
        return exchange(episode, random_labels(episode, generators)) if permuted else episode
    step = lambda: learner.update(0, batch())
    step.learner = learner
    return step


def theirs(n_paths):
    "One step of pfhedge, as its `fit` does it, without the validation."
    from pfhedge.instruments import BrownianStock, EuropeanOption
    from pfhedge.nn import ExpectedShortfall, Hedger, MultiLayerPerceptron
    dt = 1 / 252
    derivative = EuropeanOption(BrownianStock(sigma=0.2, cost=1e-3, dt=dt), maturity=DATES * dt)
    hedger = Hedger(MultiLayerPerceptron(n_layers=4, n_units=32), ["log_moneyness", "expiry_time", "volatility", "prev_hedge"],
                    criterion=ExpectedShortfall(0.05))
    derivative.simulate(n_paths=2)
    assert derivative.ul().spot.shape[1] == DATES + 1, "pfhedge must act on as many dates as ours"
    hedger.compute_pl(derivative)  # builds its lazy layers
    optimizer = torch.optim.Adam(hedger.parameters(), lr=1e-3)
    def step():
        optimizer.zero_grad()
        hedger.compute_loss(derivative, n_paths=n_paths).backward()
        optimizer.step()
    return step


def in_turn(steps, repeats=REPEATS):
    "Median CPU seconds of each function, all called in turn."
    seen = {name: [] for name in steps}
    for _ in range(repeats + 2):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seen[name].append(time.process_time() - start)
    return {name: statistics.median(times[2:]) for name, times in seen.items()}


def has_pfhedge():
    try:
        import pfhedge
    except ImportError:
        return False
    return True


CONTENDERS = {"pfhedge 4x32": lambda n: theirs(n), "ours 2x54": lambda n: ours(n, width=54), "ours 2x32": lambda n: ours(n)}


def peak(name):
    "Gigabytes at the peak of a child process that takes three steps on 50,000 paths."
    out = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True).stdout
    return float(out.split()[-1])


def contest():
    "Ours beside pfhedge."
    names = [name for name in CONTENDERS if has_pfhedge() or name != "pfhedge 4x32"]
    peaks = {name: peak(name) for name in names}  # first: a child's peak starts from what its parent holds
    rows = []
    for n_paths in (256, 4096, 50_000):
        makers = {name: (1, CONTENDERS[name]) for name in names}
        if n_paths == 256:
            makers |= {"ours 2x54, 8 members": (8, lambda n: ours(n, 8, 54)), "ours 2x32, 8 members": (8, lambda n: ours(n, 8))}
        found = in_turn({name: make(n_paths) for name, (_, make) in makers.items()})
        base = found.get("pfhedge 4x32")
        for name, (members, _) in makers.items():
            seconds = found[name] / members
            rows.append(dict(table="contest", contender=name, members=members, paths=n_paths, dates=DATES, seconds=seconds,
                             ratio=base / seconds if base else None, million_steps_per_second=n_paths * DATES / seconds / 1e6,
                             peak_gb=peaks[name] if n_paths == 50_000 else None))
    return rows


KEPT = {"MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_MMAP_THRESHOLD_": "33554432"}  # as in the Snakefile


def kept():
    "The contest at 4,096 paths where freed memory is kept."
    out = subprocess.run([sys.executable, __file__, "--kept"], env=os.environ | KEPT, capture_output=True, text=True, check=True).stdout
    found = json.loads(out.splitlines()[-1])
    return [dict(table="kept", contender=name, members=1, paths=4096, dates=DATES, seconds=seconds,
                 ratio=found["pfhedge 4x32"] / seconds if has_pfhedge() else None) for name, seconds in found.items()]


def penalties():
    "Step of a method divided by ERM's, 2 environments of 1,024 paths."
    methods = ("erm", "groupdro", "vrex", "irm", "hirm")
    found = in_turn({m: ours(1024, method=m, environments="low,medium") for m in methods})
    return [dict(table="methods", contender=m, members=1, paths=2048, dates=DATES, seconds=s, ratio=s / found["erm"]) for m, s in found.items()]


def twins():
    "Step of a method's permuted twin divided by the method's own, 2 and 4 environments of 1,024 paths."
    rows = []
    for environments in ("low,medium", "low,medium,high,crisis_liquidity"):
        methods, n = ("erm", "vrex", "irm", "hirm"), 1024 * len(environments.split(","))
        found = in_turn({(m, permuted): ours(1024, method=m, environments=environments, permuted=permuted) for m in methods for permuted in (False, True)})
        rows += [dict(table="twins", contender=f"{m}, permuted", members=1, paths=n, dates=DATES, seconds=found[m, True],
                      ratio=found[m, True] / found[m, False]) for m in methods]
    return rows


def lines():
    "Cost against members, paths and dates, one grown at a time."
    rows = []
    for table, cases in {"members": [(m, 256, 60) for m in (1, 2, 4, 8, 16)], "paths": [(1, n, 60) for n in (256, 1024, 4096, 16_384)],
                         "dates": [(1, 2048, t) for t in (15, 30, 60, 120)]}.items():
        found = in_turn({case: ours(case[1], case[0], n_steps=case[2]) for case in cases})
        for (members, n_paths, dates), seconds in found.items():
            rows.append(dict(table=table, contender="ours 2x32", members=members, paths=n_paths, dates=dates, seconds=seconds,
                             million_steps_per_second=members * n_paths * dates / seconds / 1e6))
    return rows


def share_of_peak():
    "Arithmetic of the network, forward and backward, per CPU second, divided by what a large matrix product reaches."
    a, out, rows = torch.randn(1024, 1024), torch.empty(1024, 1024), []
    for width in (32, 54):
        policy, n = ours(4096, width=width).learner.policy, 4096
        episode = BLACK_SCHOLES.episode(n, torch.Generator().manual_seed(0))
        ahead = torch.randn(1, 2, DATES, n)
        found = in_turn({"sgemm": lambda: torch.mm(a, a, out=out), "inputs": lambda: policy._inputs(episode),
                         "network": lambda: policy._outputs(episode, None).backward(ahead)}, 21)
        inputs, hidden, last = len(policy.columns) * width, width * width, 2 * width
        work = 2 * n * DATES * (3 * (hidden + last) + 2 * inputs)  # the first layer's inputs need no gradient
        seconds = found["network"] - found["inputs"]
        speed, best = work / seconds / 1e9, 2 * 1024**3 / found["sgemm"] / 1e9
        rows.append(dict(table="peak", contender=f"network 2x{width}", members=1, paths=n, dates=DATES, seconds=seconds, ratio=speed / best,
                         gflops=speed, sgemm_gflops=best))
    return rows


def processor():
    "The processor's model, in general terms."
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else None


def save(frame, folder="benchmarks", name="training", command="python tests/benchmarks/bench_training.py"):
    "Write the table and where it comes from, in the form that `hirm.runs.published` checks."
    folder, text, facts = project() / "book/results" / folder, frame.to_csv(index=False, float_format="%.4g"), provenance()
    folder.mkdir(parents=True, exist_ok=True)
    machine = {k: facts[k] for k in ("platform", "cpus", "threads", "python", "versions")} | {"processor": processor()}
    atomic_write(folder / f"{name}.csv", text)
    atomic_write(folder / "provenance.json", json.dumps({
        "commit": facts["commit"][:12], "dirty": facts["dirty"], "command": command, "machine": machine,
        "files": {f"{name}.csv": hashlib.sha256(text.encode()).hexdigest()}}, indent=2) + "\n")


def main():
    torch.set_num_threads(1)
    if "--peak" in sys.argv:
        step = CONTENDERS[sys.argv[-1]](50_000)
        for _ in range(3):
            step()
        return print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    if "--kept" in sys.argv:
        return print(json.dumps(in_turn({name: make(4096) for name, make in CONTENDERS.items() if has_pfhedge() or name != "pfhedge 4x32"})))
    if found := sorted(name for name in os.environ if name.startswith("MALLOC_")):
        sys.exit(f"memory is to be managed as the C library does by itself, got {', '.join(found)} in the environment; unset them")
    rows = []
    for part in (contest, kept, penalties, twins, lines, share_of_peak):
        found = part()
        print(pd.DataFrame(found).dropna(axis=1, how="all").to_string(index=False, float_format="{:.4g}".format), "\n", flush=True)
        rows += found
    save(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
