"""Many runs, each a plain papermill line.

    snakemake -c2 learning      the page that shows what is learnt, and how fast
    snakemake -c2 learning -n   what would be run

Interrupted, the same command goes on: papermill's job resumes from its last checkpoint, and a finished run is not run twice.
"""
from hirm.training import SCALES

ENVIRONMENTS = "low,medium"
SEEDS = int(config.get("seeds", 5))
SCALE = config.get("scale", "laptop")
SHAPE = SCALES[SCALE]
METHODS = ["erm", "erm_pool", "erm_reg", "groupdro", "wcvar", "vrex", "irm", "hirm", "hgca", "iga", "fishr", "term"]


def job(**asked):
    "Parameters of one training job: a batch of seeds that train side by side."
    return dict(environments=ENVIRONMENTS, n_seeds=SEEDS, scale=SCALE, runs="runs/learning") | asked


LEARNING = {method: job(method=method) for method in METHODS}
LEARNING |= {
    "mlp": job(method="erm", policy="mlp"),
    "blind": job(method="erm", realized_vol=False),
    "oracle": job(method="erm", environments="low,medium,high,crisis"),
    "longer": job(method="erm", **{phase: 4 * SHAPE[phase] for phase in ("updates", "pretrain", "ramp")}),
}


def spent(n_paths, rate):
    "The same number of paths, in batches of another size, at another rate."
    updates = SHAPE["n_paths"] * SHAPE["updates"] // n_paths
    return job(method="erm", n_seeds=2, n_paths=n_paths, learning_rate=rate, updates=updates, pretrain=0, ramp=0, validate_every=max(1, updates // 12),
               n_evaluation=SHAPE["n_evaluation"] // 5)


LEARNING |= {f"{n_paths}x{rate}": spent(n_paths, rate) for n_paths in (SHAPE["n_paths"] // 4, SHAPE["n_paths"], 4 * SHAPE["n_paths"])
             for rate in (0.001, 0.003, 0.01)}


def words(asked):
    "Parameters as papermill reads them."
    return " ".join(f"-p {name} {value}" for name, value in asked.items())


rule learning:
    input: "book/results/learning/provenance.json"


rule train:
    input: "nbs/train.ipynb"
    output: "runs/learning/notebooks/{job}.ipynb"
    log: "runs/learning/logs/{job}.log"
    params: words=lambda wildcards: words(LEARNING[wildcards.job])
    threads: 1
    resources: mem_mb=4000, runtime=60
    shell: "papermill {input} {output} {params.words} --no-progress-bar > {log} 2>&1"


rule learning_results:
    input: expand("runs/learning/notebooks/{job}.ipynb", job=LEARNING)
    output: "book/results/learning/provenance.json"
    run:
        import pandas as pd
        from hirm.runs import publish
        from hirm.training import Config, curves, records
        found, logs, all_runs = [], [], []
        for name, asked in LEARNING.items():
            config = Config(**asked)
            for run in records(config):
                metrics = pd.read_csv(run.artifacts / "metrics.csv")
                mine = metrics["method"].isin([config.method, "delta", "whalley_wilmott", "no_hedge"])
                found.append(metrics[mine].assign(job=name))
                log = curves([run])
                logs.append(log[log["role"] == "validate"].assign(job=name, n_paths=config.n_paths, learning_rate=config.learning_rate, cpu_seconds_per_update=run.metadata["cpu_seconds_per_update"]))
                all_runs.append(run)
        publish("book/results/learning", {"metrics": pd.concat(found).drop_duplicates(["job", "method", "seed", "environment"]), "validation": pd.concat(logs)},
                all_runs, "snakemake -c2 learning")
