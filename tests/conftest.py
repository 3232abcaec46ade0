"""One thread, no display: the tests share two cores, and two threads on one job contend."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.update(MPLBACKEND="Agg", OMP_NUM_THREADS="1")

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
HANGS = 1800  # seconds after which a process hangs; none needs a tenth of it, nor does one on a machine that is ten times as slow


def wait_until(claim, what):
    "Wait for something that another process does; no longer than until it must be taken to hang."
    for _ in range(10 * HANGS):
        if claim(): return
        time.sleep(0.1)
    pytest.fail(f"waited {HANGS} s for {what}")


@pytest.fixture(scope="session")
def root():
    "The project's folder."
    return ROOT


@pytest.fixture(scope="session")
def tool():
    "Runs a command of this environment, in the project's folder unless told otherwise."
    def run(name, *words, cwd=ROOT, timeout=HANGS, **options):
        return subprocess.run([str(Path(sys.executable).with_name(name)), *words], cwd=cwd, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, **options)
    return run


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    "A copy of the project's sources, to be exported and cleaned without touching the originals."
    to = tmp_path_factory.mktemp("copied")
    for name in ("nbs", "hirm"): shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "README.md", "_quarto.yml"): shutil.copy(ROOT / name, to)
    return to


@pytest.fixture
def registries():
    "The registries as they are without anybody's parts, before and after."
    from hirm import parameters
    from hirm.config import REGISTRIES
    before = {kind: dict(registry) for kind, (registry, _) in REGISTRIES.items()}
    parameters._LOADED.clear()
    yield REGISTRIES
    parameters._LOADED.clear()
    for kind, (registry, _) in REGISTRIES.items():
        registry.clear()
        registry.update(before[kind])
