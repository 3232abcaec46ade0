"""The figures: each takes a frame and returns Axes with lower-case labels, the house colours and no title."""
import io
import os
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from nbclient import NotebookClient

from conftest import HANGS
from hirm import plots
from hirm.evaluation import judge
from hirm.environments import ENVIRONMENTS
from hirm.objectives import METHODS
from hirm.plots import COLOURS, INK, REGIMES, colour, estimates


@pytest.fixture(autouse=True)
def closed():
    """Close every figure after its test."""
    yield
    plt.close("all")


def arm(method, level, n=4, **columns):
    """A made-up arm of an experiment."""
    value = level + 0.001 * np.arange(n)
    return pd.DataFrame({"method": method, "seed": range(n), "environment": "crisis", "weight": 1.0, "cvar95": value, "cvar95_se": 2e-4,
                         "turnover": 3 + value} | columns)


ARMS = pd.concat([arm("erm", 0.040), arm("irm", 0.038), arm("delta", 0.037, n=1)], ignore_index=True)


def line(x, y, **names):
    """Three made-up lines, one method each."""
    at = np.linspace(0.1, 0.9, 9)
    return pd.concat([pd.DataFrame({"method": m, "seed": s, x: at, y: k * at, **names}) for m, k in [("erm", 1), ("irm", 2), ("delta", 3)] for s in (0, 1)])


def learning():
    """Made-up curves of two environments and a validation."""
    step = np.arange(0, 100, 10)
    rows = {"low": ("train", 1.0), "medium": ("train", 2.0), "high": ("validate", 3.0)}
    return pd.concat([pd.DataFrame({"step": step, "environment": e, "role": role, "risk": level + 1 / (1 + step), "penalty": step / 100})
                      for e, (role, level) in rows.items()])


def calendar():
    """A made-up crisis."""
    days = pd.bdate_range("2020-03-02", periods=4)
    return pd.concat([pd.DataFrame({"method": m, "seed": 0, "date": days, "pnl": k * np.array([-0.01, 0.02, -0.03, 0.01])}) for m, k in [("erm", 1), ("delta", .5)]])


def band():
    """A made-up band at two quoted vols, two maturities and three moneynesses."""
    points = pd.MultiIndex.from_product([(0.18, 0.55), (45, 10), (0.95, 1.0, 1.05)], names=["vol", "days", "moneyness"]).to_frame(index=False)
    return points.assign(method="irm", delta=0.5, lower=0.47 - 0.1 * points["vol"], upper=0.5 + 0.1 * points["vol"])


def books():
    """Made-up books of two hedgers over five days."""
    days = pd.bdate_range("2020-03-02", periods=5)
    held = np.array([0.5, 0.4, 0.3, 0.35, 0.0])
    rows = {"date": days, "spot": [1.0, 0.9, 0.8, 0.9, 0.95], "delta": held, "position": held, "trade": np.diff(held, prepend=0), "pnl": [-0.001, -0.01, -0.02, 0.01, 0.0]}
    return pd.concat([pd.DataFrame({"method": method, **rows}) for method in ("irm", "delta")])


SWEEP = pd.concat([arm("irm", 0.04 - 0.01 * w, weight=w) for w in (0.0, 0.1, 1.0)], ignore_index=True)
WORLD = pd.concat([ARMS, ARMS.assign(environment="low", cvar95=ARMS["cvar95"] / 8)], ignore_index=True)
DRAWN = {
    "learning_curves": (learning(), "update", "CVaR-95 (risk units)"),
    "tail_qq": (line("level", "loss"), "loss of erm (% of spot)", "loss at the same quantile (% of spot)"),
    "interval_plot": (ARMS, "CVaR-95 (% of spot)", ""),
    "regime_panels": (WORLD, "", ""),
    "lambda_sweep": (SWEEP, "penalty weight λ", "CVaR-95 (% of spot)"),
    "frontier": (ARMS, "turnover (shares per call)", "CVaR-95 (% of spot)"),
    "sensitivity": (line("realized_vol", "position"), "realised volatility shown (% a year)", "position (shares per call)"),
    "pnl_path": (calendar(), "", "P&L so far (% of spot)"),
    "conditional_pnl": (line("spot", "pnl"), "terminal spot (% of initial spot)", "mean P&L (% of spot)"),
    "hedge_band": (band(), "", ""),
    "hedge_path": (books(), "", ""),
}


def colours(ax):
    """Return the colours of everything drawn in an Axes and its panels."""
    drawn = {to_hex(artist.get_color()).upper() for artist in ax.lines}
    return drawn.union(*(colours(panel) for panel in ax.child_axes))


