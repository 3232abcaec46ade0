"""What a page prints: numbers that a reader can read, and sentences that fit how many names there are."""
import pandas as pd
import pytest

from hirm.history import Windows
from hirm.tables import (answer, band_table, beaten, books_table, bracketed, dates_table, digits, from_to, in_time, in_words, listed, p_value, ratio_table, repeated,
                         validation_table)


@pytest.mark.parametrize("value, text", [(-0.0, "0.00"), (-1e-300, ">-0.0001"), (1e-6, "<0.0001"), (-1e-6, ">-0.0001"), (0.000123, "0.000123"), (-0.00012, "-0.000120")])
def test_a_zero_has_no_sign_and_nothing_is_printed_as_a_row_of_zeros(value, text):
    assert digits(value) == text


@pytest.mark.parametrize("p, text", [(0.0, "<0.001"), (0.00099, "<0.001"), (0.001, "0.001"), (1.0, "1.000")])
def test_no_p_value_is_nought(p, text):
    assert p_value(p) == text


def test_an_interval_stands_beside_its_estimate():
    assert bracketed(0.9468, 0.9247, 0.9695) == bracketed(0.9468, 0.9247, 0.9695, 0.03, False) == "0.947 [0.925, 0.970]"


@pytest.mark.parametrize("names, text", [([], "Nobody won."), (["irm"], "irm alone won."), (["irm", "hirm"], "irm and hirm won, 2 of them."),
                                         (["irm", "hirm", "vrex"], "irm, hirm and vrex won, 3 of them.")])
def test_a_sentence_has_a_form_for_none_one_and_many(names, text):
    assert listed(names, "Nobody won.", "{names} alone won.", "{names} won, {n} of them.") == text


# ---- against delta ---------------------------------------------------------------------------------------------------------------

def judged(**losses):
    "Metrics of some methods in three environments, one row per seed."
    rows = [dict(method=method, seed=seed, environment=name, cvar95=loss) for method, by_seed in losses.items() for seed, each in enumerate(by_seed)
            for name, loss in zip(("crisis", "gfc", "covid"), each)]
    return pd.DataFrame(rows)


FRAME = judged(delta=[(0.04, 0.08, 0.05)], no_hedge=[(0.4, 0.8, 0.5)], irm=[(0.03, 0.08, 0.06), (0.05, 0.08, 0.07)], blend=[(0.03, 0.072, 0.02)])


def test_ratios_to_delta_with_their_range():
    table = ratio_table(FRAME)
    assert list(table.index) == ["crisis", "gfc", "covid"] and list(table) == ["irm", "blend"]
    assert list(table["irm"]) == ["1.00 (0.750–1.25)", "1.00 (1.00–1.00)", "1.30 (1.20–1.40)"] and list(table["blend"]) == ["0.750", "0.900", "0.400"]
    gain = FRAME.assign(cvar95=FRAME["cvar95"].where(FRAME["environment"] != "gfc", -0.01))
    assert list(ratio_table(gain).loc["gfc"]) == ["–", "–"]  # no ratio to a tail that is no loss
    with pytest.raises(ValueError, match="no rows of the reference 'whalley_wilmott'; got blend, delta, irm, no_hedge"):
        ratio_table(FRAME, "whalley_wilmott")


@pytest.mark.parametrize("losses, says", [
    ((0.03, 0.06, 0.04), "In all three crises this hedger loses less than delta in its worst 5 % of cases: 25 % less in crisis, 25 % less in gfc and 20 % less in covid."),
    ((0.03, 0.06, 0.06), "In two of three crises this hedger loses less than delta in its worst 5 % of cases: 25 % less in crisis and 25 % less in gfc; 20 % more in covid."),
    ((0.05, 0.06, 0.05), "In one of three crises this hedger loses less than delta in its worst 5 % of cases: 25 % less in gfc; 25 % more in crisis; as much in covid."),
    ((0.05, 0.088, 0.05001), "In none of the three crises does this hedger lose less than delta in its worst 5 % of cases: 25 % more in crisis and 10 % more in gfc; as much in covid."),
])
def test_the_answer_has_a_form_for_none_one_many_and_all(losses, says):
    frame = judged(delta=[(0.04, 0.08, 0.05)], mine=[losses])
    assert answer(beaten(frame, "mine", ["crisis", "gfc", "covid"])) == says


def test_the_answer_for_a_single_crisis_and_for_a_tail_that_is_no_loss():
    frame = judged(delta=[(0.04, -0.02, 0.05)], mine=[(0.03, -0.01, 0.05)])
    assert answer(beaten(frame, "mine", ["crisis"])) == "In the one crisis this hedger loses less than delta in its worst 5 % of cases: 25 % less in crisis."
    assert answer(beaten(frame, "mine", ["covid"])).startswith("In the one crisis this hedger does not lose less than delta")
    assert beaten(frame, "mine", ["gfc"]).to_dict() == {"gfc": pytest.approx(0.5)}  # delta gains 2 % even there, and it half as much


