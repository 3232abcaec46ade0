"""Statistics: the promises of size, coverage and power on laws whose answer is known, and the door that drops nobody."""
import ast
import json
import itertools
import re
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats as st

from hirm.campaign import PENALTIES
from hirm.stats import (CONTROLS, CRITERIA, PLANTED, apart, block_interval, compare, Criteria, degradation, dose_slope, group_log_ratio, holm,
                        iqm, side_by_side, label_effect, label_effects, log_ratio, pair, Planted, planted_verdict, pnl_difference, probability_of_improvement,
                        regret, sign_flip, verdict, within)

ONE = replace(CRITERIA, methods=("irm",), ties=(), beats=())


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels' multipletests collects on every call, which is most of its time


def binomial_error(p, trials):
    return np.sqrt(p * (1 - p) / trials)


def study(truth, rng, n_seeds=30, spread=0.06, turnover=None, pnl=None):
    """A tidy frame: each method's true crisis ratio to ERM, seeds with a luck that all methods share."""
    luck, rows = 0.1 * rng.standard_normal(n_seeds), []
    for name, gain in truth.items():
        for environment, level in (("low", 0.5), ("medium", 1.1), ("crisis", 4.0 * gain)):
            rows.append(pd.DataFrame({
                "method": name, "seed": np.arange(n_seeds), "environment": environment,
                "cvar95": level * np.exp(luck + spread * rng.standard_normal(n_seeds)),
                "mean_pnl": -0.3 + (pnl or {}).get(name, 0) + 0.01 * rng.standard_normal(n_seeds),
                "turnover": 2.9 * (turnover or {}).get(name, 1) * np.exp(0.03 * rng.standard_normal(n_seeds)), "premium": 10.0}))
    return pd.concat(rows, ignore_index=True)


def answers(frame, criteria):
    table = verdict(frame, criteria)
    return {(str(row.criterion), row.method): row.verdict for row in table.itertuples()}


@pytest.fixture
def frame():
    return study({"erm": 1.0, "irm": 0.8}, np.random.default_rng(0), n_seeds=6)


# the door

def test_missing_seed_is_named(frame):
    with pytest.raises(ValueError, match=r"irm lacks seed\(s\) \[2, 5\] in crisis which erm has.*run them"):
        pair(frame[~((frame.method == "irm") & frame.seed.isin([2, 5]))], "cvar95", "irm", "erm", "crisis")
    with pytest.raises(ValueError, match=r"erm lacks seed\(s\) \[4\] in low"):
        verdict(frame[~((frame.method == "erm") & (frame.seed == 4) & (frame.environment == "low"))], ONE)


