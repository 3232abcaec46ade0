"""Many runs, each a plain papermill line.

    snakemake -c2 learning      the page that shows what is learnt, and how fast
    snakemake -c2 phase1        the runs of Phase 1, their tables, and the book
    snakemake -c2 phase1 -n     what would be run
    snakemake -c2 phase1 --config seeds=11      one seed more in every secondary cell, and nothing else
    snakemake -c2 phase1 --config primary_seeds=10 control_seeds=5      an interim look at the primary cell
    snakemake -c2 phase1 --config policies=band      half of the cells, the primary one among them
    snakemake -c1 phase1 --config scale=paper device=cuda      the protocol of record, kept apart

Interrupted, the same command goes on: papermill's job resumes from its last checkpoint, and a finished run is not run twice.
On a cluster the same file runs through one of Snakemake's executors, see CONTRIBUTING.
"""
import json

from hirm.config import SCALES
from hirm.objectives import METHODS
from hirm.stats import CRITERIA, PERMUTED

SCALE = config.get("scale", "laptop")
SEEDS = int(config.get("seeds", 10))  # of a cell of Phase 1
PRIMARY_SEEDS = int(config.get("primary_seeds", SEEDS if SCALE == "smoke" else max(SEEDS, CRITERIA.seeds)))  # of the cell that carries the claims
CONTROL_SEEDS = int(config.get("control_seeds", PRIMARY_SEEDS))  # of its controls
FEW = min(SEEDS, 5)  # seeds of what is shown beside it, and seeds that train side by side
SHAPE = SCALES[SCALE]
APART = "" if SCALE == "laptop" else f"_{SCALE}"  # other scales keep their runs and results to themselves
TRAINED_ON = "low,medium"
ALL_FOUR = "low,medium,high,crisis"  # the oracle's

# One torch thread per process. Freed memory is kept, not handed back and forth at every update.
shell.prefix("export OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=33554432; ")


def job(runs, method, **asked):
    "Parameters of one training job; a hedger sees the realised vol unless its cell says otherwise."
    return dict(method=method, environments=TRAINED_ON, realized_vol=True, scale=SCALE, device=config.get("device", "cpu"), runs=f"runs/{runs}{APART}") | asked


def batches(n_seeds, first=0):
    "First seed and number of the seeds of each batch."
    return [dict(seed=first + start, n_seeds=min(FEW, n_seeds - start)) for start in range(0, n_seeds, FEW)]


def named(jobs):
    "Jobs by a name that says which seeds they train."
    return {f"{name}-s{asked['seed']}-{asked['seed'] + asked['n_seeds'] - 1}": asked for name, asked in jobs}


# Phase 1: every method in each of four cells, ERM last, so that no job judges it once more beside its own method.
CELLS = [dict(policy=policy, realized_vol=seen) for policy in ("band", "mlp") if policy in config.get("policies", "band,mlp").split(",") for seen in (True, False)]
FAMILY = (*CRITERIA.methods, CRITERIA.baseline)
cell_name = lambda cell: f"{cell['policy']}-{'seeing' if cell['realized_vol'] else 'blind'}"
PRIMARY = "band-seeing"
PHASE1 = {cell_name(cell): named((f"{cell_name(cell)}-{method}", job("phase1", method, **cell, **batch)) for method in FAMILY for batch in batches(PRIMARY_SEEDS if cell_name(cell) == PRIMARY else SEEDS))
                           | named([(f"{cell_name(cell)}-oracle", job("phase1", "erm", **cell, seed=0, n_seeds=FEW, environments=ALL_FOUR))])
          for cell in CELLS}
CONTROLS = named(("erm_again", job("phase1_controls", "erm", **batch)) for batch in batches(CONTROL_SEEDS, 1000))
CONTROLS |= named((f"{method}_permuted", job("phase1_controls", method, permute_labels=True, **batch)) for method in (*PERMUTED, CRITERIA.baseline)
                  for batch in batches(CONTROL_SEEDS))
CONTROLS |= named(("erm_early", job("phase1_controls", "erm", pretrain=0, ramp=0, **batch)) for batch in batches(CONTROL_SEEDS))  # every check a candidate
WEIGHTS = named((f"{method}-weights", job("phase1_weights", method, seed=0, n_seeds=3, penalty_weight=[METHODS[method].weight * times for times in (0.1, 10.0, 100.0)]))
                for method in ("irm", "hirm", "vrex"))

# The page on learning: the methods that Phase 1 leaves out, a longer training, and the same number of paths in other batches at other rates.
LEARNING = {method: job("learning", method, n_seeds=FEW) for method in METHODS if method not in CRITERIA.methods}
LEARNING["longer"] = job("learning", "erm", n_seeds=FEW, **{phase: 4 * SHAPE[phase] for phase in ("updates", "pretrain", "ramp")})


