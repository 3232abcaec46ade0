"""The pages run, and what they show is what they compute."""
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import HANGS, ROOT

NOTEBOOKS = sorted([*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")])
PAGES = [path for path in NOTEBOOKS if path.name[0].isdigit() or path.name == "index.ipynb" or path.parent.name == "book"]  # experiments are tested through papermill
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|opt|usr|var|mnt|proc|Users|private)/|\bat 0x[0-9a-f]{6,}|[A-Z]:\\Users")


def texts(cell):
    "What a cell shows in words; a table as its plain text."
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return re.sub(r"<Figure size .*?>| at 0x[0-9a-f]+", "", "\n".join(parts))


def letters(cell):
    "The words and numbers in the figures that a cell shows."
    drawings = ["".join(output["data"]["image/svg+xml"]) for output in cell.get("outputs", []) if "image/svg+xml" in output.get("data", {})]
    return "\n".join(["figure"] * len(drawings) + [text.replace("−", "-") for drawing in drawings for text in re.findall(r"<text[^>]*>([^<]*)<", drawing)])


def same(shown, made, rtol=2e-2, atol=1e-5):
    "Whether two texts agree: words exactly, numbers up to what another machine's rounding may do."
    words = [re.sub(r"[\s-]+", " ", NUMBER.sub("#", text)).strip() for text in (shown, made)]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (shown, made)]
    return words[0] == words[1] and all(abs(a - b) <= atol + rtol * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=True))


@pytest.fixture(scope="module")
def executed():
    "Each page executed afresh, two at a time, while the first ones are already being compared."
    def execute(path):
        notebook = nbformat.read(path, 4)
        client = NotebookClient(notebook, timeout=HANGS, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
        return client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})  # as in a reader's notebook
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(execute, path) for path in PAGES}


def test_nbdev_test(tool):
    done = tool("nbdev_test")
    assert done.returncode == 0 and "Success" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_stored_outputs_are_what_the_code_makes(path, executed):
    fresh = executed[path].result()
    for shown, made in zip(nbformat.read(path, 4).cells, fresh.cells, strict=True):
        if shown.cell_type != "code": continue
        assert same(texts(shown), texts(made)), f"{shown.source}\n--- shown\n{texts(shown)}\n--- made\n{texts(made)}"
        assert same(letters(shown), letters(made)), f"the figure of\n{shown.source}\n--- shows\n{letters(shown)}\n--- made\n{letters(made)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_fit_to_print(path):
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < 600_000
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            found = MACHINE.search(json.dumps(output.get("text") or {kind: data for kind, data in output.get("data", {}).items() if kind.startswith("text/")}))
            assert not found, f"{found[0]} in the output of\n{cell.source}"



@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_figure_stands_alone_in_its_cell_with_a_text_for_the_blind_and_a_caption(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from figures import caption, pictures
    cells = nbformat.read(path, 4).cells
    for cell, after in zip(cells, [*cells[1:], nbformat.v4.new_markdown_cell()]):
        drawn = pictures(cell)
        assert not any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])), f"call `hirm.plots.set_style()` before\n{cell.source}"
        if not drawn: continue
        assert "<dc:date>" not in drawn[0], "an SVG with a date changes on every run"
        assert len(drawn) == 1, f"{len(drawn)} figures in one cell:\n{cell.source}"
        assert re.search(r"^#\| fig-alt: [A-Z].{20,200}\.$", cell.source, re.M), f"no `#| fig-alt: One sentence.` in\n{cell.source}"
        assert caption(after)[0], f"no caption, `*One or more sentences.*`, in the cell after\n{cell.source}"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.parent.name == "book"], ids=lambda path: path.stem)
def test_a_results_page_hides_its_code(path):
    for cell in nbformat.read(path, 4).cells:
        assert cell.cell_type != "code" or {"remove-cell", "remove-input", "hide-input"} & set(cell.metadata.get("tags", [])), cell.source


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.name[0].isdigit()], ids=lambda path: path.stem)
def test_a_page_opens_with_its_question(path):
    first = next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert re.match(r"# .+\n+> .+", first.source)


def typed_decimals(prose):
    "Decimal numbers in prose, outside of mathematics, code and addresses."
    return re.findall(r"(?<![\w.])\d*\.\d+", re.sub(r"\$.*?\$|`.*?`|\]\(.*?\)|\{.*?\}", "", prose, flags=re.DOTALL))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if "published(" in path.read_text() and path.parent.name == "book"], ids=lambda path: path.stem)
def test_no_number_of_a_results_page_is_typed(path):
    notebook = nbformat.read(path, 4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not typed_decimals(prose)
    made = [key for cell in notebook.cells for output in cell.get("outputs", []) if (key := output.get("metadata", {}).get("scrapbook", {}).get("name"))]
    assert set(re.findall(r"\{glue:text\}`(.*?)`", prose)) <= set(made)


def test_a_typed_number_is_found():
    assert typed_decimals("a ratio of 0.97, or .97") == ["0.97", ".97"]
    assert not typed_decimals("CVaR-95 of `3.7`, $0.97$, [see](a/1.2.md), {glue:text}`x`, 95 % of version two.")


def test_comparison_of_outputs_can_fail():
    assert same("cvar95  3.70 %", "cvar95   3.74 %") and same("1e-9", "-2e-8")
    assert not same("cvar95  3.70 %", "cvar95  3.80 %") and not same("done", "gone") and not same("1 2", "1 2 3") and not same("loss nan", "loss 1")