@pytest.mark.parametrize("metric", ["cvar95", "turnover", "mean_pnl", "premium"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_refused(frame, metric, value):
    frame.loc[(frame.method == "irm") & (frame.environment == "crisis") & (frame.seed == 3), metric] = value
    with pytest.raises(ValueError, match=rf"{metric} of irm in crisis is not finite for seed\(s\) \[3\]"):
        verdict(frame, ONE)


def test_few_seeds_repeats_and_unknown_names_are_refused(frame):
    with pytest.raises(ValueError, match="at least 3 seeds, got 2 of irm.*run more"):
        verdict(frame[frame.seed < 2], ONE)
    with pytest.raises(ValueError, match=r"irm has several rows for seed\(s\) \[0, 1, 2, 3, 4, 5\]"):
        pair(pd.concat([frame, frame[frame.method == "irm"]]), "cvar95", "irm", "erm", "crisis")
    with pytest.raises(ValueError, match="no results of 'hirm' in 'crisis'; the frame has methods erm, irm and environments crisis, low, medium"):
        verdict(frame, CRITERIA)
    with pytest.raises(ValueError, match="no results of 'irm' in 'gfc'.*run what is missing"):
        verdict(frame, replace(ONE, environment="gfc"))
    with pytest.raises(ValueError, match="no column 'turnover'"):
        verdict(frame.drop(columns="turnover"), ONE)


def test_a_ratio_needs_a_size_and_a_difference_one_premium(frame):
    irm = (frame.method == "irm") & (frame.seed == 1)
    with pytest.raises(ValueError, match=r"must be positive for a ratio.*seed\(s\) \[1\]"):
        log_ratio(frame.assign(cvar95=frame.cvar95.where(~irm, -0.1)), "cvar95", "irm", "erm", "crisis")
    with pytest.raises(ValueError, match="different premiums in crisis"):
        pnl_difference(frame.assign(premium=frame.premium.where(~irm, 11.0)), "irm", "erm", "crisis")
    with pytest.raises(ValueError, match="premium must be positive"):
        pnl_difference(frame.assign(premium=0.0), "irm", "erm", "crisis")


@pytest.mark.parametrize("wrong", [{"improvement": 10}, {"alpha": 0.95}, {"turnover": 0}, {"tie": -0.05}, {"pnl": 0}, {"seeds": 2}])
def test_criteria_refuse_per_cent(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Criteria(**wrong)


def test_pairs_follow_the_seed_not_the_row(frame):
    shuffled = frame.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(verdict(frame, ONE), verdict(shuffled, ONE))
    assert list(pair(shuffled, "cvar95", "irm", "erm", "crisis").index) == list(range(6))


# small sums by hand

def test_summaries_by_hand():
    assert iqm([1, 2, 3, 4, 5, 6, 7, 100]) == 4.5
    share, low, high = probability_of_improvement([0.9, 0.9, 1.0, 1.1])
    assert share == 0.625 and 0 < low < share < high < 1
    share, low, high = probability_of_improvement(np.full(10, 0.9))
    assert share == 1 and np.isclose(high, 1) and 0.6 < low < 0.8  # ten of ten does not prove certainty
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_sign_flip_counts_all_flips():
    x = np.array([-0.3, -0.1, 0.05, -0.2, -0.15, 0.02])
    sums = [np.dot(signs, x) for signs in itertools.product([1, -1], repeat=6)]
    assert np.isclose(sign_flip(x, 0.0, np.random.default_rng(0)), np.mean(np.array(sums) <= x.sum() + 1e-12))
    assert np.isclose(sign_flip(x + 7, 7.0, np.random.default_rng(0)), sign_flip(x, 0.0, np.random.default_rng(0)))


def test_within_is_two_one_sided_t_tests():
    x = np.random.default_rng(1).normal(0.1, 1, 12)
    above, below = (st.ttest_1samp(x, edge, alternative=side).pvalue for edge, side in ((-0.5, "greater"), (0.7, "less")))
    assert np.isclose(within(x, -0.5, 0.7).p, max(above, below))
    assert np.allclose(within(x)[1:3], st.ttest_1samp(x, 0).confidence_interval(0.95))


def test_no_spread_is_certain_and_the_very_margin_is_not():
    same = np.zeros(5)
    assert within(same, -0.1, 0.1).p == 0 and within(same, upper=-0.1).p == 1 and within(same, upper=-0.1).outside
    assert within(same, upper=0.0).p == 1 and within(same)[1:3] == (0, 0)


def test_degradation_ignores_a_gain_that_is_the_same_everywhere(frame):
    gain = degradation(frame, "irm")
    everywhere = frame.assign(cvar95=frame.cvar95 * np.where(frame.method == "irm", 0.7, 1))
    assert np.allclose(gain, degradation(everywhere, "irm"))
    crisis = frame.assign(cvar95=frame.cvar95 * np.where((frame.method == "irm") & (frame.environment == "crisis"), 0.7, 1))
    assert np.allclose(degradation(crisis, "irm") - gain, np.log(0.7))


# coverage

LAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape),
    "skewed": lambda rng, shape: rng.exponential(1, shape) - 1,
}


@pytest.mark.parametrize("law, n, truth", [("normal", 10, 0.95), ("normal", 30, 0.95), ("heavy tails", 30, 0.956), ("skewed", 30, 0.927)])
def test_students_interval_covers_as_the_page_says(law, n, truth):
    """As often as measured on forty thousand studies, to three standard errors."""
    rng, trials = np.random.default_rng(n), 1500
    intervals = [within(x)[1:3] for x in LAWS[law](rng, (trials, n))]
    hits = np.mean([low < 0 < high for low, high in intervals])
    assert abs(hits - truth) < 3 * binomial_error(truth, trials)


def test_a_described_interval_is_the_verdicts():
    frame = study({"erm": 1.0, "irm": 0.8}, np.random.default_rng(13), n_seeds=7)
    described = compare(frame, np.random.default_rng(0), criteria=ONE).loc["irm", ["ratio", "low", "high"]].astype(float)
    judged = verdict(frame, ONE).set_index("criterion").loc["H1 crisis cvar95 / erm < 0.9", ["estimate", "low", "high"]].astype(float)
    assert (described.to_numpy() == judged.to_numpy()).all()


def test_wilson_covers():
    rng, trials = np.random.default_rng(2), 2000
    inside = [low < 0.7 < high for _, low, high in (probability_of_improvement(r) for r in np.where(rng.random((trials, 20)) < 0.7, 0.9, 1.1))]
    assert np.mean(inside) > 0.95 - 0.015 - 3 * binomial_error(0.95, trials)


# false positives

@pytest.mark.parametrize("n", [5, 10, 30])
def test_two_erm_arms_do_not_win(n):
    """Two arms of one heavy-tailed law, one seed in ten collapsing: neither test wins more often than alpha."""
    rng, trials = np.random.default_rng(n), 1500
    arms = 0.05 * rng.standard_t(3, (2, trials, n)) + 0.5 * (rng.random((2, trials, n)) < 0.1)
    limit = 0.025 + 3 * binomial_error(0.025, trials)
    assert np.mean([within(x, upper=0.0).p <= 0.025 for x in arms[1] - arms[0]]) < limit
    assert np.mean([within(x, upper=np.log(0.9)).p <= 0.025 for x in arms[1] - arms[0]]) < 0.01
    if n == 10:
        flips = [sign_flip(x, 0.0, rng, resamples=1024) <= 0.025 for x in (arms[1] - arms[0])[:500]]
        assert 0.003 < np.mean(flips) < 0.025 + 3 * binomial_error(0.025, 500)


def test_size_at_the_margin():
    """A gain of exactly 10 %, a difference of exactly 5 %: claimed with probability alpha, neither more nor much less."""
    rng, trials = np.random.default_rng(3), 4000
    x, error = 0.04 * rng.standard_normal((trials, 30)), 3 * binomial_error(0.025, trials)
    superior = np.mean([within(row, upper=np.log(0.9)).p <= 0.025 for row in np.log(0.9) + x])
    tied = np.mean([within(row, np.log(0.95), np.log(1.05)).p <= 0.025 for row in np.log(1.05) + x])
    assert abs(superior - 0.025) < error and abs(tied - 0.025) < error


def test_family_of_methods_on_the_margin():
    """Five methods exactly on the margin: the whole verdict makes a first false claim in at most alpha of the studies."""
    rng, trials = np.random.default_rng(4), 80
    names, wins, naive = CRITERIA.methods, 0, 0
    for _ in range(trials):
        frame = study({"erm": 1.0, **dict.fromkeys(names, 0.9)}, rng, n_seeds=10)
        table = verdict(frame, replace(CRITERIA, seeds=10, alpha=0.1, ties=(), beats=()))
        first = table[table.criterion == "H1 crisis cvar95 / erm < 0.9"]
        wins += (first.verdict == "holds").any()
        naive += any(within(log_ratio(frame, "cvar95", m, "erm", "crisis"), upper=np.log(0.9)).p <= 0.1 for m in names)
    assert wins / trials < 0.1 + 3 * binomial_error(0.1, trials) < naive / trials


# the verdict

def test_verdict_on_known_truths():
    rng = np.random.default_rng(5)
    truth = {"erm": 1.0, "irm": 0.78, "hirm": 0.78, "vrex": 0.78, "groupdro": 1.15, "erm_reg": 1.0}
    frame = study(truth, rng, spread=0.03, turnover={"hirm": 1.4}, pnl={"vrex": -0.10})   # 0.10 of a premium of 10: 100 bp
    said = answers(frame, CRITERIA)
    claim = "H1 with both guards"
    assert [said[claim, m] for m in ("irm", "hirm", "vrex", "groupdro", "erm_reg")] == ["holds", "fails", "fails", "fails", "fails"]
    assert said["guard: turnover / erm < 1.2", "hirm"] == "fails" and said["guard: mean P&L - erm > -50 bp of premium", "vrex"] == "fails"
    assert all(said["H1 crisis cvar95 / erm < 0.9", m] == "holds" for m in ("irm", "hirm", "vrex"))
    assert said["H2 degradation / erm < 1", "irm"] == "holds" and said["H2 degradation / erm < 1", "groupdro"] == "fails"
    assert said["ties erm within 5%", "erm_reg"] == "holds" and said["beats irm", "hirm"] == "undecided"


def test_a_diverged_method_shows_nothing_and_costs_the_others_as_any():
    criteria = replace(CRITERIA, methods=("irm", "vrex"), ties=(("vrex", "erm"),), beats=(("irm", "vrex"),))
    frame = study({"erm": 1.0, "irm": 0.8, "vrex": 1.0}, np.random.default_rng(5))
    lost = frame["method"].eq("vrex") & frame["seed"].eq(3)
    holed = frame.assign(**{name: frame[name].mask(lost) for name in ("cvar95", "turnover", "mean_pnl")})
    table, whole = verdict(holed, criteria, diverged=["vrex"]), verdict(frame, criteria)
    assert set(table.loc[table.method == "vrex", "verdict"]) == {"diverged"} and (table.loc[table.method == "vrex", "p"] == 1).all()
    assert table.loc[table.criterion == "beats vrex", "verdict"].tolist() == ["diverged"]
    ours = lambda t: t[(t.method == "irm") & t.criterion.astype(str).str.startswith("H1 crisis")].reset_index(drop=True)
    assert ours(table).p.item() == ours(whole).p.item() and ours(table).verdict.item() == "holds"
    with pytest.raises(ValueError, match="a diverged run is a result"):
        verdict(holed, criteria)


def test_not_significant_is_not_a_tie():
    frame = study({"erm": 1.0, "irm": 1.0}, np.random.default_rng(6), n_seeds=5, spread=0.3)
    assert answers(frame, replace(ONE, seeds=5, ties=(("irm", "erm"),)))["ties erm within 5%", "irm"] == "undecided"


def test_an_undecided_guard_leaves_the_claim_undecided():
    frame = study({"erm": 1.0, "irm": 0.7}, np.random.default_rng(7), turnover={"irm": 1.2})
    said = answers(frame, ONE)
    assert said["H1 crisis cvar95 / erm < 0.9", "irm"] == "holds" and said["H1 with both guards", "irm"] == "undecided"


def test_fewer_seeds_than_registered_is_interim(frame):
    assert verdict(frame, ONE).verdict.str.startswith("interim: ").all()
    assert not verdict(frame, replace(ONE, seeds=6)).verdict.str.startswith("interim").any()


def test_p_values_are_holms_within_a_criterion_and_the_claim_is_the_strictest():
    frame = study({"erm": 1.0, "irm": 0.86, "hirm": 0.87, "vrex": 0.85}, np.random.default_rng(8))
    table = verdict(frame, replace(CRITERIA, methods=("irm", "hirm", "vrex"), ties=(), beats=())).set_index(["criterion", "method"])
    raw = [within(log_ratio(frame, "cvar95", m, "erm", "crisis"), upper=np.log(0.9)).p for m in ("irm", "hirm", "vrex")]
    p = lambda name: table.loc[name, "p"][["irm", "hirm", "vrex"]].to_numpy()
    assert np.allclose(p("H1 crisis cvar95 / erm < 0.9"), holm(raw)) and not np.allclose(holm(raw), raw)
    parts = [p(name) for name in ("H1 crisis cvar95 / erm < 0.9", "guard: turnover / erm < 1.2", "guard: mean P&L - erm > -50 bp of premium")]
    assert (p("H1 with both guards") >= np.max(parts, axis=0) - 1e-15).all()


def test_verdict_ignores_arms_that_were_not_registered(frame):
    delta = frame[frame.method == "erm"].assign(method="delta", cvar95=np.nan)
    pd.testing.assert_frame_equal(verdict(pd.concat([frame, delta]), ONE), verdict(frame, ONE))


def test_identical_arms_tie_and_never_win():
    """The control of identical environments: every method equals ERM to the last bit."""
    erm = study({"erm": 1.0}, np.random.default_rng(9))
    frame = pd.concat([erm, *(erm.assign(method=m) for m in CRITERIA.methods)])
    said = answers(frame, replace(CRITERIA, beats=(), ties=tuple((m, "erm") for m in CRITERIA.methods)))
    assert all(word == {"ties": "holds", "H1": "fails", "H2": "undecided", "guard:": "holds"}[name.split()[0]] for (name, _), word in said.items())


def test_controls_come_out_as_nothing():
    assert {reference for _, reference in CONTROLS.ties} == {"erm", "erm_permuted"}
    names = {"erm", *CONTROLS.methods, *itertools.chain(*CONTROLS.ties)}
    said = answers(study(dict.fromkeys(sorted(names), 1.0), np.random.default_rng(10), spread=0.04), CONTROLS)
    assert all(word == "holds" for (name, _), word in said.items() if name.startswith("ties")) and said["H1 with both guards", "erm_again"] == "fails"


def test_compare_pairs_by_seed():
    frame = study({"erm": 1.0, "irm": 0.8}, np.random.default_rng(11))
    table = compare(frame, np.random.default_rng(0), criteria=ONE, resamples=999)
    row, x = table.loc["irm"], log_ratio(frame, "cvar95", "irm", "erm", "crisis")
    assert row.low < row.ratio < row.high and np.isclose(row.ratio, np.exp(x.mean())) and row.p_sign_flip <= 0.0011 and row.apart
    assert row.low > 0.72 and row.high < 0.88
    again = compare(frame, np.random.default_rng(0), criteria=ONE, resamples=999)
    pd.testing.assert_frame_equal(table, again)


# power

def test_disjoint_intervals_have_five_per_cent_where_the_paired_test_has_ninety():
    rng, n, rho, trials = np.random.default_rng(12), 30, 0.65, 1500
    effect = 2.9974 / np.sqrt(n) * np.sqrt(2 * (1 - rho))  # noncentral t: power 0.90 at one-sided 5 % with 29 degrees of freedom
    assert np.isclose(1 - st.nct.cdf(st.t.ppf(0.95, n - 1), n - 1, 2.9974), 0.9, atol=1e-3)
    z = rng.standard_normal((trials, 3, n))
    reference, method = np.sqrt(rho) * z[:, 0] + np.sqrt(1 - rho) * z[:, 1], np.sqrt(rho) * z[:, 0] + np.sqrt(1 - rho) * z[:, 2] - effect
    paired = np.mean([within(m - r, upper=0.0).p <= 0.05 for m, r in zip(method, reference)])
    flag = np.mean([apart(m, r) for m, r in zip(method, reference)])
    assert abs(paired - 0.9) < 3 * binomial_error(0.9, trials) and abs(flag - 0.05) < 0.01 + 3 * binomial_error(0.05, trials)


# real windows

def days_that_remember(share, n, rng, trials=600):
    days, shocks = np.zeros((trials, n + 50)), rng.standard_normal((trials, n + 50))
    for t in range(1, n + 50): days[:, t] = share * days[:, t - 1] + shocks[:, t]
    return days[:, 50:]


def days_with_clustered_volatility(n, rng, trials=600):
    days, variance = rng.standard_normal((trials, n + 200)), np.ones(trials)
    for t in range(n + 200):
        days[:, t] *= np.sqrt(variance)
        variance = 0.05 + 0.10 * days[:, t] ** 2 + 0.85 * variance
    return days[:, 200:]


@pytest.mark.parametrize("n", [60, 250, 1000])
def test_blocks_of_days_cover_where_independent_days_do_not(n):
    rng = np.random.default_rng(n)
    covered = lambda windows, interval: np.mean([low < 0 < high for low, high, *_ in map(interval, windows)])
    error = 3 * binomial_error(0.95, 600)
    for share, least in ((0.0, 0.948), (0.3, 0.943), (0.6, 0.925)):  # as measured on twenty thousand windows of sixty days, the shortest
        windows = days_that_remember(share, n, rng)
        assert least - error < covered(windows, block_interval) < 0.95 + error
    assert covered(windows, lambda days: within(days)[1:3]) < 0.75
    assert abs(covered(days_with_clustered_volatility(n, rng), block_interval) - 0.95) < error


def test_blocks_are_of_neighbouring_days_and_the_mean_lies_in_the_middle():
    wave = np.repeat([1.0, -1.0], 8)  # eight good days, eight bad ones, again and again
    days = np.tile(wave, 5)[:77]
    low, high, block = block_interval(days)
    assert (low + high) / 2 == pytest.approx(days.mean()) and block == 77 / 8
    means = np.array([part.mean() for part in np.array_split(days, 8)])
    assert (high - low) / 2 == pytest.approx(st.t.ppf(0.975, 7) * means.std(ddof=1) / np.sqrt(8))
    narrow, wide = (np.ptp(block_interval(days, confidence=confidence)[:2]) for confidence in (0.5, 0.99))
    assert narrow < high - low < wide


def test_blocks_of_days_refuse_a_handful():
    for wrong in (np.zeros(19), np.zeros((2, 30)), np.full(30, np.nan)):
        with pytest.raises(ValueError, match="at least 20 days"):
            block_interval(wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert block_interval(np.ones(30)) == (1, 1, 7.5)


# the page and the code say the same

def test_preregistration_holds_the_numbers_of_the_code():
    page = (Path(__file__).parents[1] / "book" / "preregistration.md").read_text()
    written = {name: ast.literal_eval(value) for name, value in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", page, flags=re.M) if hasattr(CRITERIA, name)}
    assert written == asdict(CRITERIA)


def test_the_second_preregistration_holds_the_numbers_of_the_code():
    page = json.loads((Path(__file__).parents[1] / "book" / "preregistration2.ipynb").read_text())
    text = "".join("".join(cell["source"]) + "\n" for cell in page["cells"] if cell["cell_type"] == "markdown")
    written = {name: ast.literal_eval(value) for name, value in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, flags=re.M)}
    assert written == asdict(PLANTED)
    for method, name in (("hirm", "head-only IRM"), ("vrex", "V-REx"), ("irm", "IRM")): assert f"{name} {PENALTIES[method]:g}" in text


# what the labels add

def arms(levels, n_seeds=12, environment="turned", noise=0.02, seed=0):
    "A tidy frame of one metric: arms with a common luck per seed."
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, 0.1, n_seeds)
    rows = [dict(method=m, seed=s, environment=environment, cvar95=level * np.exp(luck[s] + rng.normal(0, noise))) for m, level in levels.items() for s in range(n_seeds)]
    return pd.DataFrame(rows)


FOUR = {"erm": 5.0, "irm": 2.0, "erm_permuted": 4.0, "irm_permuted": 3.2}


def test_ratio_is_rho_times_lambda_and_the_levels_stand_beside():
    table = label_effect(arms(FOUR), "irm", "turned")
    assert table.loc["ratio", "estimate"] == pytest.approx(table.loc["rho", "estimate"] * table.loc["Lambda", "estimate"])
    assert table.loc["Lambda", "estimate"] == pytest.approx(0.4 / 0.8, rel=0.03) and table.loc["rho", "estimate"] == pytest.approx(0.8, rel=0.03)
    exact = label_effect(arms(FOUR, noise=0), "irm", "turned").iloc[0]
    assert exact["irm"] / exact["erm"] == pytest.approx(0.4) and exact["irm_permuted"] / exact["erm_permuted"] == pytest.approx(0.8)


def test_of_many_looks_each_is_held_to_all():
    one, by_chance = arms(FOUR), arms(FOUR | dict(irm=3.85), n_seeds=10, seed=4)
    alone = label_effects({"a": by_chance}, ["irm"], "turned")
    assert alone.iloc[0][["pays", "costs"]].tolist() == [alone["high"].iloc[0] < 1, alone["low"].iloc[0] > 1]
    assert alone.loc[("a", "irm"), ["estimate", "low", "high"]].tolist() == label_effect(by_chance, "irm", "turned").loc["Lambda", ["estimate", "low", "high"]].tolist()
    many = label_effects({"one": one, **{f"place {i}": by_chance for i in range(19)}}, ["irm"], "turned")
    assert len(many) == 20 and many.loc[("one", "irm"), "pays"] and not many["costs"].any()
    strict = label_effect(by_chance, "irm", "turned", alpha=0.025 / 20).loc["Lambda"]
    assert many.loc[("place 0", "irm"), "high"] == alone["high"].iloc[0] < 1 < strict["high"]  # what stands beside is the single interval
    assert alone["pays"].iloc[0] and not many.loc[("place 0", "irm"), "pays"]


def test_lambda_is_paired_by_seed():
    narrow, wide = (label_effect(frame, "irm", "turned").loc["Lambda"] for frame in (arms(FOUR), arms(FOUR, noise=0.1)))
    assert narrow["high"] - narrow["low"] < 0.3 * (wide["high"] - wide["low"])  # the common luck of a seed is gone


@pytest.mark.parametrize("law", ("normal", "t"))
def test_the_interval_of_lambda_covers_what_it_says(law):
    rng, hits = np.random.default_rng(1), 0
    draw = (lambda: rng.normal(0, 0.2, 10)) if law == "normal" else (lambda: 0.1 * rng.standard_t(3, 10))
    for _ in range(250):
        logs = {m: np.log(level) + draw() for m, level in FOUR.items()}
        frame = pd.concat([pd.DataFrame({"method": m, "seed": range(10), "environment": "turned", "cvar95": np.exp(x)}) for m, x in logs.items()])
        low, high = label_effect(frame, "irm", "turned").loc["Lambda", ["low", "high"]]
        hits += low < 0.5 < high
    assert 0.91 < hits / 250 <= 0.99  # three standard errors are 0.041


def test_a_twin_without_a_seed_is_refused():
    frame = arms(FOUR)
    with pytest.raises(ValueError, match="lacks seed"):
        label_effect(frame[~((frame["method"] == "irm_permuted") & (frame["seed"] == 3))], "irm", "turned")
    lost = frame["method"].isin(["irm_permuted", "erm_permuted"]) & (frame["seed"] == 3)
    with pytest.raises(ValueError, match=r"seed\(s\) \[3\] on one side"):
        label_effect(frame[~lost], "irm", "turned")


def test_the_slope_over_the_dose_is_a_seeds_own():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 5, 10)  # what differs between seeds and not between doses is no noise
    claim = dose_slope(pd.DataFrame({d: level - 2 * d + rng.normal(0, 0.01, 10) for d in (0, 0.1, 0.2, 0.4)}))
    assert claim.estimate == pytest.approx(-2, abs=0.1) and claim.p < 1e-6
    assert dose_slope(pd.DataFrame({d: level + 2 * d for d in (0, 0.1, 0.2)})).p > 0.999
    with pytest.raises(ValueError, match="three doses"):
        dose_slope(pd.DataFrame({0.0: [1.0, 2, 3], 0.1: [1.0, 2, 3]}))


