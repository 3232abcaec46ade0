"""Where the time of a campaign goes, read from its executed notebooks: by hand, after `snakemake -c2 NAME`.

    python tests/benchmarks/bench_campaign.py runs/ladder runs/limits …

papermill writes into every notebook how long each cell took. Cells are filed under what they do by what they call; what lies between the cells and the
whole is the start and the end of a process. Results go to book/results/benchmarks_campaign/.
"""
import sys
from pathlib import Path

import nbformat
import pandas as pd

from bench_training import save

PARTS = {"train(": "training", "choose_hedger(": "judging", ".judge(": "judging", "record_judgement(": "records", "import torch": "imports", "fig-alt": "figures"}


def part(source):
    "What a cell does."
    return next((name for call, name in PARTS.items() if call in source), "rest")


def times(folder):
    "One row: jobs and seconds by part, of the notebooks of one campaign that reached their end."
    row = {"campaign": folder.name, "jobs": 0, "hedgers": 0}
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        whole = notebook.metadata["papermill"]
        if whole.get("duration") is None or whole.get("exception"):
            continue
        row["jobs"] += 1
        row["hedgers"] += whole["parameters"].get("n_seeds", 0)  # a look trains nobody
        inside = 0.0
        for cell in notebook.cells:
            seconds = cell.metadata.get("papermill", {}).get("duration") or 0.0
            inside += seconds
            row[part(cell.source)] = row.get(part(cell.source), 0.0) + seconds
        row["process"] = row.get("process", 0.0) + whole["duration"] - inside
    return row


if __name__ == "__main__":
    frame = pd.DataFrame([times(Path(folder)) for folder in sys.argv[1:]]).fillna(0.0)
    print(frame.round(0).to_string())
    save(frame, "benchmarks_campaign", "time", "python tests/benchmarks/bench_campaign.py " + " ".join(f"runs/{name}" for name in frame["campaign"]))
