"""`papermill nbs/train.ipynb -p method irm`, exactly so, from wherever and through whatever."""
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest

from conftest import HANGS, ROOT
from hirm.launch import VALUES, choose_engine, fill_output, given_parameters, output_path, read_command

PARAMETERS = "method: str = 'erm'  # objective\nseed: int = 0  # member\nruns: str = 'runs'  # folder\nweight: float = -1.0  # penalty"
PAPERMILL = str(Path(sys.executable).with_name("papermill"))
LINE = ["-p", "method", "irm"]


@pytest.fixture
def project(tmp_path):
    "A project of one notebook."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = hirm\nnbs_path = nbs\ntitle = 100% ours\n")
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("print(method, seed)")]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "nbs" / "train.ipynb")
    return tmp_path


def terminal(command, cwd):
    "Runs `command` with a terminal on all three ends."
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    said = b""
    while select.select([ours], [], [], HANGS)[0]:
        try: piece = os.read(ours, 4096)
        except OSError: break  # the other end has closed
        if not piece: break
        said += piece
    os.close(ours)
    return process.wait(HANGS), said.decode()


def pipe(command, cwd):
    "Runs `command` with pipes on all three ends."
    done = subprocess.run(command, cwd=cwd, input="", capture_output=True, text=True, timeout=HANGS)
    return done.returncode, done.stdout + done.stderr


def told(path):
    "What the executed notebook printed."
    return nbformat.read(path, 4).cells[-1].outputs[0].text.strip()


@pytest.mark.parametrize("through, command, inside, output", [
    (terminal, [PAPERMILL, "nbs/train.ipynb", *LINE], "", "runs/notebooks/train-irm-s0.ipynb"),
    (pipe, [PAPERMILL, "nbs/train.ipynb", *LINE], "", "runs/notebooks/train-irm-s0.ipynb"),
    (terminal, [PAPERMILL, "train.ipynb", *LINE], "nbs", "runs/notebooks/train-irm-s0.ipynb"),
    (pipe, [sys.executable, "-m", "papermill", *LINE, "nbs/train.ipynb"], "", "runs/notebooks/train-irm-s0.ipynb"),
    (terminal, [PAPERMILL, "nbs/train.ipynb", "mine.ipynb", *LINE], "", "mine.ipynb"),
    (pipe, [PAPERMILL, "nbs/train.ipynb", "mine.ipynb", *LINE], "", "mine.ipynb"),
], ids=["terminal", "pipe", "inside nbs", "python -m", "explicit, terminal", "explicit, pipe"])
def test_the_line_works(project, through, command, inside, output):
    before = (project / "nbs" / "train.ipynb").read_bytes()
    code, said = through(command, project / inside)
    assert code == 0, said
    assert told(project / output) == "irm 0"
    assert (project / "nbs" / "train.ipynb").read_bytes() == before
    assert [path.name for path in project.rglob("*.ipynb") if path.name != "train.ipynb"] == [Path(output).name]


BUSY = """
import pathlib, time
pathlib.Path("busy").touch()
time.sleep(3600)
"""


def interrupt(project, ready):
    "papermill on a terminal, and Ctrl-C there as soon as a claim holds: exit status, and what was said from then on."
    ours, theirs = pty.openpty()
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background of a script is born deaf to Ctrl-C
    process = subprocess.Popen([PAPERMILL, "nbs/train.ipynb"], cwd=project, stdin=theirs, stdout=theirs, stderr=theirs,
                               start_new_session=True, close_fds=True, preexec_fn=heard)
    os.close(theirs)
    said, asked, give_up = b"", False, time.monotonic() + HANGS
    while True:
        if time.monotonic() > give_up:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"expected an end within {HANGS} s of Ctrl-C, got none; said so far: {said.decode()}")
        if select.select([ours], [], [], 0.2)[0]:
            try: piece = os.read(ours, 4096)
            except OSError: break  # the other end has closed
            if not piece: break
            said += piece
        if not asked and ready():
            os.killpg(process.pid, signal.SIGINT)
            said, asked = b"", True
    os.close(ours)
    return process.wait(HANGS), said.decode()


def test_an_interrupted_command_says_in_one_line_how_to_go_on(project):
    notebook = nbformat.read(project / "nbs" / "train.ipynb", 4)
    notebook.cells[-1].source = BUSY
    nbformat.write(notebook, project / "nbs" / "train.ipynb")
    code, said = interrupt(project, (project / "busy").exists)
    lines = [line for line in said.splitlines() if line.strip() and "Executing" not in line]
    assert code == 130 and lines == ["Interrupted. Give the same command again, and it goes on from the last state that was kept."]


def test_a_stored_traceback_names_no_place_of_this_machine(project):
    notebook = nbformat.read(project / "nbs" / "train.ipynb", 4)
    notebook.cells[-1].source = "from hirm.config import Config\nimport pandas\nConfig(method='imr')"
    nbformat.write(notebook, project / "nbs" / "train.ipynb")
    code, said = pipe([PAPERMILL, "nbs/train.ipynb"], project)
    stored = next(project.glob("runs/notebooks/*.ipynb")).read_text()
    assert code == 1 and "did you mean 'irm'" in said and "hirm/config.py" in stored
    for text in (stored, said.partition("Traceback")[2]):
        assert "hirm/config.py" in text and str(ROOT) + "/hirm" not in text, text