@pytest.mark.parametrize("name", DRAWN)
def test_each_figure_takes_a_frame_and_returns_its_axes(name):
    frame, x, y = DRAWN[name]
    before = frame.copy()
    ax = getattr(plots, name)(frame)
    assert isinstance(ax, mpl.axes.Axes) and (ax.get_xlabel(), ax.get_ylabel()) == (x, y)
    assert not ax.get_title() and not ax.figure.get_suptitle()
    ax.figure.canvas.draw()
    pd.testing.assert_frame_equal(frame, before)
    given = plt.figure().add_subplot()
    assert getattr(plots, name)(frame, ax=given) is given


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"learning_curves", "lambda_sweep", "hedge_band"}))
def test_methods_wear_their_colours_everywhere(name):
    frame, *_ = DRAWN[name]
    drawn = colours(getattr(plots, name)(frame))
    expected = {COLOURS[m].upper() for m in frame["method"].unique()} - ({COLOURS["erm"].upper()} if name == "tail_qq" else set())
    assert expected <= drawn <= expected | {INK.upper()}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_legible_on_white_and_on_dark(name):
    ax = getattr(plots, name)(DRAWN[name][0])
    assert to_hex(ax.figure.get_facecolor(), keep_alpha=True).endswith("00") and to_hex(ax.get_facecolor(), keep_alpha=True).endswith("00")
    for axes in (ax, *ax.child_axes):
        assert to_hex(axes.xaxis.label.get_color()).upper() == INK.upper() == to_hex(axes.yaxis.label.get_color()).upper()


