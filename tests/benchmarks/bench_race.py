"""CPU seconds to a given validation CVaR, by hand and on one thread, beside pfhedge 0.23.0 on the same job.

    pip install --no-deps --target SOMEWHERE pfhedge==0.23.0
    PYTHONPATH=SOMEWHERE python tests/benchmarks/bench_race.py

The job of bench_training: a European call, 60 dates, geometric Brownian motion at 20 %, proportional cost 1e-3, CVaR-95, 4,096 fresh paths a step.
Every contender trains for CAP CPU seconds from each of SEEDS initial weights; now and then the clock is stopped and its positions are booked by
our ledger, the final unwind included, on the same 20,000 paths. pfhedge trains without the unwind, with Adam at its default rate and at ours.
Results go to book/results/benchmarks_race/.
"""
import os
import sys
import time

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pandas as pd
import torch

from bench_training import BLACK_SCHOLES, DATES, save
from hirm.batches import policy_loss
from hirm.environments import common_episodes
from hirm.config import Config
from hirm.hedging import hedge, settle, stack_episodes
from hirm.policies import Delta
from hirm.risk import cvar
from hirm.training import Learner

CAP, SEEDS, PATHS, JUDGED = 15.0, (0, 1, 2), 4096, 20_000


def ours(policy, seed):
    "One step of ours and its CVaR on common paths, as functions."
    config = Config(method="erm", seed=seed, environments="black_scholes", realized_vol=True, policy=policy, n_paths=PATHS, updates=2_000, pretrain=0, ramp=0, n_validation=4096)
    learner, generators, done = Learner(config, config.members()), [torch.Generator().manual_seed(seed)], iter(range(2_000))

    def step():
        learner.update(next(done), stack_episodes([BLACK_SCHOLES.episode(PATHS, generators)], halves=2))
    return step, lambda judged: cvar(policy_loss(learner.policy, judged)).item()


def theirs(rate, seed):
    "One step of pfhedge and its CVaR on common paths, as functions."
    from pfhedge.instruments import BrownianStock, EuropeanOption
    from pfhedge.nn import ExpectedShortfall, Hedger, MultiLayerPerceptron
    torch.manual_seed(seed)
    derivative = EuropeanOption(BrownianStock(sigma=0.2, cost=1e-3, dt=1 / 252), maturity=DATES / 252)
    hedger = Hedger(MultiLayerPerceptron(n_layers=4, n_units=32), ["log_moneyness", "expiry_time", "volatility", "prev_hedge"], criterion=ExpectedShortfall(0.05))
    derivative.simulate(n_paths=2)
    hedger.compute_pl(derivative)  # builds its lazy layers
    optimizer = torch.optim.Adam(hedger.parameters(), lr=rate)

    def step():
        optimizer.zero_grad()
        hedger.compute_loss(derivative, n_paths=PATHS).backward()
        optimizer.step()

    @torch.no_grad()
    def judge(judged):
        losses = []
        for episode in judged:
            spot, state = episode.paths.spot[0], torch.get_rng_state()
            derivative.simulate(n_paths=len(spot))  # fills every buffer; then the common paths take the place of its own
            torch.set_rng_state(state)
            derivative.ul().register_buffer("spot", spot)
            if "volatility" in dict(derivative.ul().named_buffers()):
                derivative.ul().register_buffer("volatility", torch.full_like(spot, 0.2))
            held = hedger.compute_hedge(derivative)[:, 0, :DATES]
            losses.append(settle(held[None, ..., None], episode).loss)
        return cvar(torch.cat(losses, -1)).item()
    return step, judge


CONTENDERS = {"ours, band": lambda seed: ours("band", seed), "ours, network": lambda seed: ours("mlp", seed),
              "pfhedge, rate 0.001": lambda seed: theirs(1e-3, seed), "pfhedge, rate 0.003": lambda seed: theirs(3e-3, seed)}


def main(cap=CAP):
    torch.set_num_threads(1)
    judged, rows = list(common_episodes(BLACK_SCHOLES, JUDGED, "judge")), []
    goal = cvar(torch.cat([hedge(Delta(), episode).loss for episode in judged], -1)).item()
    for name, make in CONTENDERS.items():
        for seed in SEEDS:
            step, judge = make(seed)
            spent, done = 0.0, 0
            rows.append(dict(contender=name, seed=seed, updates=0, seconds=0.0, cvar95=judge(judged), delta=goal))
            while spent < cap:
                began = time.process_time()
                for _ in range(max(1, done // 4)):  # looks thin out as the curve flattens
                    step()
                    done += 1
                spent += time.process_time() - began
                rows.append(dict(contender=name, seed=seed, updates=done, seconds=spent, cvar95=judge(judged), delta=goal))
            print(name, seed, f"{done} updates, CVaR-95 {100 * rows[-1]['cvar95']:.3f} % of spot, delta {100 * goal:.3f} %", flush=True)
    if cap == CAP:
        save(pd.DataFrame(rows), "benchmarks_race", "race", "python tests/benchmarks/bench_race.py")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
