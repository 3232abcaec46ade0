"""README.md from nbs/index.ipynb, so that the first page of the book and of the repository are one: `python book/_ext/readme.py`."""
import base64
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from literate import readable

ROOT = Path(__file__).resolve().parents[2]


def pieces(cell, figures):
    "The Markdown of one cell; pictures are gathered in `figures`."
    if cell["cell_type"] == "markdown":
        yield "".join(cell["source"])
        return
    tags = cell["metadata"]["tags"]
    if not {"remove-cell", "remove-input"} & set(tags): yield f"```python\n{''.join(cell['source']).strip()}\n```"
    for output in [] if {"remove-cell", "remove-output"} & set(tags) else cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            figures.append(base64.b64decode("".join(data["image/png"])))
            yield f"![{cell['metadata'].get('alt', 'figure')}](book/figures/index-{len(figures)}.png)"
        elif "text/markdown" in data: yield "".join(data["text/markdown"])
        else: yield f"```\n{''.join(output.get('text', data.get('text/plain', ''))).strip(chr(10))}\n```"


def readme(root=ROOT):  # folder of the project
    "The README's text, and its figures as PNG bytes."
    notebook, figures = readable(json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))), []
    text = "\n\n".join(piece for cell in notebook["cells"] for piece in pieces(cell, figures))
    home = lambda page: next((folder for folder in ("", "nbs/", "book/") if (root / folder / page).exists()), "")
    text = re.sub(r"\]\((?!\w+:|#|book/)(?:\.\./)?([^)]*)\)", lambda link: f"]({home(link[1])}{link[1]})", text)
    return f"<!-- made from nbs/index.ipynb by book/_ext/readme.py -->\n\n{text.strip()}\n", figures


if __name__ == "__main__":
    text, figures = readme()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    if figures: (ROOT / "book" / "figures").mkdir(exist_ok=True)
    for number, figure in enumerate(figures, 1): (ROOT / "book" / "figures" / f"index-{number}.png").write_bytes(figure)