def planted_frame(curves, n_seeds=30, noise=0.02):
    "Every arm's risk over the whole range of strengths."
    frames = [arms({m: levels[i] for m, levels in curves.items()}, n_seeds, e, noise, seed=i) for i, e in enumerate(PLANTED.environments)]
    return pd.concat(frames, ignore_index=True)


BLIND = (1.4, 1.25, 1.35, 1.5, 1.7, 2.0)
BAIT = (0.3, 1.2, 2.1, 3.0, 4.0, 5.2)
CONTRARIAN = (2.6, 1.8, 1.6, 1.5, 1.3, 1.2)


def test_regret_is_the_worst_ratio_over_the_whole_range():
    frame = planted_frame({"erm_blind": BLIND, "erm": BAIT, "irm": CONTRARIAN}, noise=0)
    assert regret(frame, "erm", "erm_blind", PLANTED.environments).mean() == pytest.approx(5.2 / 2.0)
    assert regret(frame, "irm", "erm_blind", PLANTED.environments).mean() == pytest.approx(2.6 / 1.4)  # best where it turned, and no invariance
    assert (regret(frame, "erm_blind", "erm_blind", PLANTED.environments) == 1).all()


def test_the_planted_verdict_asks_for_both_and_sees_a_contrarian():
    flat = tuple(1.05 * x for x in BLIND)
    curves = {"erm_blind": BLIND, "erm": BAIT, "hirm": flat, "hirm_permuted": BAIT, "vrex": flat, "vrex_permuted": flat, "irm": CONTRARIAN, "irm_permuted": CONTRARIAN}
    table = planted_verdict(planted_frame(curves), np.random.default_rng(0))
    assert table.loc["hirm", "verdict"] == "holds" and table.loc["hirm", "flat"] == 1
    assert table.loc["vrex", "verdict"] == "not shown"  # its twin is as flat: regularisation
    assert table.loc["irm", "flat"] == 0 and table.loc["irm", "to_erm"] < 0.9 and table.loc["irm", "verdict"] == "not shown"
    few = planted_verdict(planted_frame(curves, n_seeds=10), np.random.default_rng(0))
    assert few["verdict"].str.startswith("interim: ").all()


