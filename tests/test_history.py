"The record: nothing shared between learning and judging, nothing from the future, every bad file refused."
import dataclasses
import datetime
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import HANGS
from hirm.history import (
    BANDS, CRISES, EWMA, VarianceRule, Windows, calendar, calendar_windows, effective_number, load_series, train_end, training_windows,
    trailing_vol, variance_rule, worst_stretches,
)

SP500 = load_series("sp500")
DAY = 1 / 252


def csv(folder, frame, name="mine.csv"):
    path = folder / name
    frame.to_csv(path, index=False)
    return str(path)


def invented(n_rows, start="2010-01-04", vol=0.16, seed=0):
    "A random walk on business days."
    step = np.random.default_rng(seed).normal(0, vol / 252**0.5, n_rows)
    return pd.DataFrame({"date": pd.bdate_range(start, periods=n_rows).strftime("%Y-%m-%d"), "close": 100 * np.exp(np.cumsum(step))})


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def known_days(date, windows):
    "Every day whose close a window knows or lives through, found by counting 20 back and 60 on in the calendar."
    position = {day: row for row, day in enumerate(date)}
    return {date[k] for start in windows.dates for k in range(position[start] - 20, position[start] + 61)}


# ---- the record ----------------------------------------------------------------------------------------------------------------

def test_the_record_holds_the_worst_days():
    close = SP500.set_index("date")["close"]
    fall = close.pct_change()
    assert len(close) == 8313 and str(close.index[0].date()) == "1990-01-02" and str(close.index[-1].date()) == "2022-12-28"
    assert str(fall.idxmin().date()) == "2020-03-16" and fall.min() == pytest.approx(-0.1198, abs=1e-4)
    assert fall["2018-02-05"] == pytest.approx(-0.0410, abs=1e-4)
    assert fall["2008-10-15"] == pytest.approx(-0.0903, abs=1e-4)


def test_the_record_agrees_with_arch():
    from arch.data import sp500

    other = sp500.load()["Close"]
    close = SP500.set_index("date")["close"].reindex(other.index)
    assert len(other) > 5000 and float((close / other - 1).abs().max()) < 1e-6


# ---- learning and judging apart ------------------------------------------------------------------------------------------------

def test_no_training_window_shares_a_day_with_a_test_window():
    date = list(SP500["date"])
    judged = set.union(*(known_days(date, windows) for windows in calendar_windows("sp500").values()))
    for name, windows in training_windows("sp500").items():
        learnt = known_days(date, windows)
        assert not learnt & judged, name
        assert max(learnt) <= pd.Timestamp("2017-12-31")
        assert len(windows.dates) > 1000


def test_the_exclusion_is_not_wider_than_needed():
    "The last window before gfc ends on the eve of gfc's first past close, the next one starts its past after gfc's last close."
    date = list(SP500["date"])
    gfc = Windows(start=CRISES["gfc"][0], end=CRISES["gfc"][1])
    judged = known_days(date, gfc)
    free = Windows(until="2017-12-31", exclude=(CRISES["gfc"],))
    before, after = (row for row in (free.dates[free.dates < min(judged)].max(), free.dates[free.dates > max(judged)].min()))
    assert date.index(before) + 60 == date.index(min(judged)) - 1
    assert date.index(after) - 20 == date.index(max(judged)) + 1


def test_crises_start_in_their_days_and_may_outlive_them():
    starts = {name: windows.dates for name, windows in calendar_windows("sp500").items()}
    assert list(starts) == list(CRISES)
    for name, (first, last) in CRISES.items():
        assert starts[name].min() >= pd.Timestamp(first) and starts[name].max() <= pd.Timestamp(last)
    traded = SP500["date"]
    for name in ("gfc", "volmageddon", "covid"):
        assert len(starts[name]) == traded.between(*CRISES[name]).sum()
    assert len(starts["volmageddon"]) == 40 and len(starts["covid"]) == 94 and len(starts["gfc"]) == 146
    bear = calendar_windows("sp500")["bear_2022"].spans
    assert bear["last"].max() == traded.iloc[-1] and bear["start"].max() == pd.Timestamp("2022-10-03")


def test_covid_holds_the_worst_day_and_volmageddon_its_fall():
    for name, fall in (("covid", -0.1198), ("volmageddon", -0.0410)):
        spot = calendar_windows("sp500")[name].paths(dtype=torch.float64).spot
        assert float((spot[..., 1:] / spot[..., :-1] - 1).min()) == pytest.approx(fall, abs=1e-4)


# ---- windows as paths ----------------------------------------------------------------------------------------------------------

def test_a_window_is_the_record_rescaled():
    windows = Windows(start="2020-02-19", end="2020-02-19")
    paths = windows.paths(dtype=torch.float64)
    row = int(np.flatnonzero(SP500["date"] == "2020-02-19")[0])
    close = SP500["close"].to_numpy()
    assert paths.spot.shape == (1, 1, 61) and paths.past.shape == (1, 1, 20) and paths.dt == DAY
    np.testing.assert_allclose(paths.spot[0, 0], close[row:row + 61] / close[row], rtol=1e-14)
    np.testing.assert_allclose(paths.past[0, 0], np.diff(np.log(close[row - 20:row + 1])), rtol=1e-9)


