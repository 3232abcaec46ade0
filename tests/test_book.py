"""The book as a reader meets it: built without a warning, opened in a browser without a network."""
import functools
import http.server
import re
import shutil
import threading
from urllib.parse import unquote, urlparse

import pytest
import yaml

from conftest import ROOT

HTML = ROOT / "book" / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
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
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, base_url=url)
    page = context.new_page()
    page.bad = bad = []
    page.on("request", lambda r: bad.append(f"outside: {r.url}") if not r.url.startswith((url, "data:", "blob:")) else None)
    page.on("response", lambda r: bad.append(f"{r.status}: {r.url}") if r.status >= 400 and not r.url.endswith("favicon.ico") else None)
    page.on("requestfailed", lambda r: bad.append(f"failed: {r.url}"))
    page.on("pageerror", lambda error: bad.append(f"script: {error}"))
    yield page
    context.close()


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
def test_page(page, url, name):
    page.goto(f"/{name}.html", wait_until="networkidle")
    assert page.bad == []
    assert not re.search(r"^\s*#\s*\|", page.locator("article").inner_text(), re.M), "an nbdev directive shows"
    assert page.locator("mjx-merror").count() == 0
    assert page.locator("mjx-container").count() == page.locator("article .math").count()
    broken = page.eval_on_selector_all("img", "all => all.filter(one => !one.naturalWidth).map(one => one.src)")
    assert broken == []
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    brightness = lambda what, where: page.evaluate("""([what, where]) => [...document.querySelectorAll(where)].map(one => getComputedStyle(one)[what])
        .map(colour => colour.match(/[\\d.]+/g).map(Number)).filter(c => c.length < 4 || c[3] > 0.5).map(c => c[0] + c[1] + c[2])""", [what, where])
    assert max(brightness("backgroundColor", "body, article, article td, article th, article pre")) < 250 < 400 < min(brightness("color", "article p, article td, article h1"))


@needs_browser
def test_some_page_has_mathematics(page):
    page.goto(f"/{next(name for name in TOC if 'risk' in name or 'pricing' in name)}.html", wait_until="networkidle")
    assert page.locator("mjx-container").count() > 3


@needs_browser
def test_links_and_anchors_lead_somewhere(page, url, book):
    todo, seen, bad = {f"{url}/{name}.html" for name in TOC}, set(), []
    while todo:
        seen.add(here := todo.pop())
        page.goto(here, wait_until="domcontentloaded")
        for target, _, anchor in (link.partition("#") for link in page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")):
            if not target.startswith(url): continue
            file = book / unquote(urlparse(target).path.lstrip("/"))
            if file.is_dir(): file = file / "index.html"
            if not file.exists(): bad.append(f"{here}: {target}")
            elif anchor and f'id="{unquote(anchor)}"' not in file.read_text(): bad.append(f"{here}: {target}#{anchor}")
            elif file.suffix == ".html" and target not in seen and "Refresh" not in file.read_text(): todo.add(target)
    assert not bad, bad


@needs_browser
def test_search_finds(page):
    page.goto("/search.html?q=hedge", wait_until="networkidle")
    page.wait_for_selector("#search-results li")
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
