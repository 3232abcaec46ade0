"""The book as a reader meets it: built without a warning, opened in a browser without a network."""
import functools
import html
import http.server
import importlib.util
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml

from conftest import ROOT

HTML = ROOT / "book" / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js").read_text(encoding="utf-8")
DESK, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium")


def chapters(node):
    "The files that a table of contents names, in reading order."
    if isinstance(node, str): return [node]
    if isinstance(node, list): return [name for part in node for name in chapters(part)]
    return [node[key] for key in ("root", "file") if key in node] + [name for key in ("parts", "chapters", "sections", "contents") if key in node for name in chapters(node[key])]


TOC = chapters(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text()))


@pytest.fixture(scope="module")
def build(tool):
    "The finished command that built the book, from nothing: an old file must not hide that a new one is missing."
    shutil.rmtree(HTML.parent, ignore_errors=True)
    return tool("jupyter-book", "build", "book", "-W", "--keep-going")


@pytest.fixture(scope="module")
def book(build):
    "The folder of the built book; a book with warnings is looked at all the same."
    return HTML


@pytest.fixture(scope="module")
def url(book):
    "Where the book is served."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    "Headless Chromium, told not to call home."
    from playwright.sync_api import sync_playwright
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, url):
    "An empty page that writes down, in `bad`, what must not happen."
    context = browser.new_context(viewport=DESK, base_url=url)
    yield watched(context.new_page(), url)
    context.close()


def watched(page, home):
    "A page that writes down what it asks of others, what it does not get, and what fails in it."
    page.bad = bad = []
    page.on("request", lambda r: bad.append(f"outside: {r.url}") if not r.url.startswith((home, "data:", "blob:")) else None)
    page.on("response", lambda r: bad.append(f"{r.status}: {r.url}") if r.status >= 400 and not r.url.endswith("favicon.ico") else None)
    page.on("requestfailed", lambda r: bad.append(f"failed: {r.url}"))
    page.on("pageerror", lambda error: bad.append(f"script: {error}"))
    return page


@pytest.fixture(scope="module")
def look(browser, url):
    "What is measured on a page, by its name: each is opened once, on a desk, light and dark, and on a phone."
    context = browser.new_context(viewport=DESK, base_url=url)
    seen = {}

    def measured(name):
        if name not in seen:
            page = watched(context.new_page(), url)
            page.goto(f"/{name}.html")
            seen[name] = Look(page)
            page.close()
        return seen[name]
    yield measured
    context.close()


class Look:
    "One page of the book as a reader meets it."

    def __init__(self, page):
        page.evaluate("window.MathJax?.startup?.promise.then(() => new Promise(requestAnimationFrame))")
        page.add_script_tag(path=ROOT / "tests" / "look.js")
        page.add_style_tag(content="* { transition: none !important }")  # or a colour is measured on its way from light to dark
        self.text = page.locator("article").inner_text()
        self.contents = page.evaluate("look.contents()")
        self.figures = page.evaluate("look.figures()")
        self.tall = page.evaluate("look.tall()")
        self.pale = {mode: page.evaluate("mode => look.pale(mode)", mode) for mode in ("light", "dark")}
        page.set_viewport_size(PHONE)
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        self.phone = page.evaluate("look.narrow()")
        page.set_viewport_size(DESK)
        page.add_script_tag(content=AXE)
        self.faults = page.evaluate("look.faults()")
        self.bad = page.bad


def test_both_tables_of_contents_are_one():
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    listed = [name.removesuffix(".ipynb") for name in chapters(quarto["website"]["sidebar"])]
    assert listed == [name.removeprefix("nbs/") for name in TOC if name.startswith("nbs/")]
    assert (ROOT / "nbs" / "_quarto.yml").is_symlink() and (ROOT / "nbs" / "_quarto.yml").samefile(ROOT / "_quarto.yml")


def test_every_notebook_is_a_chapter():
    assert {name.removeprefix("nbs/") for name in TOC if name.startswith("nbs/")} == {path.stem for path in (ROOT / "nbs").glob("*.ipynb")}
    assert [name for name in TOC if re.match(r"nbs/\d", name)] == sorted(name for name in TOC if re.match(r"nbs/\d", name))


def test_every_reference_is_cited_and_stands_once():
    keys = re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), re.M)
    sources = [path.read_text() for path in [*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "book").glob("*.md"), *(ROOT / "book").glob("*.ipynb")]]
    cited = {key.strip() for text in sources for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}
    assert len(keys) == len(set(keys)) and set(keys) == cited, set(keys) ^ cited


