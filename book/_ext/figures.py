"""Figures of the book: each has a number, a caption and an alternative text, and is drawn in the ink of the page."""
import re
from html import escape

INK = "#767B82"  # what `hirm.plots` draws text and axes with; in the book it gives way to the text's own colour
CAPTION = re.compile(r"\*(?!\*)(.+?[.!?)])\*(?=\s|$)\s*", re.DOTALL)
NOISE = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
NAMES = re.compile(r'(\sid="|href="#|url\(#)')
SIZE = re.compile(r'width="([\d.]+)pt" height="[\d.]+pt"')
SMALLEST = 0.68  # of its own size: below it a figure scrolls, for its letters would be too small to read


def pictures(cell):
    "The SVG figures among the outputs of a cell."
    return ["".join(output["data"]["image/svg+xml"]) for output in cell.get("outputs", []) if "image/svg+xml" in output.get("data", {})]


def caption(cell):
    "The paragraph in italics that a Markdown cell begins with, and the rest of the cell."
    text = "".join(cell["source"])
    found = CAPTION.match(text) if cell["cell_type"] == "markdown" else None
    return (found[1], text[found.end():]) if found else ("", text)


def inked(svg, ink):
    "An SVG with its text and axes in another ink."
    return re.sub(INK, ink, svg, flags=re.IGNORECASE)


def inline(svg, alt, name):
    "An SVG as a part of the page: in the page's ink and font, with names that no other figure has."
    bare = NOISE.sub("", svg).strip()
    named = NAMES.sub(rf"\g<1>{name}-", bare)
    width = 4 / 3 * float(SIZE.search(named)[1])  # points to pixels
    style = f'style="width: {width:.0f}px; min-width: {SMALLEST * width:.0f}px"'
    sized = SIZE.sub(f'role="img" aria-label="{escape(alt)}" {style}', named, count=1)
    return f'<div class="drawing">{inked(sized, "currentColor")}</div>'


def illustrated(notebook, page):
    "The notebook with its figures in line, each with a number and the caption that the next cell begins with."
    cells, figures = [], []
    for cell in notebook["cells"]:
        text, rest = caption(cell)
        if text and figures and cells[-1] is figures[-1]:
            cells[-1]["metadata"]["mystnb"]["figure"]["caption"] = text
            if rest: cells.append({**cell, "source": rest})
        elif pictures(cell):
            figure = drawn(cell, f"{page}-figure-{len(figures) + 1}")
            shown = [output for output in cell["outputs"] if "image/svg+xml" not in output.get("data", {})]
            if shown: cells.append({**cell, "outputs": shown})
            cells.append(figure if not shown else {**figure, "source": ""})
            figures.append(cells[-1])
        else: cells.append(cell)
    return {**notebook, "cells": cells}


def drawn(cell, name):
    "A cell that shows its figure in line and nothing else, and can be referred to by a name."
    html = inline(pictures(cell)[0], cell["metadata"].get("alt", ""), name)
    output = {"output_type": "display_data", "data": {"text/html": html}, "metadata": {}}
    return {**cell, "outputs": [output], "metadata": {**cell["metadata"], "mystnb": {"figure": {"name": name}}}}