@pytest.mark.parametrize("ends", ["", "\nConfig(method='imr')"])
def test_what_a_notebook_is_warned_of_is_said_on_the_terminal_and_names_no_place(project, ends):
    notebook = nbformat.read(project / "nbs" / "train.ipynb", 4)
    warns = "for _ in 'ab': warnings.warn_explicit('closes leap', UserWarning, config.__file__, 7)"
    notebook.cells[-1].source = f"import warnings\nfrom hirm import config\nfrom hirm.config import Config\n{warns}" + ends
    nbformat.write(notebook, project / "nbs" / "train.ipynb")
    code, said = pipe([PAPERMILL, "nbs/train.ipynb"], project)
    stored = next(project.glob("runs/notebooks/*.ipynb")).read_text()
    assert code == bool(ends) and said.count("\nWarning: closes leap\n") == 1
    assert "hirm/config.py:7: UserWarning: closes leap" in stored and str(ROOT) + "/hirm" not in stored


def test_another_engine_that_is_named_is_left(project):
    words = [str(project / "nbs" / "train.ipynb"), *LINE]
    assert choose_engine(words) == ["--engine", "hirm", *words] and choose_engine([*words, "--engine", "nbclient"]) == [*words, "--engine", "nbclient"]
    assert choose_engine([]) == [] and choose_engine(["none.ipynb"]) == ["none.ipynb"]


def test_unwritable_existing_folder_is_refused(project, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *words: False)  # root may write anywhere
    with pytest.raises(SystemExit, match="Permission denied"): fill_output([str(project / "nbs" / "train.ipynb")])


@pytest.mark.parametrize("through", [terminal, pipe])
def test_the_input_is_never_overwritten(project, through):
    before = (project / "nbs" / "train.ipynb").read_bytes()
    code, said = through([PAPERMILL, "nbs/train.ipynb", "nbs/../nbs/train.ipynb"], project)
    assert code != 0 and "expected an output other than the input" in said
    assert (project / "nbs" / "train.ipynb").read_bytes() == before


@pytest.mark.parametrize("output", ["nbs/evaluate.ipynb", "nbs/new.ipynb", "book/page.ipynb"])
def test_no_notebook_of_the_project_is_overwritten_or_joined(project, output, monkeypatch):
    """Two notebooks, typed in the hope that both are run."""
    (project / "book").mkdir()
    for name in ("nbs/evaluate.ipynb", "book/page.ipynb"): (project / name).write_text("its own")
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit, match=f"expected an output outside the project's own notebooks, got {output}; papermill runs one notebook a command"):
        fill_output(["nbs/train.ipynb", output])
    assert fill_output(["nbs/train.ipynb", "book/results/new.ipynb"])[1] == "book/results/new.ipynb"


@pytest.mark.parametrize("words", [["-f"], ["-f", "missing.yaml"], ["-y", "[1,2]"], ["-y", "{a: "], ["-b", "x"], ["-f", "s3://bucket/file.yaml"]])
def test_what_papermill_cannot_read_papermill_refuses(project, words, monkeypatch):
    monkeypatch.chdir(project)
    assert fill_output(["nbs/train.ipynb", *words]) == ["nbs/train.ipynb", *words]


@pytest.mark.parametrize("words, folder", [
    (["-y", "{runs: '2026'}"], "2026"), (["-y", "{runs: 2026-01-01}"], "2026-01-01"), (["-p", "runs", " out "], "out"), (["-p", "runs", "a", "-r", "runs", "7"], "7")])
def test_a_folder_is_the_one_that_its_run_will_have(project, words, folder, monkeypatch):
    monkeypatch.chdir(project)
    assert fill_output(["nbs/train.ipynb", *words])[1].startswith(f"{folder}/notebooks/")


def test_unwritable_runs_folder_is_refused_before_any_work(project):
    (project / "file").touch()
    code, said = pipe([PAPERMILL, "nbs/train.ipynb", "-p", "runs", "file"], project)
    assert code != 0 and "expected a runs folder that can be written, got file/notebooks" in said and "Traceback" not in said


@pytest.mark.parametrize("runs, said", [
    ("", "must be text that is not empty"), (".", "holds the whole project"), ("nbs/..", "holds the whole project"), ("/", "holds the whole project"),
    ("nbs", "where the sources of the project are"), ("book/results/phase1", "where the sources of the project are"), ("~/runs", "is read by a shell only"),
    ("done/erm-s0-00000000", "where the run erm-s0-00000000 is"), ("done/erm-s0-00000000/artifacts", "where the run erm-s0-00000000 is")])
