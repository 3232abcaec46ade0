"""The way to a cluster: what the profiles name is there, and a job submitted to this machine is followed to its end."""
import os
import re
import signal
import subprocess
import tomllib

import pytest
import yaml

from conftest import HANGS, ROOT, wait_until

PROFILES = {path.parent.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "profiles").glob("*/config.yaml"))}
SCRIPTS = ROOT / "profiles" / "submit"


def test_every_executor_and_script_that_a_profile_names_is_there():
    extra = " ".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"])
    assert set(PROFILES) == {"default", "slurm", "kubernetes", "submit"} and PROFILES["default"]["rerun-incomplete"]
    for profile in (profile for name, profile in PROFILES.items() if name != "default"):
        assert f"snakemake-executor-plugin-{profile['executor']}>" in extra
        if "default-storage-provider" in profile: assert f"snakemake-storage-plugin-{profile['default-storage-provider']}>" in extra
        for command in (value for key, value in profile.items() if key.endswith("-cmd")): assert (ROOT / command.split()[-1]).is_file()


def test_slurm_is_asked_in_the_words_that_it_answers_without_accounting():
    profile = PROFILES["slurm"]
    assert profile["slurm-status-command"] == "squeue" and profile["slurm-init-seconds-before-status-checks"] <= 10 and profile["retries"] >= 2
    pytest.importorskip("snakemake_executor_plugin_slurm")
    from snakemake_executor_plugin_slurm import ExecutorSettings
    options = {f"slurm-{name.replace('_', '-')}" for name in ExecutorSettings.__dataclass_fields__}
    assert {name for name in profile if name.startswith("slurm-")} <= options


def test_a_rule_that_runs_an_experiment_says_what_it_needs():
    rules = re.split(r"^rule ", (ROOT / "Snakefile").read_text(), flags=re.M)[1:]
    papermill = [rule for rule in rules if 'shell: "papermill' in rule]
    assert len(papermill) >= 2
    for rule in papermill: assert re.search(r"threads: \d+\s+resources: mem_mb=\d+, runtime=MINUTES", rule) and "log:" in rule, rule
    assert re.search(r'^MINUTES = 300 if PLAN.scale == "paper" else 60\b', (ROOT / "Snakefile").read_text(), flags=re.M)


def test_what_comes_from_outside_reaches_the_shell_quoted():
    shells = re.findall(r"^    shell: (.+?)(?=^\S|^$|\Z)", (ROOT / "Snakefile").read_text(), flags=re.M | re.S)
    placeholders = [found for shell in shells for found in re.findall(r"\{([\w.\[\]]+)(:q)?\}", shell)]
    assert len(placeholders) > 10 and all(quoted for _, quoted in placeholders), placeholders


@pytest.mark.parametrize("last, end", [("true", "success"), ("exit 3", "failed"), ("exec sleep 3600", "killed")])
def test_a_submitted_job_is_followed_to_its_end(tmp_path, last, end):
    (tmp_path / "job.sh").write_text(f"echo made\necho $$ > own\n{last}\n")
    def answer(script, word): return subprocess.run(["sh", SCRIPTS / script, word], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=HANGS).stdout.strip()
    job = answer("start.sh", "job.sh")
    wait_until(lambda: (tmp_path / "own").exists() and (tmp_path / "own").read_text().strip(), "the job to start")
    if end == "killed":  # with what it started, and no time to write a status
        assert answer("status.sh", job) == "running"
        for pid in (job, (tmp_path / "own").read_text()): os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: answer("status.sh", job) != "running", "the job to end")
    assert answer("status.sh", job) == end.replace("killed", "failed")
    assert (tmp_path / ".snakemake" / "submitted" / f"{job}.log").read_text() == "made\n"


@pytest.mark.parametrize("profile", ["slurm", "submit"])
def test_snakemake_reads_the_profile(tool, profile):
    for package in ("snakemake", "snakemake_executor_plugin_slurm", "snakemake_executor_plugin_cluster_generic"): pytest.importorskip(package)
    words = ("-n", "--forceall", "--nolock", "runs/learning_smoke/notebooks/term.ipynb", "--config", "scale=smoke")
    done = tool("snakemake", "--profile", f"profiles/{profile}", *words)
    assert done.returncode == 0 and "mem_mb=4000" in done.stdout and "runtime=60" in done.stdout, done.stdout[-3000:]
