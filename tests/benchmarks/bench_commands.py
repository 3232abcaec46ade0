"""How long the two commands of the README take once the packages are installed, by hand.

    python tests/benchmarks/bench_commands.py [train] [pytest]

Runs each as a reader types it, without its installation, in this environment and from the project's folder; the training into a folder of its own,
so that it is not skipped as done. Wall seconds and CPU seconds of all processes that the command starts. Results go to book/results/benchmarks_commands/.
"""
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from bench_training import save
from hirm.history import project
from hirm.runs import published

FOLDER = "benchmarks_commands"


def commands():
    "What follows the installation in the two lines of the README: papermill and pytest."
    lines = re.findall(r"^python3 -m venv .*$", (project() / "README.md").read_text(encoding="utf-8"), re.M)
    return {line.split(" && ")[-1].split()[0]: line.split(" && ")[-1] for line in lines}


def timed(command):
    "Run a command of this environment to its end; what it cost."
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    used = lambda: (lambda spent: spent.ru_utime + spent.ru_stime)(resource.getrusage(resource.RUSAGE_CHILDREN))
    before, began = used(), time.monotonic()
    if subprocess.run(command, shell=True, cwd=project(), env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL).returncode:
        raise SystemExit(f"{command} failed")
    return dict(wall_seconds=time.monotonic() - began, cpu_seconds=used() - before)


def main():
    asked = sys.argv[1:] or ["train", "pytest"]
    rows = {}
    if (project() / "book" / "results" / FOLDER / "commands.csv").exists():
        rows = published(f"book/results/{FOLDER}", "commands").set_index("command").T.to_dict()
    typed = commands()
    with TemporaryDirectory() as folder:
        if "train" in asked:
            rows[typed["papermill"]] = timed(f"{typed['papermill']} -p runs {folder}")
        if "pytest" in asked:
            rows[typed["pytest"]] = timed(typed["pytest"])
    frame = pd.DataFrame(rows).T.rename_axis("command").reset_index()
    print(frame.to_string(index=False, float_format="{:.4g}".format))
    save(frame, FOLDER, "commands", "python tests/benchmarks/bench_commands.py")


if __name__ == "__main__":
    main()
