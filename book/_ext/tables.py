"""Tables of the book: no empty headers, and verdicts that stay in view where the page is narrow."""
import re

EMPTY = re.compile(r"<th(?: [^>]*)?>\s*(?:<p>\s*</p>)?\s*</th>")
ROW = re.compile(r"<tr(?: [^>]*)?>(.*?)</tr>", re.DOTALL)


def headed(html):
    "HTML without empty headers: the corner above a table's row names would be read out as nothing."
    return EMPTY.sub("<td></td>", html)


def judged(cell):
    "The cell, tagged `judged` if a table of its ends in a verdict."
    html = "".join("".join(output.get("data", {}).get("text/html", "")) for output in cell["outputs"])
    first = ROW.search(html)
    if not (first and first[1].rstrip().endswith(">verdict</th>")): return cell
    return {**cell, "metadata": {**cell["metadata"], "tags": sorted({*cell["metadata"]["tags"], "judged"})}}