def test_a_regret_just_inside_the_margin_is_not_shown():
    curves = {"erm_blind": BLIND, "erm": BAIT, "hirm": tuple(0.93 * x for x in BAIT), "hirm_permuted": BAIT}
    frame = planted_frame(curves)
    assert planted_verdict(frame, np.random.default_rng(0), replace(PLANTED, others=())).loc["hirm", "verdict"] == "not shown"


@pytest.mark.parametrize("wrong, message", ((dict(improvement=10), "for 10 % write 0.10"), (dict(flat=0.9), "flat must be above 1"), (dict(seeds=2), "at least 3")))
def test_planted_criteria_in_per_cent_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Planted(**wrong)


def test_a_group_is_compared_with_the_single_members_of_its_own_seeds():
    members = pd.DataFrame([dict(method="erm", seed=seed, environment=place, cvar95=1.0 + seed) for seed in range(4) for place in ("crisis", "high")])
    groups = pd.DataFrame([dict(method="blind", seed=first, environment="crisis", cvar95=risk) for first, risk in ((0, 1.5), (2, 7.0))])
    ratios = np.exp(group_log_ratio(members, groups, "blind", "erm", "crisis", size=2))
    assert ratios.to_dict() == pytest.approx({0: 1.0, 2: 2.0})
    with pytest.raises(ValueError, match=r"erm must have every seed of a group, got none of \[4, 5\]"):
        group_log_ratio(members, groups.assign(seed=[0, 3]), "blind", "erm", "crisis", size=3)
    with pytest.raises(ValueError, match=r"groups of blind must share no seed, got first seeds \[0, 1\] in groups of 2"):
        group_log_ratio(members, groups.assign(seed=[0, 1]), "blind", "erm", "crisis", size=2)
    with pytest.raises(ValueError, match="is not finite"):
        group_log_ratio(members, groups.assign(cvar95=[1.0, np.nan]), "blind", "erm", "crisis", size=2)


