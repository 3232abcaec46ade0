"""A published case with two instruments, by hand and on one thread: hedgers trained on each risk beside the model's own hedge.

    python tests/benchmarks/bench_swap.py

The market of Buehler et al. (2019), section 5: a call of 30 days, Heston with a wild variance, the spot and a variance swap traded daily and without
cost. A band is trained on CVaR-50, -95 and -99 from SEEDS initial weights each, and all are judged on the same paths as the hedge that knows the model.
Results go to book/results/benchmarks_swap/.
"""
import os
import sys
from dataclasses import replace
from tempfile import TemporaryDirectory

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pandas as pd
import torch

from bench_training import save
from hirm.batches import policy_loss
from hirm.config import Config
from hirm.environments import ENVIRONMENTS, Environment, common_episodes
from hirm.frictions import Proportional
from hirm.hedging import hedge
from hirm.markets import Heston
from hirm.policies import DeltaVega
from hirm.risk import cvar
from hirm.training import load_policy, train

UPDATES, SEEDS, JUDGED, LEVELS = 2_000, 3, 100_000, (0.5, 0.95, 0.99)
MARKET = Heston(v0=0.04, kappa=1, theta=0.04, xi=2, rho=-0.7)
TRAINED = Environment("buehler", "train", MARKET, Proportional(0.0), ("spot", "variance_swap"), n_steps=30, dt=1 / 365)
CHECKED = replace(TRAINED, name="buehler_check", role="validate")


def risks(losses):
    "CVaR of a hedger's members at each level, in % of spot."
    return {f"cvar{100 * level:.0f}": (100 * cvar(losses, level)).tolist() for level in LEVELS}


def main(updates=UPDATES):
    torch.set_num_threads(1)
    ENVIRONMENTS.update({e.name: e for e in (TRAINED, CHECKED)})
    judged = list(common_episodes(CHECKED, JUDGED, "judge"))
    model = torch.cat([hedge(DeltaVega(MARKET), episode).loss for episode in judged], -1)
    frames = [pd.DataFrame(risks(model)).assign(hedger="model", trained_on="", seed=0)]
    for level in LEVELS:
        with TemporaryDirectory() as folder:
            config = Config(method="erm", environments="buehler", validate_on="buehler_check", instruments="spot,variance_swap", n_steps=30, alpha=level,
                            n_seeds=SEEDS, pretrain=0, ramp=0, updates=updates, runs=folder)
            policy = load_policy(train(config))
        frames.append(pd.DataFrame(risks(policy_loss(policy, judged))).assign(hedger="trained", trained_on=f"cvar{100 * level:.0f}", seed=range(SEEDS)))
        print(frames[-1].round(3), flush=True)
    if updates == UPDATES:
        save(pd.concat(frames, ignore_index=True), "benchmarks_swap", "swap", "python tests/benchmarks/bench_swap.py")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