def test_bands_hold_the_trailing_vol_that_the_hedger_sees():
    for name, windows in training_windows("sp500").items():
        low, high = BANDS[name.removeprefix("history_")]
        past = windows.paths(dtype=torch.float64).past
        vol = (252 * past.square().mean(-1)).sqrt()
        assert float(vol.min()) >= low - 1e-12 and float(vol.max()) < high + 1e-12
    everything = len(Windows().dates)
    assert everything == sum(len(Windows(low=low, high=high).dates) for low, high in BANDS.values()) == 8313 - 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_layout(dtype):
    paths = Windows().simulate(7, 60, DAY, generators(0, 1), dtype=dtype)
    for part, dates in ((paths.spot, 61), (paths.variance, 61), (paths.iv, 61), (paths.past, 20)):
        assert part.dtype == dtype and part.shape == (2, 7, dates)
        assert part.transpose(-1, -2).is_contiguous() and torch.isfinite(part).all()
    assert bool((paths.spot[..., 0] == 1).all()) and float(paths.iv.min()) > 0


def test_a_member_draws_alone_as_among_others():
    windows = Windows(start="2005-01-01", end="2007-01-01")
    three = windows.simulate(50, 60, DAY, generators(3, 5, 9))
    alone = windows.simulate(50, 60, DAY, generators(5))
    single = windows.simulate(50, 60, DAY, generators(5)[0])
    for part in ("spot", "variance", "iv", "past"):
        assert torch.equal(getattr(three, part)[1:2], getattr(alone, part)) and torch.equal(getattr(alone, part), getattr(single, part))
    assert not torch.equal(three.spot[0], three.spot[1])


def test_a_shorter_past_is_the_newest_part():
    long, short = (Windows().simulate(9, 60, DAY, generators(4), n_past=n) for n in (20, 5))
    assert torch.equal(short.past, long.past[..., -5:]) and torch.equal(short.spot, long.spot)
    assert Windows(n_past=5).dates[0] == Windows().dates[0]  # 20 returns seed the rule and the band, however few are shown


def test_draws_are_uniform_with_replacement():
    windows = Windows(start="2018-02-01", end="2018-02-14")
    n_windows, n_paths = len(windows.dates), 20_000
    last = windows.paths(dtype=torch.float64).spot[0, :, -1]
    drawn = windows.simulate(n_paths, 60, DAY, generators(0), dtype=torch.float64).spot[0, :, -1]
    counts = (drawn[:, None] == last).sum(0).double()
    assert int(counts.sum()) == n_paths
    expected, error = n_paths / n_windows, (n_paths / n_windows * (1 - 1 / n_windows)) ** 0.5
    assert float((counts - expected).abs().max()) < 4 * error


def test_drawing_does_not_move_the_record():
    windows = Windows(start="2018-02-01", end="2018-02-14")
    before = windows.paths().spot.clone()
    windows.simulate(10, 60, DAY, generators(0)).spot.mul_(2)
    assert torch.equal(windows.paths().spot, before)


# ---- number of episodes --------------------------------------------------------------------------------------------------------

def test_effective_number():
    assert effective_number(np.array([0]), 60) == pytest.approx(1)
    assert effective_number(np.array([0, 60, 200]), 60) == pytest.approx(3)
    assert effective_number(np.array([5, 7]), 4) == pytest.approx(4 / 3)
    assert effective_number(np.arange(24), 60) == pytest.approx(1.2, abs=0.05)  # 84 closes
    assert Windows(start="2018-02-01", end="2018-03-31").n_effective == pytest.approx(1.3, abs=0.05)


def test_effective_number_is_the_variance_ratio():
    "Averages of overlapping sums of noise vary as n_effective independent ones do."
    rows, n_steps, n_trials = np.array([0, 3, 4, 5, 17, 18, 40]), 10, 40_000
    noise = np.random.default_rng(0).normal(size=(n_trials, 60)).cumsum(1)
    noise = np.concatenate([np.zeros((n_trials, 1)), noise], 1)
    average = (noise[:, rows + n_steps] - noise[:, rows]).mean(1)
    measured = n_steps / average.var()
    assert measured == pytest.approx(effective_number(rows, n_steps), rel=4 * (2 / n_trials) ** 0.5)


# ---- the implied-vol rule ------------------------------------------------------------------------------------------------------

def test_quotes_do_not_know_the_future():
    close, rule, t = SP500["close"].to_numpy(), variance_rule("sp500"), 5000
    doubled = np.where(np.arange(len(close)) > t, 2 * close, close)
    for r in (rule, EWMA):
        was, now = r.one_day(close), r.one_day(doubled)
        assert np.array_equal(was[:t + 1], now[:t + 1]) and not np.isclose(was[t + 1], now[t + 1])


def test_the_rule_is_fitted_before_the_first_test_day(tmp_path):
    close = SP500["close"].where(SP500["date"] < "2008-09-01", SP500["close"] * (1 + SP500.index % 2))
    path = csv(tmp_path, SP500.assign(close=close))
    with pytest.warns(UserWarning, match="a fifth or more in a day"):
        assert variance_rule(path) == variance_rule("sp500") != EWMA
    earlier = SP500["close"].where(SP500["date"] != "2008-08-20", SP500["close"] * 1.2)
    assert variance_rule(csv(tmp_path, SP500.assign(close=earlier), "moved.csv")) != variance_rule("sp500")


