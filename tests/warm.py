"""A process that has imported everything and forks for each command, so that a campaign of many notebooks is tested in a minute.

    python tests/warm.py SOCKET      serves until it is killed, in the project that is its working directory

`ask` has it run a command line: Snakemake, or papermill with its cells run in the fork in place of a kernel; all else of them is as installed.
PLANTED, an environment variable, holds what is to befall a job: {"kill": job} ends Snakemake and all below it by SIGKILL when the job's first member has kept a state, once;
{"diverge": {job: seeds}} gives these members a weight that is not a number, at the sixth update.
"""
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path


def ask(path, argv):
    "Have a command run with this process's files, folder and environment; its exit status."
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        asked = json.dumps(dict(argv=argv, cwd=os.getcwd(), env=dict(os.environ), group=os.getpgid(0))).encode()
        socket.send_fds(line, [len(asked).to_bytes(8, "big")], [0, 1, 2])
        line.sendall(asked)
        status = line.recv(1)
    return status[0] if status else 128 + signal.SIGKILL


def serve(path):
    "Fork for each command."
    parent = os.getppid()
    preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a child: it answers for itself
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        door.settimeout(5)
        while os.getppid() == parent:  # it does not outlive the tests
            try:
                line, _ = door.accept()
            except TimeoutError:
                continue
            line.setblocking(True)
            if os.fork() == 0:
                door.close()
                become(line)
            line.close()


def become(line):
    "Run what is asked, and send its exit status."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(line, 8, 3)
    asked = json.loads(line.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
    for own, given in enumerate(files):
        os.dup2(given, own)
    program, *words = asked["argv"]
    os.setpgid(0, 0 if program == "snakemake" else asked["group"])  # a notebook falls with the Snakemake that started it
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    status = 1
    try:
        status = {"snakemake": snakemake, "papermill": papermill}[program](words) or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    line.send(bytes([status]))
    os._exit(status)


def snakemake(words):
    "The command of that name; its own Python runs in threads, not in another Snakemake."
    from snakemake.cli import main
    sys.argv = ["snakemake", *words]
    main(["--force-use-threads", *words])


def papermill(words):
    "The command of that name, after planting what is to befall this job."
    from papermill.cli import papermill
    planted, job = json.loads(os.environ.get("PLANTED", "{}")), Path(words[1]).stem
    if planted.get("kill") == job:
        kill_once(Path(words[1]).with_suffix(".killed"))
    if seeds := planted.get("diverge", {}).get(job):
        diverge(seeds)
    papermill([*words, "--engine", "here"])


def kill_once(mark):
    "Kill Snakemake, its shells and this process when the first state is kept."
    from hirm.runs import Run
    keep = Run.save_state

    def keep_and_die(run, *state, **facts):
        keep(run, *state, **facts)
        if not mark.exists():
            mark.touch()
            os.killpg(0, signal.SIGKILL)
    Run.save_state = keep_and_die


def diverge(seeds):
    "Spoil a weight of some members."
    from hirm.training import Learner
    update = Learner.update

    def update_spoilt(learner, step, episode):
        for member, seed in enumerate(learner.seeds):
            if step == 5 and seed in seeds:
                next(learner.policy.parameters()).data[member].fill_(float("nan"))
        return update(learner, step, episode)
    Learner.update = update_spoilt


def preload():
    "Import all that is needed, and let a first training fill what is remembered."
    import hirm.gathering
    import hirm.diagnostics
    import snakemake.cli
    from papermill.engines import papermill_engines
    from papermill.execute import execute_notebook
    import tempfile
    papermill_engines.register("here", engine())
    with tempfile.TemporaryDirectory() as runs:
        asked = dict(method="irm", scale="smoke", environments="low,medium", runs=runs)
        execute_notebook("nbs/train.ipynb", f"{runs}/first.ipynb", asked, engine_name="here", progress_bar=False)


def engine():
    "A papermill engine that runs the cells in this process."
    from papermill.engines import Engine

    class Here(Engine):
        @classmethod
        def execute_managed_notebook(cls, notebook, kernel_name, **options):
            names = {}
            for place, cell in enumerate(notebook.nb.cells):
                if cell.cell_type == "code":
                    run(notebook, cell, place, names)

    return Here


def run(notebook, cell, place, names):
    "One cell, in the names of those before it."
    notebook.cell_start(cell, place)
    try:
        exec(compile(cell.source, f"cell {place}", "exec"), names)
    except BaseException as error:
        notebook.cell_exception(cell, place, exception=error)
        raise
    notebook.cell_complete(cell, place)


if __name__ == "__main__":
    serve(sys.argv[1])
