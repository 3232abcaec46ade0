"""README.md is the first page of the book, and its two lines are those that CI types."""
import re
import subprocess
import tomllib

from conftest import HANGS, ROOT


def readme(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from readme import readme
    return readme(ROOT)


def contrast(one, other):
    "Of two colours, by WCAG 2."
    linear = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    low, high = sorted(sum(w * linear(int(name[i:i + 2], 16) / 255) for w, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5))) for name in (one, other))
    return (high + 0.05) / (low + 0.05)


def commands():
    "The lines that set up a fresh machine."
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.M)


def test_readme_is_made_from_the_first_page(monkeypatch):
    text, figures = readme(monkeypatch)
    assert (ROOT / "README.md").read_text() == text, "run: python book/_ext/readme.py"
    assert {path.name: path.read_text() for path in (ROOT / "book" / "figures").iterdir()} == figures
    assert figures and "#|" not in text


def test_figures_of_the_readme_are_in_the_ink_of_its_mode(monkeypatch):
    text, figures = readme(monkeypatch)
    for mode, ground in {"light": "#ffffff", "dark": "#0d1117"}.items():
        drawings = [drawing for name, drawing in figures.items() if name.endswith(f"-{mode}.svg")]
        inks = {ink for drawing in drawings for ink in re.findall(r"<text[^>]*fill: (#\w+)", drawing)}
        assert len(drawings) == text.count("<picture>") and min(contrast(ink, ground) for ink in inks) > 4.5
    for alt, file in re.findall(r'<img alt="([^"]*)" src="([^"]*)"', text): assert alt.endswith(".") and (ROOT / file).exists()


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_two_commands_set_up_a_fresh_machine():
    run, test = commands()
    assert run.endswith("&& papermill nbs/train.ipynb -p method irm") and test.endswith("&& pytest -n 2 --dist loadfile")
    for command in (run, test): assert "pip install -c constraints.txt -e " in command
    assert (ROOT / "README.md").read_text().index(test) < 4000  # on the first screens


def test_ci_types_the_readme_s_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script and "pip install" not in script  # it reads the line, and has none of its own
    shown = subprocess.run(["bash", str(ROOT / ".ci" / "run"), "--show"], capture_output=True, text=True, timeout=HANGS)
    assert shown.stdout.strip() == commands()[1]


def test_the_doors_install_what_they_run():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    def of(extra):
        found = set()
        for wanted in extras[extra]:
            name, _, within = re.match(r"([\w.-]+)(\[(.*)\])?", wanted).groups()
            found |= set.union(*map(of, within.split(","))) if name == "hirm" else {name}
        return found
    readme, contributing = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    assert "'.[book]' && jupyter-book build book" in readme and "'.[many]' && snakemake -c2 phase1" in readme and "'.[many]'\nsnakemake -c2 phase1 " in contributing
    called = {word for word in ("nbdev_clean", "jupyter-book", "papermill") if f"{word} " in (ROOT / "Snakefile").read_text()}
    assert called == {"nbdev_clean", "jupyter-book", "papermill"}
    assert {"nbdev", "jupyter-book"} <= of("book") and {"nbdev", "jupyter-book", "snakemake"} <= of("many") and of("many") < of("dev")


def test_constraints_name_every_package_once_and_leave_torch_free():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", line) for line in lines)
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(set(names)) == len(names) and "torch" not in names and {"nbdev", "numpy", "papermill", "jupyter-book"} <= set(names)
