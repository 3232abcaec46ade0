"""The house stands: floors import downwards only, and the module is what the notebooks say."""
import ast
import re

import pytest

from conftest import ROOT

ROOMS = {path.stem[3:]: int(path.stem[:2]) for path in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))}


def imports(path):
    "Every module that a file imports, wherever the import stands."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not any(alias.name == "*" for alias in node.names), f"{path.name}: {ast.unparse(node)}"
            module = ".".join(["hirm"] * node.level + [node.module or ""]).rstrip(".")  # nbdev writes `from .markets`
            yield from ([f"hirm.{alias.name}" for alias in node.names] if module == "hirm" else [module])


def test_each_numbered_notebook_is_a_module_and_the_reverse():
    assert set(ROOMS) == {path.stem for path in (ROOT / "hirm").glob("*.py")} - {"__init__", "_modidx"}
    assert len(set(ROOMS.values())) == len(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_lower_numbers_only(room):
    for module in imports(ROOT / "hirm" / f"{room}.py"):
        package, _, name = module.partition(".")
        if package == "hirm": assert ROOMS[name.split(".")[0]] < ROOMS[room], f"{room} ({ROOMS[room]}) imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_run_without_the_tools_that_write_them(room):
    needed = {module.partition(".")[0] for module in imports(ROOT / "hirm" / f"{room}.py")}
    assert not needed & ({"nbdev", "execnb", "pytest", "nbformat"} | ({"fastcore"} if room != "launch" else set()))  # launch: inside the renderer


def test_export_is_in_sync_and_clean(copied, tool):
    for command in ("nbdev_export", "nbdev_clean"):
        done = tool(command, cwd=copied)
        assert done.returncode == 0, done.stdout
    for pattern in ("nbs/*.ipynb", "hirm/*.py"):
        assert {path.name for path in copied.glob(pattern)} == {path.name for path in ROOT.glob(pattern)}
        for path in copied.glob(pattern): assert path.read_text() == (ROOT / path.relative_to(copied)).read_text(), f"{path.name}: run nbdev_export && nbdev_clean"


def test_version_stands_in_one_place():
    version = re.search(r"^version = (.+)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert f'__version__ = "{version}"' in (ROOT / "hirm" / "__init__.py").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