@pytest.mark.parametrize("wrong, says", [
    (dict(environments=["crisis", "1929"]), "the frame lacks 1929; it holds crisis, gfc, covid and delta, mine"), (dict(hedger="erm"), "the frame lacks erm"),
])
def test_what_was_not_judged_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        beaten(judged(delta=[(0.04, 0.08, 0.05)], mine=[(0.03, 0.06, 0.04)]), **dict(hedger="mine", environments=["crisis"]) | wrong)


def test_no_sentence_without_numbers():
    for change in (pd.Series(dtype=float), pd.Series({"crisis": float("nan")})):
        with pytest.raises(ValueError, match="one finite change per crisis"):
            answer(change)


def test_numbers_in_words():
    assert [in_words(n) for n in (0, 1, 12, 13)] == ["no", "one", "twelve", "13"]


def test_how_many_of_each_is_one_number_where_all_are_alike():
    assert [from_to(counts) for counts in ([3], [10, 3, 5], iter([10, 10]), [30, 12])] == ["three", "three to ten", "ten", "twelve to 30"]


# ---- what a hedger does, and when ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seconds, text", [(3, "10 seconds"), (41, "50 seconds"), (89, "90 seconds"), (118, "2 minutes"), (640, "11 minutes"), (5399, "90 minutes"), (9000, "2 hours")])
def test_a_time_as_a_person_would_say_it(seconds, text):
    assert in_time(seconds) == text


def test_the_dates_of_recorded_environments():
    table = dates_table({"volmageddon": Windows(start="2018-02-01", end="2018-03-31")})
    assert table.loc["volmageddon"].to_dict() == {"first start": "2018-02-01", "last start": "2018-03-29", "last day": "2018-06-25", "windows": "40", "independent": "1.3"}


def test_a_band_as_text():
    points = pd.DataFrame({"method": "irm", "vol": [0.18, 0.18, 0.55, 0.55], "days": 10, "moneyness": [1.0, 1.05] * 2, "delta": [0.51, 0.92, 0.52, 0.69],
                           "lower": [0.4712, 0.9, 0.5, 0.6], "upper": [0.5, 0.95, 0.53, 0.7]})
    table = band_table(points)
    assert table.loc[("18", 10), 1.0] == "0.47–0.50 (delta 0.51)" and table.loc[("55", 10), 1.05] == "0.60–0.70 (delta 0.69)" and table.shape == (2, 2)


@pytest.mark.parametrize("lowest, shown", [(7, ["2020-03-09", "2020-03-10", "2020-03-11"]), (1, ["2020-03-02", "2020-03-03", "2020-03-04"]), (11, ["2020-03-13", "2020-03-16", "2020-03-17"])])
def test_books_end_on_the_day_of_the_lowest_price(lowest, shown):
    days = pd.bdate_range("2020-03-02", periods=12)
    spot = [0.7 if day == lowest else 1.0 for day in range(12)]
    rows = {"date": days, "spot": spot, "delta": 0.5, "position": 0.45, "trade": -0.02, "pnl": -0.0123}
    table = books_table(pd.concat([pd.DataFrame({"method": "irm", **rows}), pd.DataFrame({"method": "delta", **rows}).assign(pnl=-0.02)]), n_days=3)
    assert list(table.index) == shown
    assert table.iloc[0].drop("price (%)").to_dict() == {"delta": "0.500", "position": "0.450", "trade": "-0.020", "P&L (%)": "-1.23", "P&L of delta (%)": "-2.00"}


def test_what_a_hedger_was_chosen_by():
    table = validation_table(pd.DataFrame({"hedger": ["delta", "blend"], "scale": [float("nan"), 0.01], "risk": [0.02378, 0.02307], "chosen": [False, True]}))
    assert table.values.tolist() == [["delta", "–", "2.38", ""], ["blend", "0.01", "2.31", "chosen"]]


def test_repeated_hedgers_are_counted_crisis_by_crisis():
    rows = [dict(method="erm", seed=seed, environment=name, cvar95=loss) for name, losses in (("gfc", (3, 4, 6)), ("covid", (1, 1, 1)), ("bear_2022", (9, 9, 9)))
            for seed, loss in enumerate(losses)]
    rows += [dict(method="delta", seed=0, environment=name, cvar95=5) for name in ("gfc", "covid", "bear_2022")]
    frame = pd.DataFrame(rows)
    said = repeated(frame, "erm", ["gfc", "covid", "bear_2022"])
    assert said == "Of three such hedgers all lose less than delta in covid; two in gfc; none in bear_2022."
    assert repeated(frame, "erm", ["gfc"]) == "Of three such hedgers two lose less than delta in gfc."
