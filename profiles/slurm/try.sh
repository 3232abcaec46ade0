#!/usr/bin/env bash
# Tries the profile on the SLURM at hand: a campaign at smoke scale in which a job is cancelled, a kernel killed, and Snakemake itself killed.
# Run it by hand from a clone of its own: `bash profiles/slurm/try.sh`. It ends in "held", or says what did not.
set -eu
campaign=${1:-learning}; asked=(--profile profiles/slurm "$campaign" --config scale=smoke "${@:2}")
runs=runs/${campaign}_smoke; log=.snakemake/tried.log; mkdir -p .snakemake; : > "$log"
say() { echo "$(date +%T) $*"; }
fail() { say "did not hold: $*"; tail -30 "$log"; exit 1; }
# Jobs of this clone alone: whatever else runs under the same name is left alone.
ours() { squeue --me --noheader --format='%i %T %Z' "$@" | awk -v here="$PWD" '{ id = $1; state = $2; sub(/^[^ ]+ [^ ]+ /, ""); if ($0 == here) print id, state }'; }
# The kernel of a job that trains, with the run that it writes: its holder file names the process.
writing() { grep -ls . "$runs"/.locks/*.json 2>/dev/null | while read -r holder; do
    pid=$(sed 's/.*"pid": \([0-9]*\).*/\1/' "$holder"); run=$(basename "$holder" .json)
    [ ! -e "$runs/$run/final_metrics.json" ] && [ -s "$runs/$run/metrics.jsonl" ] && kill -0 "$pid" 2>/dev/null && echo "$pid $run"; done || true; }
job_of() { tr '\0' '\n' < "/proc/$1/environ" | sed -n 's/^SLURM_JOB_ID=//p'; }
pick() { for _ in $(seq 3000); do set -- $(writing | head -1); [ $# -eq 2 ] && { echo "$@"; return; }; kill -0 "$snakemake" 2>/dev/null || return 1; sleep 0.2; done; return 1; }
hurt=()

snakemake "${asked[@]}" >> "$log" 2>&1 & snakemake=$!
found=$(pick) || fail "no training was seen"; set -- $found; job=$(job_of "$1"); hurt+=("$2")
scancel "$job"; say "scancel of job $job, while it wrote $2"
while kill -0 "$1" 2>/dev/null; do sleep 0.5; done

found=$(pick) || fail "no second training was seen"; set -- $found; hurt+=("$2")
kill -9 "$1"; say "kill -9 of a kernel, while it wrote $2"
sleep 5

found=$(pick) || fail "no third training was seen"; set -- $found; hurt+=("$2")
kill -9 "$snakemake"; wait "$snakemake" 2>/dev/null || true
say "kill -9 of snakemake with $(ours --states=RUNNING | wc -l) jobs alive, one of which wrote $2"
ours | cut -d" " -f1 | xargs -r scancel  # as CONTRIBUTING says: jobs that live on are cancelled first
while [ -n "$(ours)" ]; do sleep 1; done

snakemake "${asked[@]}" --unlock >> "$log" 2>&1
snakemake "${asked[@]}" >> "$log" 2>&1 || fail "the same command again"
say "the same command again came to its end"

# What was hurt is trained once more in one piece, elsewhere, and must come to the same bytes.
for run in $(printf '%s\n' "${hurt[@]}" | sort -u); do
    command=$(sed -n '1s/^# papermill nbs.train.ipynb -f config.yaml//p' "$runs/$run/config.yaml")
    eval "papermill nbs/train.ipynb .snakemake/tried.ipynb -f '$runs/$run/config.yaml' $command -p runs .snakemake/tried --no-progress-bar" >> "$log" 2>&1
    for file in metrics.jsonl final_metrics.json; do cmp "$runs/$run/$file" ".snakemake/tried/$run/$file" || fail "$run ended otherwise"; done
    say "$run is the same to the last byte as one that nobody hurt"
done
python -c "import sys; from pathlib import Path; from hirm.runs import Record
runs = [Record(path.parent) for path in Path(sys.argv[1]).glob('*/config.yaml')]
assert runs and all(run.done and run.verify() for run in runs); print(len(runs), 'runs verified')" "$PWD/$runs"
say held