def test_book_builds_without_a_warning(build, book):
    assert build.returncode == 0, "\n".join(line for line in build.stdout.splitlines() if "WARNING" in line or "ERROR" in line) or build.stdout[-3000:]
    assert all((book / f"{name}.html").exists() for name in TOC)


@needs_browser
@pytest.mark.parametrize("name", TOC)
def test_page_is_whole(look, name):
    page = look(name)
    assert page.bad == []
    assert not re.search(r"^\s*#\s*\|", page.text, re.M), "an nbdev directive shows"
    assert page.contents == {"broken mathematics": 0, "mathematics not set": 0, "broken pictures": []}


@needs_browser
@pytest.mark.parametrize("name", TOC)
def test_page_has_no_fault_that_axe_knows(look, name):
    assert look(name).faults == []


@needs_browser
@pytest.mark.parametrize("name", TOC)
def test_every_word_of_a_page_and_its_figures_can_be_read(look, name):
    assert look(name).pale == {"light": [], "dark": []}


@needs_browser
@pytest.mark.parametrize("name", [name for name in TOC if "/" in name or (ROOT / "book" / f"{name}.ipynb").exists()])
def test_figures_have_a_number_a_caption_and_a_text_for_the_blind(look, name):
    for figure in look(name).figures:
        assert figure["svg"] and re.fullmatch(r"[A-Z].+\.", figure["alt"]), figure
        assert re.match(r"Figure \d+ \S", figure["caption"]), figure


@needs_browser
def test_figures_are_numbered_through_the_book(look):
    numbers = [int(figure["caption"].split()[1]) for name in TOC for figure in look(name).figures if figure["svg"]]
    assert numbers == list(range(1, len(numbers) + 1))


@needs_browser
@pytest.mark.parametrize("name", TOC)
def test_no_cell_is_longer_than_a_screen(look, name):
    assert look(name).tall == []


@needs_browser
@pytest.mark.parametrize("name", TOC)
def test_page_fits_a_phone(look, name):
    phone = look(name).phone
    assert phone["width"] == PHONE["width"]
    assert phone["unmarked"] == [] and phone["hidden verdicts"] == 0


@needs_browser
@pytest.mark.parametrize("name", ["nbs/index", "theory", "learning", "nbs/08_policies"])
def test_contrast_by_axe(page, name):
    page.goto(f"/{name}.html")
    page.add_script_tag(content=AXE)
    page.add_script_tag(path=ROOT / "tests" / "look.js")
    for mode in ("light", "dark"):
        assert page.evaluate("mode => look.contrast(mode)", mode) == []


@needs_browser
def test_some_page_has_mathematics(page):
    page.goto(f"/{next(name for name in TOC if 'risk' in name or 'pricing' in name)}.html", wait_until="networkidle")
    assert page.locator("mjx-container").count() > 3


def test_links_and_anchors_lead_somewhere(book):
    text = functools.cache(lambda file: file.read_text(encoding="utf-8"))
    bad = []
    for file in book.rglob("*.html"):
        for link in re.findall(r'<a\b[^>]*?\shref="([^"]*)"', text(file)):
            link = urlparse(html.unescape(link))
            if link.scheme or link.netloc: continue
            target = (file.parent / unquote(link.path)).resolve() if link.path else file
            if target.is_dir(): target = target / "index.html"
            if not target.exists(): bad.append(f"{file.name}: {link.path}")
            elif link.fragment and f'id="{unquote(link.fragment)}"' not in text(target): bad.append(f"{file.name}: {link.path}#{link.fragment}")
    assert not bad, bad


@needs_browser
def test_search_finds(page):
    page.goto("/search.html?q=hedge", wait_until="networkidle")
    page.wait_for_selector("#search-results li")
    assert page.locator("#search-results li").count() > 2 and page.bad == []


@needs_browser
def test_search_finds_in_a_book_that_is_opened_as_files(page, book):
    page = watched(page.context.new_page(), book.as_uri())
    page.goto(f"{book.as_uri()}/search.html?q=hedge")
    page.wait_for_selector("#search-results li")
    page.wait_for_timeout(500)
    assert page.locator("#search-results li").count() > 2 and page.bad == []


@needs_browser
def test_search_by_keyboard(page):
    page.goto(f"/{TOC[0]}.html", wait_until="networkidle")
    page.keyboard.press("Control+k")
    page.keyboard.type("variance")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li")
    assert page.bad == []


@needs_browser
def test_dark_mode_is_dark(page):
    page.goto(f"/{TOC[0]}.html", wait_until="networkidle")
    light = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)")
    theme = lambda: page.evaluate("document.documentElement.dataset.theme")
    seen = {}
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
        seen[theme()] = light()
    assert seen["dark"] < 150 < 600 < seen["light"]
