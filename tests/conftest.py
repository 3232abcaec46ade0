"""One thread, no display: the tests share two cores, and two threads on one job contend."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.update(MPLBACKEND="Agg", OMP_NUM_THREADS="1")

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root():
    "The project's folder."
    return ROOT


@pytest.fixture(scope="session")
def tool():
    "Runs a command of this environment, in the project's folder unless told otherwise."
    def run(name, *words, cwd=ROOT, **options):
        return subprocess.run([str(Path(sys.executable).with_name(name)), *words], cwd=cwd, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    return run


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    "A copy of the project's sources, to be exported and cleaned without touching the originals."
    to = tmp_path_factory.mktemp("copied")
    for name in ("nbs", "hirm"): shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "README.md", "_quarto.yml"): shutil.copy(ROOT / name, to)
    return to