def test_no_notebook_is_put_where_no_run_would_be_kept(project, runs, said, monkeypatch):
    (project / "done" / "erm-s0-00000000").mkdir(parents=True)
    for name in ("config.yaml", "metadata.json"): (project / "done" / "erm-s0-00000000" / name).touch()
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    with pytest.raises(SystemExit, match=f"papermill: runs .*{said}"):
        fill_output(["nbs/train.ipynb", "-p", "runs", runs])
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("typed", ["2026", "1e3", "None", "True", "nan", "-5"])
def test_a_folder_that_papermill_takes_for_a_number_is_refused_as_its_run_would_be(project, typed, monkeypatch):
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    with pytest.raises(SystemExit, match="papermill: runs must be text"): fill_output(["nbs/train.ipynb", "-p", "runs", typed])
    assert sorted(project.rglob("*")) == before
    assert fill_output(["nbs/train.ipynb", "-r", "runs", typed])[1].startswith(f"{typed}/notebooks/")


def test_help_still_helps(project):
    code, said = pipe([PAPERMILL, "--help-notebook", "nbs/train.ipynb"], project)
    assert code == 0 and "objective" in said and not (project / "runs").exists()


def test_other_projects_are_left_alone(project):
    for change in (lambda: (project / "settings.ini").write_text("[DEFAULT]\nlib_name = other\nnbs_path = nbs\n"), (project / "settings.ini").unlink):
        change()
        words = [str(project / "nbs" / "train.ipynb"), *LINE]
        assert fill_output(words) == words


def test_name_of_the_output(project):
    notebook = project / "nbs" / "train.ipynb"
    name = lambda **given: output_path(notebook, given).relative_to(project).as_posix()
    assert name() == name(method="erm", seed="0", weight="-1.0") == "runs/notebooks/train-erm-s0.ipynb"
    assert name(weight="1e-3", history="../my data.csv") == "runs/notebooks/train-erm-s0-history=.._my_data.csv-weight=1e-3-f49f3dd9.ipynb"
    assert name(environments="low,medium") == "runs/notebooks/train-erm-s0-environments=low_medium.ipynb"
    assert len({name(history=path) for path in ("a/b.csv", "a_b.csv", "a b.csv")}) == 3
    assert len(Path(name(history="価" * 120 + ".csv")).name.encode()) < 200
    assert name(runs="elsewhere/x") == "elsewhere/x/notebooks/train-erm-s0.ipynb"
    long = [name(history=letter * 300) for letter in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 200
    shutil.copy(notebook, plain := project / "nbs" / "look.ipynb")
    plain.write_text(plain.read_text().replace("method", "what").replace("seed", "which"))
    assert output_path(plain, {}).name == "look.ipynb"


def test_parameters_as_papermill_takes_them(project):
    (project / "file.yaml").write_text("method: groupdro\nseed: 5\n")
    words = f"nbs/train.ipynb -f {project / 'file.yaml'} -pseed 7 --kernel=python3 -k python3 --no-progress-bar -r weight 1e-3 -- -out.ipynb".split()
    plain, options = read_command(words)
    assert [words[place] for place in plain] == ["nbs/train.ipynb", "-out.ipynb"]
    assert given_parameters(options) == {"method": "groupdro", "seed": "7", "weight": "1e-3"}
    assert given_parameters([("-b", "bWV0aG9kOiB2cmV4")]) == {"method": "vrex"}


def test_kinds_of_parameters_win_in_papermills_order_however_they_are_typed(project):
    (project / "file.yaml").write_text("seed: 2\n")
    typed = [("-r", "method", "irm"), ("-p", "method", "erm"), ("-y", "{seed: 1, method: vrex}"), ("-f", str(project / "file.yaml")), ("-b", "c2VlZDogMw==")]
    for options in (typed, typed[::-1]):
        assert given_parameters(options) == {"method": "irm", "seed": 1}
    assert given_parameters([("-p", "seed", "1"), ("-p", "seed", "2")]) == {"seed": "2"}  # of one kind the later


def test_options_are_those_of_papermill():
    from papermill.cli import papermill
    takes = {name: option.nargs for option in papermill.params if option.param_type_name == "option" and not option.is_flag
             for name in (*option.opts, *option.secondary_opts)}
    assert VALUES == takes


def test_importing_does_nothing():
    code = "import sys; sys.argv = ['papermill', 'nbs/train.ipynb']; import hirm.launch; print(sys.argv[1:], 'papermill' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS)
    assert done.stdout.strip() == "['nbs/train.ipynb'] False False", done.stderr
    assert fill_output(["-"]) == ["-"] and fill_output([]) == []


def test_the_module_offers_an_engine_and_nothing_else(monkeypatch):
    import hirm.launch
    from papermill.engines import NBClientEngine
    monkeypatch.setattr(sys, "argv", ["pytest", "nbs/train.ipynb"])
    monkeypatch.chdir(ROOT)
    assert issubclass(hirm.launch.engine, NBClientEngine) and sys.argv == ["pytest", "nbs/train.ipynb"]
    with pytest.raises(AttributeError, match="no attribute 'motor'"): hirm.launch.motor