def luminance(name):
    """Return the relative luminance of a colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(name)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", [INK, *COLOURS.values(), *REGIMES.values(), *plots.SPARE])
def test_colours_stand_out_on_both_grounds(name):
    on_white, on_dark = 1.05 / (luminance(name) + 0.05), (luminance(name) + 0.05) / (luminance("#121212") + 0.05)
    assert min(on_white, on_dark) > (4.2 if name == INK else 3.0)  # AA asks 3 of lines; text gets the page's own ink in the book


def svg(name):
    """Return one of the figures as a notebook stores it."""
    with mpl.rc_context(plots.STYLE):
        buffer = io.StringIO()
        getattr(plots, name)(DRAWN[name][0]).figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_the_same_svg_on_every_run(name):
    assert svg(name) == svg(name)


@pytest.mark.parametrize("name", DRAWN)
def test_letters_stay_letters_in_one_ink(name):
    styles = re.findall(r"<text[^>]*style=\"([^\"]*)\"", svg(name))
    assert styles and {re.search(r"fill: (#\w+)", style)[1].upper() for style in styles} == {INK}


def test_a_notebook_shows_svg_in_the_house_style():
    code = "from hirm.plots import INK, set_style\nimport matplotlib.pyplot as plt\nset_style()\nplt.plot([1, 2])\nplt.show()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    shown = NotebookClient(notebook, timeout=HANGS, kernel_name="python3").execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    (data,) = (output["data"] for output in shown.cells[0].outputs if "data" in output)
    assert "image/png" not in data and INK.lower() in data["image/svg+xml"] and "<dc:date>" not in data["image/svg+xml"]


def test_the_style_of_a_notebook_needs_no_notebook():
    with mpl.rc_context():
        plots.set_style()
        assert mpl.rcParams["text.color"] == INK and mpl.rcParams["svg.fonttype"] == "none"


def test_every_method_and_baseline_has_one_colour_of_its_own():
    assert set(METHODS) <= set(COLOURS)
    assert len({*COLOURS.values(), *REGIMES.values()}) == len(COLOURS) + len(REGIMES)
    assert colour("mine") == colour("mine") and colour("mine") in plots.SPARE
    for baseline in ("no_hedge", "delta", "delta_vega", "whalley_wilmott", "minimum_variance"):
        assert max(to_rgb(COLOURS[baseline])) - min(to_rgb(COLOURS[baseline])) < 0.06  # a grey


def test_the_house_style_does_not_leak():
    before = dict(mpl.rcParams)
    plots.interval_plot(ARMS)
    assert dict(mpl.rcParams) == before


def test_learning_curves_mark_validation_best_and_penalty():
    ax = plots.learning_curves(learning(), best=50)
    named = {text.get_text() for text in ax.get_legend().get_texts()}
    assert named == {"low", "medium", "high (validation)", "checkpoint kept"}
    ring = next(artist for artist in ax.lines if artist.get_label() == "checkpoint kept")
    assert ring.get_xydata()[0].tolist() == pytest.approx([50, 3 + 1 / 51])
    assert [panel.get_ylabel() for panel in ax.child_axes] == ["penalty"]
    assert not plots.learning_curves(learning().drop(columns="penalty")).child_axes


def test_qq_needs_its_reference():
    with pytest.raises(ValueError, match="no rows of the reference 'hirm'"):
        plots.tail_qq(DRAWN["tail_qq"][0], "hirm")
    ax = plots.tail_qq(DRAWN["tail_qq"][0], "irm")
    assert ax.get_xlabel() == "loss of irm (% of spot)"


def test_intervals_and_seeds_are_drawn():
    ax = plots.interval_plot(ARMS)
    dots = [artist for artist in ax.lines if artist.get_alpha() == 0.3]
    assert [len(artist.get_xdata()) for artist in dots] == [4, 4]  # delta has no seeds
    assert estimates(ARMS, "cvar95").loc["delta", "width"] == pytest.approx(1.96 * 2e-4, rel=1e-3)
    assert estimates(ARMS, "turnover").loc["delta", "width"] == 0
    spread = np.std(0.001 * np.arange(4), ddof=1) / 2 * 3.182446
    assert estimates(ARMS, "turnover").loc["erm", "width"] == pytest.approx(spread, rel=1e-5)
    bars = {round(float(np.ptp(c.get_segments()[0][:, 0])), 6) for c in ax.collections}
    assert bars == {round(200 * w, 6) for w in estimates(ARMS, "cvar95")["width"]}


def test_the_frontier_puts_each_interval_on_its_axis():
    ax = plots.frontier(ARMS[ARMS["method"] == "erm"])
    wide = {axis: max(float(np.ptp(c.get_segments()[0][:, axis])) for c in ax.collections) for axis in (0, 1)}
    assert wide[0] == pytest.approx(2 * estimates(ARMS, "turnover").loc["erm", "width"])
    assert wide[1] == pytest.approx(200 * estimates(ARMS, "cvar95").loc["erm", "width"])


def test_drawdown_is_measured_from_zero():
    panel = plots.pnl_path(calendar()).child_axes[0]
    assert panel.lines[0].get_ydata().tolist() == pytest.approx([-1, 0, -3, -2])


def test_erm_is_the_ground_line_of_a_sweep():
    ax = plots.lambda_sweep(SWEEP)
    assert ax.get_xscale() == "log" and ax.lines[0].get_xdata().tolist() == [0.1, 1.0]
    assert ax.lines[1].get_ydata()[0] == pytest.approx(100 * SWEEP[SWEEP["weight"] == 0]["cvar95"].mean())


def test_an_empty_frame_is_refused():
    with pytest.raises(ValueError, match="frontier has nothing to draw"):
        plots.frontier(ARMS[ARMS["method"] == "hirm"])


def test_a_judgement_can_be_drawn():
    left = judge({}, [ENVIRONMENTS["crisis"], ENVIRONMENTS["volmageddon"]], 500, 0)
    crisis = lambda frame: frame[frame["environment"] == "crisis"]
    axes = [plots.tail_qq(crisis(left.tails), "delta"), plots.conditional_pnl(crisis(left.by_spot)), plots.interval_plot(crisis(left.metrics)),
            plots.regime_panels(left.metrics), plots.frontier(crisis(left.metrics)), plots.pnl_path(left.calendar)]
    for ax in axes:
        ax.figure.canvas.draw()


def test_a_band_is_drawn_less_the_delta():
    ax = plots.hedge_band(band())
    assert [panel.get_xlabel() for panel in ax.child_axes] == ["spot / strike, 45 days to expiry", "spot / strike, 10 days to expiry"]
    for panel in ax.child_axes:
        calm, wild = (np.array(bars.get_segments())[:, :, 1] for bars in panel.collections)  # three bars each, from lower to upper
        assert np.allclose(calm, [[-0.048, 0.018]] * 3) and np.allclose(wild, [[-0.085, 0.055]] * 3)
    assert [to_hex(bars.get_color()[0]).upper() for bars in panel.collections] == [REGIMES["medium"], REGIMES["crisis"]]


def test_a_path_shows_price_position_trades_and_account():
    ax = plots.hedge_path(books())
    assert [panel.get_ylabel() for panel in ax.child_axes] == ["price (% of start)", "position (shares)", "trade (shares)", "P&L (% of spot)"]
    price, held, traded, account = ax.child_axes
    assert np.allclose(price.lines[0].get_ydata(), [100, 90, 80, 90, 95]) and np.allclose(held.lines[0].get_ydata(), [0.5, 0.4, 0.3, 0.35, 0])
    assert np.allclose(account.lines[0].get_ydata(), [-0.1, -1.1, -3.1, -2.1, -2.1])
    assert np.allclose(np.array(traded.collections[0].get_segments())[:, 1, 1], [-0.1, -0.1, 0.05, -0.35])  # without the first purchase


def test_a_number_that_is_read_keeps_its_digits():
    with mpl.rc_context(plots.STYLE):
        figure, ax = plt.subplots()
        ax.plot([0.0, 1.0], [0.0, 0.123456789], label="rate 0.00125")
        ax.set_yticks([0.0, 0.0625], ["0", "0.0625"])
        ax.legend()
        drawn = plots.compact_svg(figure)
    assert "rate 0.00125<" in drawn and ">0.0625<" in drawn
    assert not re.search(r'="[^"]*\.\d{3}', drawn)  # coordinates end at a hundredth of a point


def test_panels_of_regimes_have_the_same_rows_in_the_same_order():
    frame = pd.DataFrame([dict(method=m, seed=s, environment=e, cvar95=risk, cvar95_se=0.001) for e, methods in (("low", "abc"), ("crisis", "cb")) for s in (0, 1)
                          for m, risk in zip(methods, (0.01, 0.02, 0.03))])
    _, ax = plt.subplots()
    panels = plots.regime_panels(frame, ax=ax).child_axes
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["b", "c"]  # a has no row in the crisis, where c comes first
    means = [[bar.lines[0].get_xdata()[0] for bar in panel.containers] for panel in panels]
    assert means[0] == pytest.approx([2, 3]) and means[1] == pytest.approx([2, 1])