@pytest.mark.parametrize("size", [0.05, 0.2, 1.0, 3.0])
def test_the_rule_does_not_depend_on_the_size_of_returns(tmp_path, size):
    close = 100 * np.exp(size * np.log(SP500["close"] / SP500["close"].iloc[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three times a crash is a leap
        rule = variance_rule(csv(tmp_path, SP500.assign(close=close)))
    assert (rule.alpha, rule.gamma, rule.beta) == (0.001863, 0.1076, 0.9341)
    assert rule.omega == pytest.approx(1.118e-6 * size**2, rel=1e-3)


def test_a_fit_that_does_not_move_is_not_taken(tmp_path, monkeypatch):
    from arch.univariate.base import ARCHModel

    path, fit = csv(tmp_path, invented(2600, "2000-01-03")), ARCHModel.fit
    monkeypatch.setattr(ARCHModel, "fit", lambda model, **options: fit(model, **options | {"options": {"maxiter": 1, "ftol": 1e9}}))
    with pytest.warns(UserWarning, match="a fit that did not converge or never moved .* EWMA with 0.94"):
        assert variance_rule(path) == EWMA


def test_recursion_and_average_match_their_definition():
    rule = VarianceRule(2e-6, 0.03, 0.1, 0.9)
    close = SP500["close"].to_numpy()[:200]
    r = np.diff(np.log(close), prepend=np.log(close[0]))
    v = np.mean(r[1:21] ** 2)
    for t in range(21, 200):
        v = rule.omega + (rule.alpha + rule.gamma * (r[t] < 0)) * r[t] ** 2 + rule.beta * v
    assert rule.one_day(close)[-1] == pytest.approx(252 * v, rel=1e-12)
    ahead = [252 * v]
    for _ in range(29):
        ahead.append(252 * rule.omega + rule.persistence * ahead[-1])
    assert rule.average(252 * v, 30) == pytest.approx(np.mean(ahead), rel=1e-12)
    assert rule.average(252 * v, 0) == rule.average(252 * v, 1) == pytest.approx(252 * v)
    assert EWMA.average(0.04, 60) == pytest.approx(0.04)


def test_the_quote_looks_to_expiry():
    "iv² at t averages the forecast over the days left, so it ends at the one-day variance."
    paths = Windows(start="2020-03-02", end="2020-03-20").paths(dtype=torch.float64)
    torch.testing.assert_close(paths.iv[..., -1] ** 2, paths.variance[..., -1])
    torch.testing.assert_close(paths.iv[..., -2] ** 2, paths.variance[..., -2])
    rule = variance_rule("sp500")
    torch.testing.assert_close(paths.iv[..., 0] ** 2, rule.average(paths.variance[..., 0], 60))
    assert float((paths.iv[..., 0] ** 2 / paths.variance[..., 0]).max()) < 1  # panic fades


# ---- own data ------------------------------------------------------------------------------------------------------------------

def test_a_csv_of_the_record_is_the_record(tmp_path):
    path = csv(tmp_path, SP500)
    assert calendar(path) == calendar("sp500") and train_end(path) == train_end("sp500") == "2017-12-31"
    ours, theirs = training_windows(path), training_windows("sp500")
    assert list(ours) == list(theirs) == ["history_low", "history_medium"]
    for name in ours:
        torch.testing.assert_close(ours[name].paths().iv, theirs[name].paths().iv)
        torch.testing.assert_close(ours[name].paths().spot, theirs[name].paths().spot)


@pytest.mark.parametrize("n_rows, start, vol", [(252, "2023-01-02", 0.16), (900, "2021-01-04", 0.7), (2600, "2015-01-02", 0.16), (2000, "2000-01-03", 0.05)])
def test_a_series_of_ones_own_gets_apart_sets(tmp_path, n_rows, start, vol):
    frame = invented(n_rows, start, vol)
    path, date = csv(tmp_path, frame), list(pd.to_datetime(frame["date"]))
    judged = set.union(*(known_days(date, windows) for windows in calendar_windows(path).values()))
    for windows in training_windows(path).values():
        learnt = known_days(date, windows)
        assert len(windows.dates) >= 20 and not learnt & judged and max(learnt) <= pd.Timestamp(train_end(path))
    assert "holdout" in calendar(path)


def test_the_calendar_keeps_the_crises_that_a_series_can_show(tmp_path):
    path = csv(tmp_path, invented(2600, "2015-01-02"))
    assert list(calendar(path)) == ["volmageddon", "covid", "bear_2022", "holdout"]
    assert calendar(path)["covid"] == CRISES["covid"]
    assert train_end(path) == str(pd.bdate_range("2015-01-02", periods=2600)[1820].date())


def test_quoted_implied_vol_is_taken(tmp_path):
    frame = invented(300)
    frame["implied_vol"] = 0.2 + 0.001 * np.arange(300)
    paths = Windows(csv(tmp_path, frame)).paths(dtype=torch.float64)
    np.testing.assert_allclose(paths.iv[0, 0], 0.2 + 0.001 * np.arange(20, 81))


def test_an_edited_file_is_read_again(tmp_path):
    import os

    path = csv(tmp_path, invented(300))
    first = Windows(path).paths().spot
    csv(tmp_path, invented(300, seed=1))
    os.utime(path, ns=(0, 1))
    assert not torch.equal(first, Windows(path).paths().spot)


# ---- bad input -----------------------------------------------------------------------------------------------------------------

def put(column, row, value):
    def change(frame):
        frame = frame.astype({column: object}) if column in frame else frame.assign(**{column: 0.2}).astype({column: object})
        frame.loc[row, column] = value
        return frame
    return change


BAD = {
    "missing column": (lambda f: f.rename(columns={"close": "price"}), "needs the columns date and close, got date, price; add or rename the column close"),
    "no date": (lambda f: f.drop(columns="date"), "add or rename the column date"),
    "unparsable": (put("date", 4, "soon"), "every date must be a day, got 'soon' in row 6 .*write dates like 2020-03-16"),
    "blank date": (put("date", 4, ""), "every date must be a day, got an empty cell in row 6"),
    "day first": (put("date", 7, "13/01/2010"), "every date must be a day, got '13/01/2010' in row 9"),
    "unsorted": (lambda f: f.iloc[::-1], r"dates must increase \(unsorted\), got .* in row 3 .*oldest first"),
    "duplicate": (lambda f: pd.concat([f.iloc[:5], f.iloc[4:]]), "each date must occur once .* in row 7 .*keep one close per day"),
    "zero": (put("close", 0, 0.0), "every close must be a positive finite number, got '0.0' in row 2"),
    "negative": (put("close", 9, -3.5), "positive finite number, got '-3.5' in row 11"),
    "NaN": (put("close", 9, "NaN"), "positive finite number, got 'NaN' in row 11"),
    "blank": (put("close", 9, ""), "positive finite number, got an empty cell in row 11"),
    "infinite": (put("close", 9, "inf"), "positive finite number, got 'inf' in row 11"),
    "separator": (put("close", 9, "1,234.5"), "got '1,234.5' in row 11 .*without separators"),
    "constant": (lambda f: f.assign(close=100.0), "close must move on most days, got 299 of 300 unchanged; give daily traded prices"),
    "stale": (lambda f: f.assign(close=100.0 + np.arange(300) // 3), "close must move on most days, got 200 of 300 unchanged"),
    "too few": (lambda f: f.iloc[:100], "at least 252 daily closes .* got 100: too few rows; give a longer series"),
    "no rows": (lambda f: f.iloc[:0], "got 0: too few rows"),
    "per cent": (put("implied_vol", 3, 20.0), r"implied_vol must lie in \(0, 5\), .* got '20.0' in row 5 .*write 20 % as 0.20"),
    "zero vol": (put("implied_vol", 3, 0.0), "implied_vol must lie in .* got '0.0' in row 5"),
    "blank vol": (put("implied_vol", 3, ""), "implied_vol must lie in .* got an empty cell in row 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_row_and_cure(tmp_path, case):
    change, message = BAD[case]
    path = csv(tmp_path, change(invented(300)))
    with pytest.raises(ValueError, match=message) as caught:
        load_series(path)
    assert path in str(caught.value)
    with pytest.raises(ValueError):
        Windows(path).dates


def test_a_row_with_a_cell_too_few_is_refused_for_which_one_is_missing_cannot_be_told(tmp_path):
    rows = invented(300).assign(open=lambda f: f["close"], factor=1.0)[["date", "open", "close", "factor"]]
    lines = rows.to_csv(index=False).splitlines()
    lines[9] = ",".join(lines[9].split(",")[:1] + lines[9].split(",")[2:])
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"rows have fewer cells than the header, which has 4, got '3' in row 10 \(1 such\); write a separator where a cell is empty"): load_series(tmp_path / "mine.csv")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be 'sp500' or the path of a CSV file, got 'nowhere.csv'.*check the path"):
        load_series("nowhere.csv")
    with pytest.raises(FileNotFoundError):
        load_series(tmp_path)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bytes.csv").write_bytes(bytes(range(128, 256)))
    for name in ("empty.csv", "bytes.csv"):
        with pytest.raises(ValueError, match="must be a comma-separated text file.*save it as CSV"):
            load_series(tmp_path / name)


# ---- what can be read in one way only ------------------------------------------------------------------------------------------

def lines(frame, separator=",", decimal=".", header=None):
    text = frame.to_csv(index=False, sep=separator, decimal=decimal, float_format="%.4f")
    return text if header is None else header + text[text.index("\n"):]


def stamped(suffix):
    return lambda f: lines(f.assign(date=f["date"] + suffix))


def london(f):
    day = pd.to_datetime(f["date"]).dt.tz_localize("Europe/London")
    return lines(f.assign(date=day.map(lambda t: t.isoformat(" "))))


def yfinance(f, first="Price,Close,Volume", second="Ticker,ABC,ABC"):
    return f"{first}\n{second}\nDate,,\n" + lines(f.assign(volume=0)).split("\n", 1)[1]


READ = {
    "time of the close": stamped(" 16:00:00"), "minutes": stamped("T16:00"), "Tokyo": stamped(" 00:00:00+09:00"), "Kiritimati": stamped("T00:00:00+14:00"),
    "New York": stamped(" 00:00:00-05:00"), "zulu": stamped("T23:59:59.999Z"), "compact offset": stamped("T00:00:00+0530"), "London": london,
    "mixed": lambda f: lines(f.assign(date=f["date"] + [["T00:00:00+09:00", "", " 23:00:00-11:00"][i % 3] for i in range(300)])),
    "slashes": lambda f: lines(f.assign(date=f["date"].str.replace("-", "/"))), "digits": lambda f: lines(f.assign(date=f["date"].str.replace("-", ""))),
    "tabs": lambda f: lines(f, "\t"), "bars": lambda f: lines(f, "|"), "semicolons": lambda f: lines(f, ";"), "continental": lambda f: lines(f, ";", ","),
    "tabs and commas": lambda f: lines(f, "\t", ","), "quoted": lambda f: lines(f, decimal=","), "Excel": lambda f: "sep=;\n" + lines(f, ";", ","),
    "mark of order": lambda f: "\ufeff" + lines(f), "capitals": lambda f: lines(f, header="DATE,CLOSE"), "blanks": lambda f: lines(f, header=" Date , Close "),
    "adjusted": lambda f: lines(f, header="Date,Adj Close"), "adjusted in code": lambda f: lines(f, header="date,adj_close"),
    "both closes": lambda f: lines(f.assign(adjusted=1.0), header="Date,Close,Adj Close"),
    "comment": lambda f: "# from, a vendor\n\n" + lines(f), "blank lines": lambda f: lines(f).replace("\n", "\n\n") + ",\n,\n",
    "blank column": lambda f: lines(f.assign(x=""), header="Date,Close,"), "windows": lambda f: lines(f).replace("\n", "\r\n"),
    "yfinance": yfinance, "yfinance by ticker": lambda f: yfinance(f, "Ticker,ABC,ABC", "Price,Close,Volume"),
    "yfinance of old": lambda f: yfinance(f, ",Close,Volume", ",ABC,ABC"),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_that_can_be_read_in_one_way_is_read(tmp_path, case):
    frame = invented(300)
    path = tmp_path / "mine.csv"
    path.write_text(READ[case](frame), newline="")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = load_series(path)
    assert list(read["date"].dt.strftime("%Y-%m-%d")) == list(frame["date"]) and list(read.columns) == ["date", "close"]
    np.testing.assert_allclose(read["close"], frame["close"], atol=1e-4)


@pytest.mark.parametrize("name", ["implied_vol", "Implied Vol", "IMPLIED_VOLATILITY", "impliedVol", "IV", "IV30", "iv_30d", "VIX"])
def test_quotes_are_known_by_their_names(tmp_path, name):
    path = csv(tmp_path, invented(300).assign(**{"volume": 1, name: 0.77}))
    assert float(Windows(path).paths().iv.min()) == pytest.approx(0.77)
    comma = tmp_path / "comma.csv"
    comma.write_text(lines(invented(300).assign(**{name: 0.77}), ";", ","))
    assert float(load_series(comma)["implied_vol"].max()) == 0.77


@pytest.mark.parametrize("name", ["ATM vol", "Volatility", "implied", "iv_rank", "VIX close", "realized_vol"])
def test_a_name_that_speaks_of_vol_and_is_not_read_is_named(tmp_path, name):
    with pytest.warns(UserWarning, match=f"read from a column implied_vol, got {name}, which is not read; rename"):
        load_series(csv(tmp_path, invented(300).assign(**{name: 0.2})))


def text_file(folder, text):
    path = folder / "mine.csv"
    path.write_text(text)
    return path


TEXTS = {
    "two closes": (lambda f: lines(f.assign(x=1.0), header="Date,Close,close"), "must have one column close, got Close, close; keep one"),
    "two dates": (lambda f: lines(f.assign(x=f["date"]), header="Date,Close,date"), "must have one column date, got Date, date"),
    "two tickers": (lambda f: yfinance(f, "Price,Close,Close", "Ticker,ABC,XYZ"), "must have one column close, got Close, Close"),
    "two adjusted": (lambda f: lines(f.assign(x=1.0), header="Date,Adj Close,Adjusted Close"), "must have one column close, got Adj Close, Adjusted Close"),
    "two quotes": (lambda f: lines(f.assign(x=0.2, y=0.2), header="Date,Close,IV30,IV60"), "must have one column implied_vol, got IV30, IV60"),
    "trailing comma": (lambda f: lines(f).replace("\n", ",\n").replace("close,\n", "close\n"),
                       r"more cells than the header, which has 2, got '3' in row 2 \(300 such, in rows 2…301\); remove the separator"),
    "unquoted decimal comma": (lambda f: lines(f, ";", ",").replace(";", ","), "more cells than the header, which has 2, got '3' in row 2"),
    "thousands": (lambda f: lines(f.assign(close=[f"{1000 + i},{i:03d}" for i in range(300)]), ";"), "positive finite number, got '1000,000' in row 2"),
    "thousands and comma": (lambda f: lines(f.assign(close=[f"1.{i:03d},5" for i in range(300)]), ";"), "positive finite number, got '1.000,5' in row 2"),
    "one comma": (lambda f: lines(f).replace("\n2010-01-06,", '\n2010-01-06;"1,5"').replace(",", ";"), "every close must be .* in row 4"),
    "month or day": (lambda f: lines(f.assign(date=pd.to_datetime(f["date"]).dt.strftime("%d/%m/%Y"))), "every date must be a day, got '04/01/2010' in row 2"),
    "month alone": (lambda f: lines(f.assign(date=f["date"].str[:7])), "every date must be a day, got '2010-01' in row 2"),
    "serial number": (lambda f: lines(f.assign(date=range(40182, 40482))), "every date must be a day, got '40182'"),
    "no such day": (lambda f: lines(f).replace("2010-03-01", "2010-02-30"), "every date must be a day, got '2010-02-30' in row 42"),
    "afternoon": (stamped(" 4:00 PM"), "every date must be a day, got '2010-01-04 4:00 PM'"),
    "hours": (lambda f: lines(pd.concat([f.assign(date=f["date"] + " 10:00"), f.assign(date=f["date"] + " 11:00")]).sort_values("date")),
              "each date must occur once .* got '2010-01-04 11:00' in row 3"),
    "offset made equal": (lambda f: lines(f).replace("2010-01-06,", "2010-01-05T23:00-05:00,"), "each date must occur once .* in row 4"),
    "blank lines counted": (lambda f: lines(f.assign(close=f["close"].where(f.index != 5))).replace("\n", "\n\n"), "got an empty cell in row 13 "),
    "comments counted": (lambda f: "# one\n# two\n\n" + lines(f).replace("2010-01-05,", "# three\n2010-01-05,-"), "positive finite number, got '-.*' in row 7 "),
    "yfinance counted": (lambda f: yfinance(f.assign(close=f["close"].where(f.index != 0))), "got an empty cell in row 4 "),
    "no header": (lambda f: lines(f).split("\n", 1)[1], "needs the columns date and close, got 2010-01-04, .*; add or rename the column date"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_can_be_read_in_two_ways_is_refused(tmp_path, case):
    change, message = TEXTS[case]
    with pytest.raises(ValueError, match=message):
        load_series(text_file(tmp_path, change(invented(300))))


# ---- is it daily, does it trade ------------------------------------------------------------------------------------------------

def on_days(days, seed=0):
    "A random walk of 16 % a year whose closes are taken on some days."
    return invented(len(days), seed=seed).assign(date=days.strftime("%Y-%m-%d"))


def without(first, last):
    day = pd.bdate_range("2015-01-01", "2017-12-29")
    return on_days(day[(day < first) | (day > last)])


def without_weekdays(*numbers):
    day = pd.bdate_range("2012-01-02", periods=900)
    return on_days(day[~day.day_of_week.isin(numbers)])


def filled(f):
    return f.set_index(pd.to_datetime(f["date"])).asfreq("D", method="ffill").reset_index(drop=True).assign(
        date=pd.date_range("2010-01-04", periods=418).strftime("%Y-%m-%d"))


def frozen(first, n):
    def change(f):
        close = f["close"].to_numpy().copy()
        close[first:first + n] = close[first]
        return f.assign(close=close)
    return change


SERIES = {
    "thousands by a point": (lambda: invented(300).assign(close=[999.0 if i < 150 else 1.001 for i in range(300)] * np.linspace(1, 1.2, 300)), r"close must not move twentyfold in a day, got '-99.9 %' in row 152 \(1 such\); write prices like 1234.5"),
    "another unit": (lambda: split((150, 1e-300))(), r"close must not move twentyfold in a day, got '\+9.97e\+301 %' in row 152 \(1 such\)"),
    "a slip by two decimals": (lambda: split((150, 100), (151, 0.01))(), r"close must not move twentyfold in a day, got '-99.0 %' in row 152 \(2 such, in rows 152…153\)"),
    "weekly": (lambda: on_days(pd.date_range("2005-01-07", periods=300, freq="W-FRI")), "closes must be daily, got 'a row every 7 days' in row 22 "),
    "biweekly": (lambda: on_days(pd.date_range("2005-01-07", periods=300, freq="14D")), "got 'a row every 14 days'"),
    "monthly": (lambda: on_days(pd.date_range("1990-01-31", periods=300, freq="ME")), "got 'a row every 31 days'"),
    "every other day": (lambda: on_days(pd.date_range("2005-01-07", periods=300, freq="2D")), "got 'a row every 2 days'"),
    "Monday, Wednesday, Friday": (lambda: without_weekdays(1, 3), "got 'a row every 2 days'"),
    "Monday to Wednesday": (lambda: without_weekdays(3, 4), "closes must be daily, got 157 rows a year; give every trading day"),
    "Monday to Thursday": (lambda: without_weekdays(4), "closes must be daily, got 20[89] rows a year"),
    "weekly, then daily": (lambda: on_days(pd.date_range("2004-01-02", periods=50, freq="W-FRI").append(pd.bdate_range("2005-01-03", periods=600))),
                           r"got 'a row every 7 days' in row 22 \(4\d such, in rows 22…6\d\)"),
    "a year's hole": (lambda: without("2015-12-01", "2016-11-30"), "no more than 31 days may lie between two rows, got '367 days after the row before' in row 240 "),
    "hole at the start": (lambda: without("2015-01-02", "2015-05-01"), "got '123 days after the row before' in row 3 "),
    "hole at the end": (lambda: without("2017-10-02", "2017-12-28"), r"got '91 days after the row before' in row 71\d "),
    "copied weekends": (lambda: filled(invented(300)), "weekends must not repeat Friday's close, got 'Saturday 2010-01-09' in row 7 .*; drop Saturdays and Sundays"),
    "coin with quotes": (lambda: on_days(pd.date_range("2015-01-01", periods=500)).assign(implied_vol=0.6), "needs a year of 252 rows, got 365 rows a year; keep Monday"),
    "frozen at the start": (lambda: frozen(0, 41)(invented(300)), r"close must not stand still for 10 days, got .* in row 2 \(41 such, in rows 2…42\)"),
    "frozen in the middle": (lambda: frozen(100, 11)(invented(300)), r"\(11 such, in rows 102…112\)"),
    "frozen at the end": (lambda: frozen(270, 30)(invented(300)), r"\(30 such, in rows 272…301\)"),
    "frozen twice": (lambda: frozen(200, 15)(frozen(50, 12)(invented(300))), r"\(27 such, in rows 52…63, 202…216\)"),
    "per cent below 5": (lambda: invented(300, vol=0.03).assign(implied_vol=3.1), "must be annualised and in decimals, got a median of 3.1 "),
    "daily vol": (lambda: invented(300).assign(implied_vol=0.2 / 252**0.5), "must be annualised and in decimals, got a median of 0.0126 where prices move by 0.16 a year"),
}


@pytest.mark.parametrize("case", SERIES)
def test_a_series_that_is_not_daily_or_does_not_trade_is_refused(tmp_path, case):
    make, message = SERIES[case]
    with pytest.raises(ValueError, match=message):
        load_series(csv(tmp_path, make()))


def split(*events):
    def change():
        close = invented(400)["close"].to_numpy().copy()
        for row, ratio in events:
            close[row:] /= ratio
        return invented(400).assign(close=close)
    return change


WARNED = {
    "split": (split((150, 4)), r"moves by about a fifth or more in a day, got '-7\d\.\d %' in row 152 \(1 such\); if it is a split"),
    "five for four": (split((150, 1.25)), "in row 152 "),
    "splits and a reverse split": (split((100, 2), (200, 3), (300, 0.1)), r"\(3 such, in rows 102, 202, 302\)"),
    "a pause": (lambda: without("2016-02-01", "2016-02-19"), "more than 11 days between two rows count as one day, got '24 days after the row before' in row 284 "),
    "a still week": (lambda: frozen(100, 8)(invented(300)), r"stands still for 5 days or more, got .* in row 102 \(8 such, in rows 102…109\)"),
    "a coin": (lambda: on_days(pd.date_range("2015-01-01", periods=500)), "a year is 252 rows here, got 365 rows a year, so vols come out at 0.83 of"),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_is_odd_but_may_be_right_is_read_with_a_warning(tmp_path, case):
    make, message = WARNED[case]
    with pytest.warns(UserWarning, match=message) as caught:
        series = load_series(csv(tmp_path, make()))
    assert len(caught) == 1 and len(series) == len(make())


def test_holidays_and_short_weeks_are_daily(tmp_path):
    "New York with the week after 11 September, Tokyo with ten days in May, Tel Aviv from Sunday to Thursday."
    day = pd.bdate_range("2001-01-02", periods=600)
    new_york = day[(day < "2001-09-11") | (day > "2001-09-14")]
    tokyo = day[~((day >= "2001-04-27") & (day <= "2001-05-06"))]
    tel_aviv = day - pd.Timedelta(days=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for days in (new_york, tokyo, tel_aviv):
            load_series(csv(tmp_path, on_days(days)))


# ---- parameters of windows -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("day", ["2020-02-18", "20200218", "2020/2/18", datetime.date(2020, 2, 18), pd.Timestamp("2020-02-18")])
def test_days_may_be_written_in_any_way_that_means_one_day(day):
    windows = Windows(start=day, end=day, exclude=[[day, day]], until=day)
    assert windows == Windows(start="2020-02-18", end="2020-02-18", exclude=(("2020-02-18", "2020-02-18"),), until="2020-02-18")


@pytest.mark.parametrize("field", ["start", "end", "until"])
@pytest.mark.parametrize("day", ["03/02/2020", "3.2.2020", "soon", "2020", "2020-02", "2020-02-30", "", 2020])
def test_a_day_that_is_none_or_two_is_refused(field, day):
    with pytest.raises(ValueError, match=f"{field} must be a day like 2020-03-16, got {day!r}; write year, month, day"):
        Windows(**{field: day})


@pytest.mark.parametrize("exclude", [(("2020-02-15", "03/02/2020"),), ("2020-02-15", "2020-06-30"), (("2020-02-15",),), (("2020-02-15", None),)])
def test_excluded_ranges_are_pairs_of_days(exclude):
    with pytest.raises(ValueError, match="exclude must (be a day like|hold pairs of days)"):
        Windows(exclude=exclude)


@pytest.mark.parametrize("count", [20.5, "20", 0, -1])
def test_days_of_life_are_a_whole_number(count):
    for name in ("n_steps", "n_past"):
        with pytest.raises(ValueError, match="whole numbers n_steps >= 1 and n_past >= 1"):
            Windows(**{name: count})


@pytest.mark.parametrize("windows, message", [
    (Windows(start="2023-01-03", end="2023-06-30"), r"\(1990-01-30…2022-10-03, as its data are 1990-01-02…2022-12-28\), got starts 2023-01-03…2023-06-30.*choose days inside"),
    (Windows(start="2022-10-04"), "choose days inside"),
    (Windows(until="1990-02-01"), "until 1990-02-01; choose days inside"),
    (Windows(n_steps=9000), r"\(no day, as its data"),
    (Windows(low=3.0), r"trailing vol in \[300%, inf%\), got 3\.\d%…\d+\.\d%; widen band"),
    (Windows(start="2008-10-01", end="2008-10-31", exclude=(CRISES["gfc"],)), "no window left by the excluded ranges"),
])
def test_an_empty_set_says_why(windows, message):
    for use in (lambda: windows.dates, lambda: windows.paths(), lambda: windows.simulate(1, windows.n_steps, DAY, generators(0))):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize("fields, message", [
    (dict(low=0.3, high=0.2), "0 <= low < high, got low=0.3, high=0.2"),
    (dict(low=-0.1), "0 <= low < high"),
    (dict(n_steps=0), "n_steps >= 1"),
    (dict(start="2020-01-01", end="2019-01-01"), "must run forward, got 2020-01-01…2019-01-01; swap"),
    (dict(exclude=(("2020-01-01", "2019-01-01"),)), "must run forward"),
])
def test_bad_parameters_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        Windows(**fields)


@pytest.mark.parametrize("clock, message", [
    (dict(n_paths=0), "n_paths must be at least 1, got 0"),
    (dict(n_steps=30), r"last 60 days, got n_steps=30; build Windows\(…, n_steps=30\)"),
    (dict(dt=0), "dt = 1/252, got dt=0"),
    (dict(n_past=30), "carry 20 past returns, got n_past=30"),
])
def test_a_clock_that_the_record_lacks_is_refused(clock, message):
    wanted = dict(n_paths=5, n_steps=60, dt=DAY, n_past=20) | clock
    with pytest.raises(ValueError, match=message):
        Windows().simulate(wanted["n_paths"], wanted["n_steps"], wanted["dt"], generators(0)[0], n_past=wanted["n_past"])


def test_trailing_vol_by_hand():
    close = np.exp(0.01 * (np.arange(30) % 2))
    vol = trailing_vol(close)
    assert np.isnan(vol[:20]).all() and vol[20:] == pytest.approx(0.01 * 252**0.5)


def test_nothing_is_loaded_on_import():
    import subprocess
    import sys

    code = "import sys, hirm.history; sys.exit(any(name in sys.modules for name in ('skfolio', 'arch')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANGS).returncode == 0


def test_no_direction_can_be_earned_in_training_and_crises_stay_as_they_happened():
    for windows in training_windows("sp500").values():
        spot = windows.paths(dtype=torch.float64).spot
        assert torch.allclose(spot.mean(1), torch.ones(1, 61, dtype=torch.float64)) and spot[..., -1].std() > 0.02
        uncentered = dataclasses.replace(windows, centered=False).paths(dtype=torch.float64).spot
        assert uncentered[..., -1].mean() > 1.01
    for windows in calendar_windows("sp500").values():
        assert not windows.centered


# ---- the worst stretches of a series ---------------------------------------------------------------------------------------------

def stormy(storms, n_rows=4600, start="1985-01-02", calm=0.10, wild=0.60):
    "An invented series in which 20 days up to each of some rows are wild, the earlier the wilder."
    frame, vol = invented(n_rows, start), np.full(n_rows, calm)
    for place, row in enumerate(storms):
        vol[row - 19:row + 1] = wild - 0.05 * place
    signs = np.random.default_rng(1).choice([-1.0, 1.0], n_rows)
    return frame.assign(close=100 * np.exp(np.cumsum(signs * vol / 252**0.5)))


def test_a_worst_stretch_holds_every_window_through_the_wildest_days(tmp_path):
    frame = stormy([3000, 1500])
    path, date = csv(tmp_path, frame), pd.to_datetime(frame["date"])
    found = worst_stretches(path, 2)
    assert list(found) == [f"worst_{date[3000]:%Y_%m}", f"worst_{date[1500]:%Y_%m}"]
    for row, days in zip((3000, 1500), found.values()):
        assert days == (str(date[row - 60].date()), str(date[row - 20].date()))
        windows = Windows(path, start=days[0], end=days[1])
        storm = set(date[row - 19:row + 1])
        assert len(windows.dates) == 41 and all(storm <= set(date[date.between(span.start, span.last)]) for span in windows.spans.itertuples())


def test_worst_stretches_share_no_close_with_any_other_test(tmp_path):
    storms = [3000, 3110, 3121]  # 110 rows are too near, 121 are just enough
    frame = stormy(storms)
    path, date = csv(tmp_path, frame), list(pd.to_datetime(frame["date"]))
    found = worst_stretches(path, 2)
    assert [days[0] for days in found.values()] == [str(date[row - 60].date()) for row in (3000, 3121)]
    first, second = (known_days(date, Windows(path, start=start, end=end)) for start, end in found.values())
    assert not first & second
    apart = worst_stretches(path, 1, (found[f"worst_{date[3000]:%Y_%m}"],))
    assert list(apart) == [f"worst_{date[3121]:%Y_%m}"]


def test_a_series_without_the_calendars_crises_is_judged_on_its_own_worst(tmp_path):
    frame = stormy([3000, 1500, 2200, 3900, 900])
    path, date = csv(tmp_path, frame), list(pd.to_datetime(frame["date"]))
    ranges = calendar(path)
    assert [name[:5] for name in ranges] == ["worst"] * 4 + ["holdo"]
    judged = set.union(*(known_days(date, windows) for windows in calendar_windows(path).values()))
    for windows in training_windows(path).values():
        assert not known_days(date, windows) & judged
    assert variance_rule(path) != EWMA  # three years are left for the fit


@pytest.mark.parametrize("n_rows, start, worst, crises", [(8000, "1992-01-02", 0, 4), (1400, "2000-01-03", 0, 0), (1600, "2000-01-03", 1, 0), (3100, "1999-01-04", 2, 1)])
def test_a_test_costs_three_years(tmp_path, n_rows, start, worst, crises):
    ranges = calendar(csv(tmp_path, stormy([900], n_rows, start)))
    assert [sum(name.startswith("worst_") for name in ranges), sum(name in CRISES for name in ranges)] == [worst, crises]
    assert ("holdout" in ranges) == (crises < 4)


def test_a_storm_at_the_end_needs_twenty_windows_that_live_through_it(tmp_path):
    for row, found in ((1580, True), (1581, False)):
        path = csv(tmp_path, stormy([row], n_rows=1600), f"{row}.csv")
        (days,) = worst_stretches(path, 1).values()
        frame = load_series(path)
        assert (days[0] == str(frame["date"][row - 60].date())) == found
        assert not found or len(Windows(path, start=days[0], end=days[1]).dates) == 20


def test_too_short_for_a_worst_stretch_is_refused(tmp_path):
    path = csv(tmp_path, invented(800))
    with pytest.raises(ValueError, match="1 worst stretches need about 1500 rows, got 800, with room for 0; give a longer series or ask for fewer"):
        worst_stretches(path, 1)
    assert worst_stretches(path, 0) == {}