def spent(n_paths, rate):
    "The same number of paths, in batches of another size, at another rate."
    updates = SHAPE["n_paths"] * SHAPE["updates"] // n_paths
    return job("learning", "erm", n_seeds=2, n_paths=n_paths, learning_rate=rate, updates=updates, pretrain=0, ramp=0, validate_every=max(1, updates // 12),
               n_evaluation=SHAPE["n_evaluation"] // 5)


LEARNING |= {f"{n_paths}x{rate}": spent(n_paths, rate) for n_paths in (SHAPE["n_paths"] // 4, SHAPE["n_paths"], 4 * SHAPE["n_paths"])
             for rate in (0.001, 0.003, 0.01)}

# One ingredient of the recipe taken away at a time.
WITHOUT = {"few_paths": dict(n_paths=SHAPE["n_paths"] // 4), "raw_units": dict(risk_unit="spot"), "at_once": dict(pretrain=0, ramp=0), "sharp_tail": dict(smoothing=0.01)}
LEARNING |= {f"{method}_{name}": job("learning", method, n_seeds=min(FEW, 3), **change) for method in ("irm", "hirm") for name, change in WITHOUT.items()}

JOBS = {f"learning{APART}": LEARNING, f"phase1{APART}": {name: asked for jobs in PHASE1.values() for name, asked in jobs.items()} | CONTROLS | WEIGHTS}


def later(name, seed):
    "The first seeds of everything come first, then the rest of the primary cell, then the rest of its controls."
    return (2 if seed % 1000 >= FEW else 0) if name in CONTROLS else int(seed >= SEEDS)


ORDER = {name: -place - 1000 * later(name, asked.get("seed", 0)) for jobs in JOBS.values() for place, (name, asked) in enumerate(jobs.items())}


def words(asked):
    "Parameters as papermill reads them."
    return " ".join(f"-y '{json.dumps({name: value})}'" if isinstance(value, list) else f"-p {name} {value}" for name, value in asked.items())


def notebooks(experiment, jobs):
    return [f"runs/{experiment}{APART}/notebooks/{name}.ipynb" for name in jobs]


def results(experiment):
    return f"book/results/{experiment}{APART}/provenance.json"


RAN = {"learning": notebooks("learning", LEARNING),
       "phase1": notebooks("phase1", [*JOBS[f"phase1{APART}"], *(f"{page}-{cell}" for page in ("evaluate", "diagnose") for cell in PHASE1)])}


rule learning:
    input: RAN["learning"], results("learning")  # the runs by name: results that came with the code do not stand in for them


rule phase1:
    input: RAN["phase1"], results("phase1"), [] if APART else "book/_build/html/index.html"


rule train:
    input: "nbs/train.ipynb"
    output: "runs/{experiment}/notebooks/{job}.ipynb"
    log: "runs/{experiment}/logs/{job}.log"
    params: words=lambda wildcards: words(JOBS[wildcards.experiment][wildcards.job])
    priority: lambda wildcards: ORDER[wildcards.job]
    wildcard_constraints: experiment="|".join(JOBS), job="|".join(ORDER)
    threads: 1
    resources: mem_mb=4000, runtime=60
    shell: "papermill {input} {output} {params.words} --no-progress-bar > {log} 2>&1 || grep -q 'training diverged' {log}"  # a result too


SHOWN = "low,medium,high,crisis,crisis_jumps,crisis_liquidity,crisis_broken,gfc,volmageddon,covid,bear_2022"


def look(page, cell):
    "Parameters of a look at the first seeds of a cell; for probes and tails fewer paths will do than for the record of each run."
    which = dict(CELLS[list(PHASE1).index(cell)], seeds=",".join(map(str, range(SEEDS))), runs=f"runs/phase1{APART}", out=f"runs/phase1{APART}/{page}/{cell}")
    return which | (dict(environments=SHOWN, n_paths=SHAPE["n_evaluation"] // 5) if page == "evaluate" else {})


rule look:
    input: "nbs/{page}.ipynb", lambda wildcards: notebooks("phase1", [name for name, asked in PHASE1[wildcards.cell].items() if asked["seed"] < SEEDS])
    output: f"runs/phase1{APART}/notebooks/{{page}}-{{cell}}.ipynb"
    log: f"runs/phase1{APART}/logs/{{page}}-{{cell}}.log"
    params: words=lambda wildcards: words(look(wildcards.page, wildcards.cell))
    wildcard_constraints: page="evaluate|diagnose", cell="|".join(PHASE1)
    threads: 1
    resources: mem_mb=4000, runtime=60
    shell: "papermill {input[0]} {output} {params.words} --no-progress-bar > {log} 2>&1"


def judged(jobs):
    "What the runs of some jobs were judged to be, one row per method, seed and environment, without numbers where a run diverged, the baselines once; and the runs."
    import pandas as pd
    from hirm.config import as_config, judged_environments
    from hirm.training import records
    frames, runs = [], []
    for name, asked in jobs.items():
        arm = name.rsplit("-s", 1)[0].split("-")[-1]
        for run in records(as_config(asked)):
            runs.append(run)
            told = dict(policy=run.config["policy"], realized_vol=run.config["realized_vol"], penalty_weight=run.config["penalty_weight"], job=name)
            who = asked["method"] if arm == "weights" else arm
            if run.diverged is not None:
                where = [dict(environment=name, role=world.role) for name, world in judged_environments(as_config(asked)).items()]
                frames.append(pd.DataFrame(where).assign(method=who, seed=run.config["seed"], selection=f"diverged at update {run.diverged}", **told))
                continue
            table = pd.read_csv(run.artifacts / "metrics.csv").drop(columns=["member", "probe", "turnover_to_erm", "sharpe", "sortino", "cvar99_se"])
            own = table["method"] == asked["method"]
            frames.append(table[own].assign(method=who, **told))
            frames.append(table[~own & table["method"].isin(["no_hedge", "delta", "whalley_wilmott"])].assign(seed=0, **told | dict(job="baseline", penalty_weight=float("nan"))))
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[(frame["method"] == "oracle") & frame["cvar95"].notna(), "selection"] = "oracle"
    once = ["job", "policy", "realized_vol", "method", "seed", "penalty_weight", "environment"]
    return frame.drop_duplicates(once).round(8), runs


rule learning_results:
    input: RAN["learning"]
    output: results("learning")
    run:
        import pandas as pd
        from hirm.config import as_config
        from hirm.runs import publish
        from hirm.training import curves, records
        metrics, runs = judged(LEARNING)
        shape = ["n_paths", "learning_rate", "cpu_seconds_per_update"]
        logs = [log[log["role"] == "validate"].assign(job=name, **{k: {**run.config, **run.metadata}[k] for k in shape})
                for name, asked in LEARNING.items() for run in records(as_config(asked)) if run.diverged is None for log in [curves([run])]]
        publish(f"book/results/learning{APART}", {"metrics": metrics, "validation": pd.concat(logs).round(8)}, runs, f"snakemake -c2 learning{f' --config scale={SCALE}' if APART else ''}")


rule phase1_results:
    input: RAN["phase1"]
    output: results("phase1")
    run:
        import pandas as pd
        from hirm.runs import publish, published

        def seen(page, table, *cells):
            found = {cell: published(look(page, cell)["out"], table).rename(columns={"realized_vol": "shown_vol"}) for cell in cells}
            return pd.concat([frame.assign(**CELLS[list(PHASE1).index(cell)]) for cell, frame in found.items()]).round(8)

        frames, runs = zip(*map(judged, ({name: asked for jobs in PHASE1.values() for name, asked in jobs.items()}, CONTROLS, WEIGHTS)))
        metrics, controls, weights = frames
        controls.loc[controls["method"] == "erm_again", "seed"] -= 1000  # paired with the first arm as they come
        probes = seen("evaluate", "metrics", *PHASE1)
        calendar = seen("evaluate", "calendar", PRIMARY).query("probe == 'none'").groupby(["method", "environment", "date"], sort=False)["pnl"].mean().reset_index()
        publish(f"book/results/phase1{APART}", dict(
            metrics=metrics, controls=controls, weights=weights,
            probes=probes[probes["environment"] == CRITERIA.environment].drop(columns=["member", "cvar99_se", "sharpe", "sortino"]),
            tails=seen("evaluate", "tails", PRIMARY).query("environment == @CRITERIA.environment and probe == 'none'").drop(columns=["member", "role", "selection", "probe"]),
            calendar=calendar, environments=seen("diagnose", "environments", *PHASE1), stability=seen("diagnose", "stability", *PHASE1), sensitivity=seen("diagnose", "sensitivity", *PHASE1).query("environment in ['low', @CRITERIA.environment]")),
            sum(runs, []), " ".join(["snakemake -c2 phase1", *(["--config"] if config else []), *(f"{name}={value}" for name, value in config.items())]))


rule book:
    input: results("phase1"), pages=["book/phase1.ipynb", "book/learning.ipynb", "nbs/index.ipynb"]
    output: "book/_build/html/index.html"
    shell: "jupyter execute --inplace {input.pages} && for page in {input.pages}; do nbdev_clean --fname $page; done && python book/_ext/readme.py && jupyter-book build book -W --keep-going"
