"""What is in print: a table says what the text says, numbers can be read, methods are called by one name, titles say their subject."""
import html
import re

import nbformat
import pytest

from conftest import ROOT

BOOK = [path for path in sorted((ROOT / "book").glob("*.*")) if path.suffix in (".md", ".ipynb") and not path.is_symlink()]
PRINTED = [*BOOK, ROOT / "nbs" / "index.ipynb"]
CLAIMS = ("H1", "H2", "beats")  # a guard or a tie by itself is no claim


def prose(path):
    "The Markdown of a page, in the order in which it is read."
    if path.suffix == ".md": return path.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell.source) for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


def shown(path):
    "What the cells of a page show in words."
    outputs = [output for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def table_rows(path, column):
    "The rows of the printed tables that have a column of this name, as lists of cells; a cell that spans rows is repeated."
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            page = output.get("data", {}).get("text/html", "")
            if f"<th>{column}</th>" not in page: continue
            above = []
            for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL):
                cells = [html.unescape(re.sub("<.*?>", "", text)).strip() for text in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
                above = above if len(cells) < len(above) else cells
                yield above[:len(above) - len(cells)] + cells


def first_use(text):
    "Where the code name `hirm` of the method is used first, and where the method is called by its name; None where it is not."
    bare = re.sub(r"\]\(.*?\)|hirm[./]\w*|module `hirm`", "", text)
    code, name = re.search(r"\bhirm\b", bare), re.search(r"head-only IRM", bare, re.IGNORECASE)
    return code and code.start(), name and name.start()


def test_the_verdict_withholds_what_the_prose_withholds():
    path = ROOT / "book" / "phase1.ipynb"
    ties = {row[0]: row[-1].split()[-1] for row in table_rows(path, "control") if "ties" in row[1]}
    open_control = {arm.removesuffix("_permuted") for arm, said in ties.items() if said != "holds"}
    rows = [row for row in table_rows(path, "verdict") if len(row) == 6 and row[0].startswith(CLAIMS)]
    assert open_control and rows
    assert not [row for row in rows if row[1] in open_control and row[-1].endswith("holds")]
    assert [row for row in rows if row[-1] == "withheld"]


@pytest.mark.parametrize("path", [path for path in PRINTED if path.suffix == ".ipynb"], ids=lambda path: path.stem)
def test_what_is_glued_into_text_is_text(path):
    glued = [(output.metadata.scrapbook.name, str(output.data)) for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", []) if "scrapbook" in output.get("metadata", {})]
    inline = set(re.findall(r"\{glue:text\}`(\w+)", prose(path)))
    assert [name for name, text in glued if name in inline and "](" in text] == []


def test_a_test_that_a_page_names_is_there():
    defined = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.M)}
    named = {name for path in PRINTED if path.suffix == ".md" for name in re.findall(r"`(test_\w+)`", prose(path))}
    assert len(named) > 10 and not named - defined - {path.stem for path in (ROOT / "tests").glob("test_*.py")}


@pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)
def test_the_method_is_named_where_it_is_first_met(path):
    code, name = first_use(prose(path))
    assert code is None or name is not None and name <= code + 60, "say `head-only IRM (hirm)` at first use"


def test_a_missing_name_is_found():
    assert first_use("the penalty of `hirm`") == (16, None) and first_use("head-only IRM (`hirm`)") == (16, 0)
    assert first_use("# HIRM, and see `hirm.stats` in the module `hirm`") == (None, None)


@pytest.mark.parametrize("path", [path for path in PRINTED if path.suffix == ".ipynb"], ids=lambda path: path.stem)
def test_printed_numbers_can_be_read(path):
    assert not (found := re.findall(r"-0\.0*(?![\d.])|\bNaN\b|(?<![\d.])0\.0000\d*|(?<![\d.<])0\.000(?!\d)", shown(path))), found
    assert not re.search(r"\bnp\.\w+\(|\btensor\(", shown(path)), "a NumPy number that is glued shows its type"
    assert not re.search(r": none\b|\bnone;", prose(path))


@pytest.mark.parametrize("path", [*BOOK, *sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))], ids=lambda path: path.stem)
def test_a_title_says_its_subject(path):
    title = re.search(r"^# (.+)$", prose(path), re.M)[1]
    assert title == "References" or re.fullmatch(r"[\w -]+: .+\?", title), f"write `Subject: question?`, got {title}"


@pytest.mark.parametrize("path", [path for path in sorted((ROOT / "nbs").glob("*.ipynb")) + PRINTED if path.suffix == ".ipynb"], ids=lambda path: path.stem)
def test_a_cell_that_draws_a_figure_shows_nothing_else(path):
    """What is glued beside a figure takes its place, and the page has neither the figure nor its caption."""
    for cell in nbformat.read(path, 4).cells:
        if cell.source.startswith("#| fig-alt"):
            assert [sorted(output.get("data", {})) for output in cell.outputs] == [["image/svg+xml", "text/plain"]], cell.source[:80]