def test_side_by_side_members_and_groups_stand_against_the_baseline_of_their_own_seeds():
    members = pd.DataFrame([dict(method=method, seed=seed, environment="crisis", cvar95=times * (1.0 + seed)) for seed in range(6) for method, times in (("erm", 1.0), ("blind", 0.8))])
    members = members[(members["method"] == "erm") | (members["seed"] < 4)]
    groups = pd.DataFrame([dict(method="blind", hedger="ensemble", seed=first, environment="crisis", cvar95=0.5 * (first + 1.5)) for first in (0, 2, 4)])
    table = side_by_side(members, groups, "crisis", ["erm", "blind"], size=2)
    assert table.loc[("blind", "member"), "ratio"] == pytest.approx(0.8) and table.loc[("blind", "member"), "n"] == 4
    assert table.loc[("blind", "ensemble"), ["ratio", "low", "high"]].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert table.loc[("erm", "member"), "ratio"] == 1
    two = side_by_side(members, groups[groups["seed"] < 4], "crisis", ["blind"], size=2)
    assert np.isnan(two.loc[("blind", "ensemble"), "low"])
    with pytest.raises(ValueError, match=r"erm lacks seed\(s\) \[7\] in crisis which blind has"):
        side_by_side(members.assign(seed=members["seed"].mask(members["method"] == "blind", 7)), groups, "crisis", ["blind"], size=2)
