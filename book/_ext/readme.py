"""README.md from nbs/index.ipynb, so that the first page of the book and of the repository are one: `python book/_ext/readme.py`."""
import json
import re
import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import inked, pictures
from literate import readable

ROOT = Path(__file__).resolve().parents[2]
INKS = {"light": "#1F2328", "dark": "#F0F6FC"}  # of GitHub's text in its two modes
PICTURE = """<picture>
  <source media="(prefers-color-scheme: dark)" srcset="book/figures/index-{number}-dark.svg">
  <img alt="{alt}" src="book/figures/index-{number}-light.svg">
</picture>"""


def pieces(cell, figures):
    "The Markdown of one cell; drawings are gathered in `figures`, by their file's name, in an ink for each mode."
    if cell["cell_type"] == "markdown":
        yield "".join(cell["source"])
        return
    tags = cell["metadata"]["tags"]
    if not {"remove-cell", "remove-input"} & set(tags): yield f"```python\n{''.join(cell['source']).strip()}\n```"
    for output in [] if {"remove-cell", "remove-output"} & set(tags) else cell["outputs"]:
        data = output.get("data", {})
        if drawing := pictures({"outputs": [output]}):
            number = len(figures) // len(INKS) + 1
            figures |= {f"index-{number}-{mode}.svg": inked(drawing[0], ink) for mode, ink in INKS.items()}
            yield PICTURE.format(number=number, alt=escape(cell["metadata"]["alt"]))
        elif "text/markdown" in data: yield "".join(data["text/markdown"])
        else: yield f"```\n{''.join(output.get('text', data.get('text/plain', ''))).strip(chr(10))}\n```"


def readme(root=ROOT):  # folder of the project
    "The README's text, and its figures by the names of their files."
    notebook, figures = readable(json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))), {}
    text = "\n\n".join(piece for cell in notebook["cells"] for piece in pieces(cell, figures))
    home = lambda page: next((folder for folder in ("", "nbs/", "book/") if (root / folder / page).exists()), "")
    text = re.sub(r"\]\((?!\w+:|#|book/)(?:\.\./)?([^)]*)\)", lambda link: f"]({home(link[1])}{link[1]})", text)
    return f"<!-- made from nbs/index.ipynb by book/_ext/readme.py -->\n\n{text.strip()}\n", figures


if __name__ == "__main__":
    text, figures = readme()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    folder = ROOT / "book" / "figures"
    for old in folder.glob("index-*"): old.unlink()
    for name, drawing in figures.items(): (folder / name).write_text(drawing, encoding="utf-8")
