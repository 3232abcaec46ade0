"""What the notebooks need to become chapters: directives become tags, mathematics is served from the book itself, dead scripts go."""
import importlib.util
import json
import re
from pathlib import Path

from sphinx.util.fileutil import copy_asset

from figures import illustrated
from tables import headed, judged

DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.*?)\s*$")
TAGS = {"hide": "remove-cell", "hide_input": "remove-input", "hide_output": "remove-output"}


def split(source):
    "Parts nbdev's directives, the comments `#| …` on top of a cell, from its code."
    directives, lines = [], source.splitlines(keepends=True)
    while lines and (not lines[0].strip() or DIRECTIVE.match(lines[0])):
        directives += [match[1] for match in [DIRECTIVE.match(lines.pop(0))] if match]
    return directives, "".join(lines)


def alt(directives):
    "What Quarto's directive `fig-alt` says of a cell's figure."
    said = [directive.partition(":")[2].strip() for directive in directives if directive.startswith("fig-alt:")]
    return said[0] if said else ""


def readable(notebook):
    "The notebook as a reader wants it: no directives, no cells that hold nothing else."
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "raw": continue
        if cell["cell_type"] == "code":
            directives, code = split("".join(cell["source"]))
            if not code.strip(): continue
            tags = {TAGS[name] for name in (re.split(r"[:\s]", directive)[0] for directive in directives) if name in TAGS}
            if code.startswith("show_doc("): tags.add("remove-input")
            metadata = {**cell["metadata"], "tags": sorted(tags | set(cell["metadata"].get("tags", []))), "alt": alt(directives)}
            cell = judged({**cell, "source": code, "metadata": metadata})
        cells.append(cell)
    return {**notebook, "cells": cells}


def read_source(app, docname, source):
    "Sphinx hands over each page's text before it is parsed."
    if not str(app.env.doc2path(docname)).endswith(".ipynb"): return
    notebook = readable(json.loads(source[0]))
    source[0] = json.dumps(illustrated(notebook, Path(docname).name))


def drop_thebe(app, page, template, context, doctree):
    "sphinx-thebe declares a constant twice, an error on every page, and loads from outside; this book is not run in the browser."
    said = lambda script: f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {}).get('body', '')}".lower()
    context["script_files"] = [script for script in context.get("script_files", []) if "thebe" not in said(script)]


def fill_headers(app, page, template, context, doctree):
    "No table of the page has an empty header."
    if "body" in context: context["body"] = headed(context["body"])


def list_references(app, page, template, context, doctree):
    "Entries of a list are list items; the role that docutils gives to references is no longer one."
    if "body" in context: context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def copy_mathjax(app, failure):
    "The 1.5 MB of MathJax that TeX needs, out of the 24 that sphinx-mathjax-offline brings."
    if failure or app.builder.format != "html": return
    origin = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2"):
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        copy_asset(origin / part, target / part if (origin / part).is_dir() else target)


def setup(app):
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("source-read", read_source)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", fill_headers)
    app.connect("html-page-context", list_references)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
