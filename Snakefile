"""Many runs, each a plain papermill line. Which they are, and what is gathered from them, stands in hirm.campaign and hirm.gathering.

    snakemake -c2 learning      the page that shows what is learnt, and how fast
    snakemake -c2 phase1        the runs of Phase 1, their tables, and the book
    snakemake -c2 phase1 -n     what would be run
    snakemake -c2 phase1 --config seeds=11      one seed more in every secondary cell, and nothing else
    snakemake -c2 phase1 --config cells=band-seeing primary_seeds=10 control_seeds=5      an interim look at the primary cell, published apart
    snakemake -c2 phase1 --config cells=band-seeing,band-blind      half of the cells, the primary one among them
    snakemake -c2 phase1 --config scale=paper cells=band-seeing seeds=5 primary_seeds=5      the protocol of record, kept apart
    snakemake -c2 phase1 --config scale=paper cells=band-seeing seeds=5 primary_seeds=5 methods=erm,vrex,groupdro      some of its methods, published apart
    snakemake -c2 tuned         IRM and V-REx at the weights that validation would choose, on other seeds
    snakemake -c2 phase2        the planted case: could invariance have been seen?
    snakemake -c2 phase2_doses  a portion of what stands beside its primary cell, published apart; so phase2_schedules, phase2_levels, …
    snakemake -c2 ladder        other differences between the training environments; ladder_varied, ladder_jumps, … a rung at a time
    snakemake -c2 cures         what a desk may do in place of IRM
    snakemake -c2 walk_forward  trained up to a year, judged on the five that follow, five times
    snakemake -c2 limits        Phase 1's answer at other strikes and lives
    snakemake -c2 swaps         a variance swap beside the spot
    snakemake -c2 main_job      the first command of the README, with other seeds

Interrupted, the same command goes on: papermill's job resumes from its last checkpoint, and a finished run is not run twice.
On a cluster the same file runs through one of Snakemake's executors, see CONTRIBUTING.
"""
import re
import shlex
from pathlib import Path

from hirm.campaign import as_plan, words
from hirm.gathering import CAMPAIGNS, gather, jobs, refuse_unread
from hirm.runs import publish

PLAN = as_plan(config)
JOBS = {campaign: {job.name: job for job in jobs(campaign, PLAN)} for campaign in CAMPAIGNS}
LOOKS = {campaign: {look.name: look for look in CAMPAIGNS[campaign].looks(PLAN)} for campaign in CAMPAIGNS}
PUBLISHED = {PLAN.published(campaign): campaign for campaign in CAMPAIGNS}  # by folder of the results
MINUTES = 300 if PLAN.scale == "paper" else 60  # that a scheduler allows a job
STARTED = {campaign: [job.name for job in sorted(rows.values(), key=lambda job: job.order)] for campaign, rows in JOBS.items()}

# One torch thread per process. Freed memory is kept, not handed back and forth at every update.
shell.prefix("export OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=33554432; ")


def notebook(campaign, name):
    return f"runs/{PLAN.apart(campaign)}/notebooks/{name}.ipynb"


def notebooks(campaign):
    "The executed notebooks of a campaign; a portion's are those of the whole, so that both may be asked for at once."
    return [notebook(row.campaign, row.name) for row in (*JOBS[campaign].values(), *LOOKS[campaign].values())]


def results(campaign):
    "The word that results are made. Snakemake removes what a rule makes before it begins: what is in print is not that, and stays until another takes its place."
    folder = Path("book/results") / PLAN.published(campaign)
    if not (folder / "provenance.json").exists():
        (folder / ".made").unlink(missing_ok=True)
    return str(folder / ".made")


def book(campaign):
    "Made anew from results of the usual scale and of every method, where pages of it show them."
    return f"book/_build/made_of_{campaign}" if CAMPAIGNS[campaign].pages and PLAN.published(campaign) == campaign else []


def asked(campaign):
    "Nothing; refuses words of --config that a campaign does not read, once it is asked for."
    def refused(wildcards):
        refuse_unread(campaign, config)
        return []
    return refused


def job_of(wildcards):
    refuse_unread(wildcards.campaign, config)
    return JOBS[wildcards.campaign][wildcards.job]


def look_of(wildcards):
    refuse_unread(wildcards.campaign, config)
    return LOOKS[wildcards.campaign][wildcards.look]


def choice(rows):
    return "|".join(re.escape(name) for names in rows.values() for name in names)


wildcard_constraints:
    campaign="|".join(CAMPAIGNS),
    job=choice(JOBS),
    look=choice(LOOKS),
    folder="|".join(map(re.escape, PUBLISHED)),


for campaign in CAMPAIGNS:
    rule:
        name: campaign
        input: asked(campaign), notebooks(campaign), results(campaign), book(campaign)  # the runs by name: results that came with the code do not stand in for them


# A job whose members all diverged is done: their records say so, and papermill's error is let pass.
rule train:
    input: "nbs/train.ipynb"
    output: notebook("{campaign}", "{job}")
    log: f"runs/{PLAN.apart('{campaign}')}/logs/{{job}}.log"
    params: asked=lambda wildcards: words(job_of(wildcards).parameters)
    priority: lambda wildcards: -STARTED[wildcards.campaign].index(wildcards.job)
    threads: 1
    resources: mem_mb=4000, runtime=MINUTES
    shell: "papermill {input:q} {output:q} -y {params.asked:q} --no-progress-bar > {log:q} 2>&1"
           " || python -c 'import sys; from hirm.gathering import diverged; sys.exit(not diverged(sys.argv[1]))'"
           " {params.asked:q} >> {log:q} 2>&1"


rule look:
    input: lambda wildcards: f"nbs/{look_of(wildcards).page}.ipynb",
           lambda wildcards: [notebook(wildcards.campaign, name) for name in look_of(wildcards).after]
    output: notebook("{campaign}", "{look}")
    log: f"runs/{PLAN.apart('{campaign}')}/logs/{{look}}.log"
    params: asked=lambda wildcards: words(look_of(wildcards).parameters)
    threads: 1
    resources: mem_mb=4000, runtime=MINUTES
    shell: "papermill {input[0]:q} {output:q} -y {params.asked:q} --no-progress-bar > {log:q} 2>&1"


rule results:
    input: lambda wildcards: notebooks(PUBLISHED[wildcards.folder])
    output: touch("book/results/{folder}/.made")
    run:
        said = [f"{name}={value}" for name, value in config.items()]
        campaign = PUBLISHED[wildcards.folder]
        command = shlex.join(["snakemake", "-c2", campaign, *(["--config"] if said else []), *said])
        publish(f"book/results/{wildcards.folder}", *gather(campaign, PLAN), command)


rule book:
    input: lambda wildcards: results(wildcards.campaign), pages=lambda wildcards: CAMPAIGNS[wildcards.campaign].pages
    output: touch("book/_build/made_of_{campaign}")
    shell: "jupyter execute --inplace {input.pages:q} && for page in {input.pages:q}; do nbdev_clean --fname $page; done"
           " && python book/_ext/readme.py && jupyter-book build book -W --keep-going"
