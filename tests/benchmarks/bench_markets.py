"Speed of the simulators, run by hand on one thread: python tests/benchmarks/bench_markets.py"
import resource
import time

import torch

from hirm.markets import GBM, SABR, Heston, Jumps

HESTON = Heston(0.0324, 3, 0.0324, 0.22, -0.7)
MARKETS = {
    "GBM": GBM(0.18), "Heston": HESTON, "Heston, xi² > 2 kappa theta": Heston(0.04, 0.5, 0.04, 1, -0.9),
    "Bates": Jumps(HESTON, 4, -0.06, 0.05), "SABR": SABR(0.18, 1, 0.7, -0.3),
}


def seconds(work, repeats):
    "Least wall and processor time of several calls."
    times = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(t[0] for t in times), min(t[1] for t in times)


def main():
    torch.set_num_threads(1)
    print("million path-steps per second, 20 days of past included: by the wall (by the processor's time)")
    for name, market in MARKETS.items():
        for members, n_paths in ((8, 256), (1, 1024), (1, 50_000)):
            generators = [torch.Generator().manual_seed(i) for i in range(members)]
            wall, cpu = seconds(lambda: market.simulate(n_paths, 60, 1 / 252, generators), 30 if n_paths < 5000 else 5)
            steps = members * n_paths * 80 / 1e6
            print(f"{name:28s} {members} x {n_paths:6d}: {steps / wall:6.1f} ({steps / cpu:6.1f})")
    print("1e6 paths of 60 dates: seconds by the wall (by the processor's time), peak memory so far")
    for name in ("GBM", "Heston"):
        generator = torch.Generator().manual_seed(0)
        for how, work in (("streamed", lambda: [None for _ in MARKETS[name].stream(1_000_000, 60, 1 / 252, generator)]),
                          ("in one call", lambda: MARKETS[name].simulate(1_000_000, 60, 1 / 252, generator))):
            wall, cpu = seconds(work, 0)
            print(f"{name:8s} {how:12s}: {wall:5.2f} s ({cpu:5.2f} s), {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
