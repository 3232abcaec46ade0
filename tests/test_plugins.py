"""Parts of one's own, from outside the project: the page's own examples through papermill, and every way in which a plugin can be wrong."""
import json
import os
import re
import shlex
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from conftest import ROOT
from hirm import parameters
from hirm.config import REGISTRIES, Config, judged_environments, known_environments, load_plugins, training_environments
from hirm.environments import ENVIRONMENTS, Environment, read_environments
from hirm.frictions import Proportional
from hirm.history import Windows
from hirm.markets import GBM
from hirm.panel import Panel
from hirm.policies import Learnable
from hirm.pricing import EuropeanCall, Liability, premium, simulated_premium
from hirm.runs import Record, Run, config_hash
from hirm.training import check_own_parts, train

PAGE = (ROOT / "book" / "plugins.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMOKE = dict(scale="smoke", n_seeds=2, n_evaluation=400, n_validation=400)
ASKED = dict(environments="own_calm,own_brisk,tulips_calm", validate_on="own_check", method="calm_hands", policy="share", extra_features="drawdown", payoff="butterfly")


def words(parameters):
    "Parameters as papermill takes them."
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def write_parts(folder):
    "The page's examples as two files, and the prices that one of them reads."
    (folder / "my_parts.py").write_text("\n".join(BLOCKS))
    (folder / "my_crashes.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    days = pd.bdate_range("2000-01-03", periods=1600)
    moves = np.random.default_rng(0).normal(0, 0.01, len(days))
    pd.DataFrame({"date": days.strftime("%Y-%m-%d"), "close": 100 * np.exp(moves.cumsum())}).to_csv(folder / "tulips.csv", index=False)
    return f"{folder / 'my_parts.py'},{folder / 'my_crashes.yaml'}"


@pytest.fixture
def load(registries, tmp_path):
    "Writes a plugin and asks a small question with it."
    def ask(text, name="mine.py", **asked):
        (tmp_path / name).write_text(text)
        return Config(**dict(method="erm", scale="smoke", environments="low,medium", plugins=str(tmp_path / name)) | asked)
    return ask


def test_each_part_of_the_page_is_ten_lines_or_fewer():
    assert len(BLOCKS) == 8
    for block in BLOCKS:
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
        assert len(lines) <= 11, block  # a decorator is no line of thought


@pytest.fixture(scope="module")
def trained(tool, tmp_path_factory):
    "A folder outside the project: the parts, and the runs of a training that names them all."
    folder = tmp_path_factory.mktemp("outside")
    plugins = write_parts(folder)
    done = tool("papermill", "nbs/train.ipynb", *words({"runs": folder / "runs", "plugins": plugins, **SMOKE, **ASKED}))
    assert done.returncode == 0, done.stdout[-4000:]
    return folder


def test_every_part_is_trained_with_and_judged(trained):
    records = [Record(path) for path in sorted((trained / "runs").glob("calm_hands-s*"))]
    assert len(records) == 2 and all(record.done for record in records)
    judged = records[0].final_metrics["metrics"]
    assert set(judged) == {"own_calm", "own_brisk", "tulips_calm", "own_check", "own_storm", "tulips_crash"}
    asked = records[0].config
    assert {"plugin my_parts", "plugin my_crashes", "need turnover", "environment own_storm", "column drawdown", "policy share"} <= set(asked["contents"])
    for record in records:
        for name in ("my_parts.py", "my_crashes.yaml"):
            assert (record.folder / "plugins" / name).read_bytes() == (trained / name).read_bytes()
    log = records[0].metrics()
    assert log["penalty"].iloc[-1] > 0  # turnover, weighed


def test_the_records_own_command_runs_the_plugin_again(trained, tool, tmp_path):
    first = Record(sorted((trained / "runs").glob("calm_hands-s0-*"))[0])
    command = shlex.split(first.metadata["command"])
    assert command[:4] == ["papermill", "nbs/train.ipynb", "-f", "config.yaml"]
    done = tool("papermill", "nbs/train.ipynb", str(tmp_path / "out.ipynb"), "-f", str(first.folder / "config.yaml"), *command[4:], "-p", "runs", str(tmp_path / "again"))
    assert done.returncode == 0, done.stdout[-4000:]
    again = Record(tmp_path / "again" / first.folder.name)
    assert (again.folder / "metrics.jsonl").read_bytes() == (first.folder / "metrics.jsonl").read_bytes()
    assert again.final_metrics == first.final_metrics


@pytest.mark.parametrize("page, asked", [("evaluate", dict(n_paths=400, probes="cost × 1.5", probed="own_storm")), ("diagnose", dict(n_paths=200, environments="own_calm,own_storm"))])
def test_finished_runs_with_parts_of_ones_own_are_looked_at(trained, tool, tmp_path, page, asked):
    named = {"policy": "share", "methods": "calm_hands"}  # the plugins of the runs are known by their records
    done = tool("papermill", f"nbs/{page}.ipynb", str(tmp_path / "out.ipynb"), *words({"runs": trained / "runs", "out": tmp_path / "out", **named, **asked}))
    assert done.returncode == 0, done.stdout[-4000:]
    looked = pd.read_csv(next((tmp_path / "out").glob("[me]*s.csv")))
    assert "calm_hands" in set(looked["method"]) and "own_storm" in set(looked["environment"])


def test_a_plugin_that_changed_is_refused(trained, registries, tmp_path):
    record = Record(sorted((trained / "runs").glob("calm_hands-s0-*"))[0])
    asked = record.config
    assert Config(**asked).method == "calm_hands"
    text = (trained / "my_parts.py").read_text()
    try:
        (trained / "my_parts.py").write_text(text + "\n# another line\n")
        with pytest.raises(ValueError, match="^plugin my_parts must be what it was when this run was made, got another .*keeps a copy in plugins/"):
            Config(**asked)
    finally:
        (trained / "my_parts.py").write_text(text)
    copies = ",".join(str(record.folder / "plugins" / name) for name in ("my_parts.py",))
    moved = Config(**asked | dict(plugins=f"{copies},{trained / 'my_crashes.yaml'}"))  # the same text from elsewhere is the same question
    assert Run.of("runs", asdict(moved)).folder.name == record.folder.name
    (trained / "my_parts.py").rename(tmp_path / "hidden.py")
    try:
        assert Config(**asked).plugins.startswith(moved.plugins.split(",")[0])  # what a record names may have been moved
        parameters._LOADED.clear()
        with pytest.raises(FileNotFoundError, match="plugins must be files or modules, got .*my_parts.py', where no file is; check the path"):
            Config(**asked)
    finally:
        (tmp_path / "hidden.py").rename(trained / "my_parts.py")


METHOD = "from dataclasses import replace\nfrom hirm.objectives import METHODS\nMETHODS[{0!r}] = replace(METHODS['erm'], name={0!r})\n"
MARKET = "from dataclasses import replace\nfrom hirm.environments import ENVIRONMENTS\nENVIRONMENTS[{0!r}] = replace(ENVIRONMENTS['crisis'], name={0!r}, role='train')\n"


@pytest.mark.parametrize("text, name, says", [
    *((METHOD, name, "stands for something else") for name in ("delta", "no_hedge", "minimum_variance", "oracle", "ensemble", "blend", "all", "none")),
    *((METHOD, name, "named by letters, digits") for name in ("../../esc", "a/b", "a,b", "a*", "", ".", "..", "-x", "a b")),
    *((MARKET, name, "stands for something else") for name in ("all", "holdout", "worst_2011_08", "years_2008_2012", "until_2007_low", "history_high")),
    (MARKET, "a\nb", "named by letters, digits")])
def test_a_name_that_stands_for_something_else_is_refused(load, text, name, says):
    with pytest.raises(ValueError, match=f"^plugin mine.py, .*{says}.*; choose"): load(text.format(name))


@pytest.mark.parametrize("name", ["my_method", "irm-2", "v1.5", "größer"])
def test_other_names_are_free(load, name):
    assert load(METHOD.format(name), method=name).method == name


def test_a_text_that_a_record_does_not_know_is_not_run(load, registries, tmp_path):
    record = asdict(load(METHOD.format("mine")))
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for edited in (str(tmp_path / "evil.py"), f"{record['plugins']},{tmp_path / 'evil.py'}"):
        with pytest.raises(ValueError, match="^plugin evil must be what it was when this run was made"): Config(**record | dict(plugins=edited))
    (tmp_path / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(ValueError, match="^plugin mine must be what it was when this run was made"): Config(**record)
    assert not mark.exists()


def test_a_policy_of_ones_own_learns(registries, tmp_path):
    plugins = write_parts(tmp_path)
    asked = Config(plugins=plugins, method="erm", policy="share", environments="own_calm,own_brisk", validate_on="own_check", scale="smoke", n_validation=2000, n_evaluation=200,
                   updates=80, pretrain=0, ramp=0, validate_every=40, learning_rate=0.02, runs=str(tmp_path / "runs"), n_seeds=2)
    runs = train(asked)
    shares = [run.best()[0]["share"].item() for run in runs]
    assert all(0.85 < share < 1.05 for share in shares), shares  # from a half to nearly the whole delta
    log = runs[0].metrics()
    assert log["validation.own_check"].dropna().iloc[-1] < 0.8 * log["risk.own_brisk"].iloc[0] * 1.5


def test_a_method_that_differentiates_a_head_says_that_there_is_none(registries, tmp_path):
    asked = Config(plugins=write_parts(tmp_path), method="hirm", policy="share", environments="own_calm,own_brisk", validate_on="own_check", scale="smoke", runs=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="this method differentiates a shared head, got Share, which has none; train erm"):
        train(asked)


@pytest.mark.parametrize("text, message", [
    ("1 / 0", "plugin mine.py must run without an error, got ZeroDivisionError in line 1: division by zero; mend it there"),
    ("x = (", "plugin mine.py must run without an error, got SyntaxError in line 1"),
    ("from hirm.environments import ENVIRONMENTS\nENVIRONMENTS['low'] = ENVIRONMENTS['high']", "must leave what is there, got another environment 'low'; register yours"),
    ("from hirm.objectives import METHODS, Method, erm\nMETHODS['a'] = Method('a', erm)\nMETHODS['a'] = Method('a', erm, weight=1.0)", r"must register each name once, got METHODS\['a'\] twice, again in line 3"),
    ("from hirm.environments import ENVIRONMENTS\nfrom hirm.markets import GBM\nENVIRONMENTS['mine'] = GBM(0.2)", "environment 'mine': must be an instance of Environment, got GBM.*write Environment"),
    ("from hirm.environments import ENVIRONMENTS, Environment\nENVIRONMENTS['mine'] = Environment('mine', 'test', 'sp500', 0)", "market must have `simulate`, got 'str'; give Heston"),
    ("from hirm.environments import ENVIRONMENTS\nENVIRONMENTS['mine'] = ENVIRONMENTS['low']", "must be registered by its own name, got 'low'"),
    ("from hirm.policies import POLICIES, Delta\nPOLICIES['mine'] = Delta()", "policy 'mine': must be a class derived from Learnable"),
    ("from hirm.features import COLUMNS\nCOLUMNS['mine'] = abs", "column 'mine': must be an instance of Column, got"),
    ("from hirm.pricing import PAYOFFS\nPAYOFFS['mine'] = 3", "payoff 'mine': must be a class derived from Liability, got 3"),
    ("from hirm.objectives import NEEDS\nNEEDS['head'] = abs", "need 'head': must have a name of its own, got one that stands for something else"),
    ("from hirm.environments import ENVIRONMENTS, Environment\nfrom hirm.markets import GBM\nclass Bare:\n    def cost(self, trade, price, paths): return 0 * trade\nENVIRONMENTS['mine'] = Environment('mine', 'test', GBM(0.2), Bare())",
     "friction must be a Friction, got 'Bare'; .* derive your own from Friction"),
])
def test_a_plugin_that_is_wrong_is_refused_and_leaves_nothing(load, registries, text, message):
    before = {kind: dict(registry) for kind, (registry, _) in registries.items()}
    with pytest.raises(ValueError, match=message):
        load(text)
    assert {kind: dict(registry) for kind, (registry, _) in registries.items()} == before


@pytest.mark.parametrize("plugins, message", [
    ("nowhere.py", "plugins must be files or modules, got 'nowhere.py', where no file is; check the path"), ("no_such_module", "which is no module that can be imported; for a file write no_such_module.py"),
    ("a.py,", "plugins must be names with commas between them"), ("json", "got 'json', a package; name the module in it that registers, json.MODULE"), ("x" * 300 + ".py", "plugins must be a path, got 'x+'… of 303 characters"),
])
def test_a_plugin_that_is_not_there_is_refused(registries, plugins, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        Config(plugins=plugins)


def test_two_plugins_do_not_share_a_name(load, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("")
    with pytest.raises(ValueError, match="plugins must have names of their own, got mine twice; rename"):
        load("", plugins=f"{tmp_path / 'mine.py'},{tmp_path / 'other' / 'mine.py'}")


def test_a_need_that_nobody_meets_is_refused(load):
    with pytest.raises(ValueError, match="unknown need of method mine 'sky'"):
        load("from hirm.objectives import METHODS, Method, erm\nMETHODS['mine'] = Method('mine', erm, needs=('sky',))", method="mine")


def test_a_method_whose_objective_would_never_be_asked_is_refused(load):
    text = "from hirm.objectives import METHODS, Method, erm\ndef never(sample, weight, state): {}\nMETHODS['mine'] = Method('mine', never{})"
    for body, asked in ("raise RuntimeError", {}), ("return weight * 0", {}), ("return weight * 0", dict(penalty_weight=0)):
        with pytest.raises(ValueError, match=r"mine would be ERM, for at weight 0 its objective is never asked, .*; register Method\('mine', objective, weight=1.0\)"): load(text.format(body, ""), method="mine", **asked)
    assert load(text.format("return weight * 0", ""), method="mine", penalty_weight=2).weights == [2.0]
    assert load(text.format("return weight * 0", ""), method="mine", penalty_weight=[0, 1]).weights == [0.0, 1.0]  # with its own ERM beside it
    assert load(text.format("raise RuntimeError", ", weight=1.0"), method="mine").weights == [1.0]


def test_a_family_that_has_no_test_is_refused_before_it_is_trained_in(load):
    text = "from dataclasses import replace\nfrom hirm.environments import ENVIRONMENTS\nfor name, like in dict(fam_calm='low', fam_brisk='medium').items(): ENVIRONMENTS[name] = replace(ENVIRONMENTS[like], name=name, family='mine')"
    with pytest.raises(ValueError, match="must have a test in its family, got none in mine; register an environment with role test"): load(text, environments="fam_calm,fam_brisk")
    tested = text + "\nENVIRONMENTS['fam_storm'] = replace(ENVIRONMENTS['crisis'], name='fam_storm', family='mine')"
    assert "fam_storm" in judged_environments(load(tested, environments="fam_calm,fam_brisk"))


OWN = "from dataclasses import replace\nfrom hirm.environments import ENVIRONMENTS\nENVIRONMENTS['mine'] = replace(ENVIRONMENTS['crisis'], name='mine'{})"


def test_a_plugin_is_part_of_the_question_and_another_text_takes_its_place(load):
    plain = config_hash(asdict(Config(method="erm", scale="smoke", environments="low,medium").members()[0]))
    first = load(OWN.format(""))
    second = load(OWN.format(", n_steps=60, source='elsewhere'"))
    hashes = {plain, *(config_hash(asdict(config.members()[0])) for config in (first, second))}
    assert len(hashes) == 3 and "mine" in judged_environments(second)


def test_who_does_not_name_a_plugin_does_not_meet_its_parts(load):
    named = load(OWN.format(""))
    plain = Config(method="erm", scale="smoke", environments="low,medium")
    assert "mine" in known_environments(named) and "mine" not in known_environments(plain) and "environment mine" not in plain.contents


def test_a_module_is_a_plugin_too(registries, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "worlds.py").write_text(OWN.format(""))
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(method="erm", scale="smoke", environments="low,medium", plugins="my_package.worlds")
    assert "mine" in judged_environments(config) and config.plugins == "my_package.worlds" and "plugin worlds" in config.contents


def test_no_package_on_the_way_to_a_module_is_run_before_the_record_knows_it(registries, tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "evil" / "mod.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="plugin mod must be what it was when this run was made"): load_plugins("evil.mod", {})
    for none in ("evil.none", "evil.mod.none", "evil..mod", ".evil"):
        with pytest.raises(FileNotFoundError, match="which is no module that can be imported"): load_plugins(none, {})
    assert not (tmp_path / "ran").exists()


def test_a_plugin_is_named_from_the_project_and_found_from_anywhere(registries, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN.format(""))
    monkeypatch.chdir(tmp_path)
    config = Config(method="erm", scale="smoke", environments="low,medium", plugins="mine.py")
    assert config.plugins == os.path.relpath(tmp_path / "mine.py", ROOT)
    monkeypatch.chdir("/")
    assert Config(**asdict(config)) == config


def test_recorded_environments_of_ones_own(registries, tmp_path):
    write_parts(tmp_path)
    read = read_environments(tmp_path / "my_crashes.yaml")
    crash = read["tulips_crash"]
    assert set(read) == {"tulips_calm", "tulips_crash"} and isinstance(crash.market, Windows) and crash.friction.rate == 0.002 and crash.role == "test"
    assert crash.market.dates[0] >= pd.Timestamp("2005-06-01") and not crash.market.centered and read["tulips_calm"].market.centered
    second = pd.read_csv(tmp_path / "tulips.csv")
    second["close"] *= np.linspace(1, 2, len(second))
    second.to_csv(tmp_path / "wheat.csv", index=False)
    (tmp_path / "two.yaml").write_text("tulips: {file: tulips.csv, role: test, half_spread: 0.001}\nwheat: {file: wheat.csv, role: test, half_spread: 0}\n")
    two = read_environments(tmp_path / "two.yaml")
    assert not torch.equal(two["tulips"].market.paths().spot, two["wheat"].market.paths().spot)
    config = Config(method="erm", scale="smoke", environments="low,medium", plugins=str(tmp_path / "two.yaml"))
    assert {"tulips", "wheat", "gfc"} <= set(judged_environments(config))


@pytest.mark.parametrize("text, message", [
    ("- a", "must hold environments by name, got list"), ("a: [", "must be YAML, got"), ("a: 3", "environment 'a': must have fields, got 3"),
    ("a: {file: tulips.csv, role: test}", "half_spread must be given"), ("a: {file: tulips.csv, role: test, half_spread: 10}", "half_spread must be a fraction .* got 10; 10 bp is 0.001"),
    ("a: {file: wool.csv, role: test, half_spread: 0.001}", "file must be a CSV beside the YAML, got 'wool.csv'"), ("a: {file: tulips.csv, role: tset, half_spread: 0.001}", "role must be train, validate or test"),
    ("a: {file: tulips.csv, role: test, half_spread: 0.001, begin: 2001-01-01}", "fields are file, .* got 'begin'"),
    ("a: {file: tulips.csv, role: test, half_spread: 0.001, centered: 'false'}", "centered must be true or false, without quotes, got 'false'"),
    ("a: {file: tulips.csv, role: train, half_spread: 0.001, low: '0.1'}", "low must be a number, a bound of the annualised vol, got '0.1'; 18 % is 0.18"),
    ("low: {file: tulips.csv, role: test, half_spread: 0.001}", "environment 'low' is there already"),
    ("a: {file: tulips.csv, role: train, half_spread: 0.001, high: 20}", "high must be a number, a bound of the annualised vol, got 20; 18 % is 0.18"),
    ("a: {file: tulips.csv, role: test, half_spread: 0.001}\na: {file: tulips.csv, role: train, half_spread: 0.001}", "must be YAML, got 'a twice'"),
])
def test_a_file_of_environments_that_is_wrong_is_refused(load, tmp_path, text, message):
    write_parts(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(text, name="wrong.yaml")


def test_the_coin_of_the_page_is_fair_and_its_formula_close(registries, tmp_path):
    Config(plugins=write_parts(tmp_path), method="erm", scale="smoke", environments="own_calm,own_brisk", validate_on="own_check")
    market = ENVIRONMENTS["own_brisk"].market
    spot = market.simulate(50_000, 60, 1 / 252, torch.Generator().manual_seed(0), dtype=torch.float64).spot[0, :, -1]
    assert abs(spot.mean() - 1) < 4 * spot.std() / 50_000**0.5
    price, error = simulated_premium(market, EuropeanCall(), 60 / 252)
    assert abs(price - premium(market, EuropeanCall(), 60 / 252)) < 4 * error + 2e-4


SEERS = """
import torch
from dataclasses import replace
from hirm.environments import ENVIRONMENTS, Environment
from hirm.features import COLUMNS, Column
from hirm.markets import GBM
from hirm.policies import POLICIES, BandPolicy
for name, values in dict(ahead=lambda e: e.paths.spot[..., -1:].expand_as(e.paths.spot), noise=lambda e: torch.rand_like(e.paths.spot), centred=lambda e: e.paths.spot - e.paths.spot.mean(-1, keepdim=True),
                         highest=lambda e: e.paths.spot.cummax(-1).values, flat=lambda e: e.paths.spot[..., 0], double=lambda e: e.paths.spot.double()).items():
    COLUMNS[name] = Column(name, "regime", values)
class Seer(BandPolicy):
    def forward(self, episode, **options):
        return super().forward(episode, **options) + (episode.paths.spot[..., -1] > 1).to(episode.payoff.dtype)[..., None, None]
class Honest(BandPolicy): pass
COLUMNS["zscore"] = Column("zscore", "regime", lambda e: (e.paths.spot - e.paths.spot[..., :1]) / (e.paths.spot.cummax(-1).values - e.paths.spot.cummin(-1).values))
def built(make):
    class Own(Honest):
        def __init__(self, generators, *given):
            super().__init__(generators, *given)
            make(self, len(generators))
    return Own
POLICIES |= dict(seer=Seer, honest=Honest, alone=built(lambda self, n: setattr(self, "share", torch.nn.Parameter(torch.ones(n)))), linear=built(lambda self, n: setattr(self, "inner", torch.nn.Linear(3, 1))),
                 buffered=built(lambda self, n: self.register_buffer("grid", torch.linspace(0, 1, 5))), fleeting=built(lambda self, n: self.register_buffer("grid", torch.linspace(0, 1, 5), persistent=False)))
"""


@pytest.mark.parametrize("asked, says", [
    (dict(extra_features="ahead"), "column ahead must not look ahead, got values up to date 30 that change"), (dict(extra_features="centred"), "column centred must not look ahead"),
    (dict(extra_features="noise"), "column noise must give the same for the same paths"), (dict(extra_features="flat"), r"column flat must be like the spot, .* got torch.Size\(\[2, 8\]\)"),
    (dict(extra_features="double"), "column double must be like the spot, .* got torch.float64"), (dict(policy="seer"), "policy seer must not look ahead"),
    (dict(extra_features="zscore"), "column zscore must be finite on every date, got nan and the first of them on date 0; say what"),
    (dict(policy="alone"), r"policy alone: parameter share must begin with the member axis and have another one, got \(2,\) for two members; give it shape"),
    (dict(policy="linear"), r"policy linear: parameter inner.weight must begin with the member axis .* got \(1, 3\) for two members"),
    (dict(policy="buffered"), r"policy buffered: buffer grid must begin with the member axis, got \(5,\) for two members; register it with persistent=False"),
    (dict(policy="fleeting"), None),
    (dict(extra_features="highest", policy="honest"), None)])
def test_what_looks_ahead_or_cannot_be_repeated_is_refused_before_it_is_trained(registries, tmp_path, asked, says):
    (tmp_path / "seers.py").write_text(SEERS)
    config = Config(scale="smoke", environments="low,medium", plugins=str(tmp_path / "seers.py"), runs=str(tmp_path / "runs"), **asked)
    if says is None:
        return check_own_parts(config)
    with pytest.raises(ValueError, match=says): train(config)
    assert not list((tmp_path / "runs").glob("*-s0-*"))


def test_a_market_that_is_only_judged_in_is_tried_before_training_too(registries, tmp_path):
    (tmp_path / "storm.py").write_text(SEERS.replace("POLICIES |=", """
from dataclasses import dataclass
@dataclass(frozen=True)
class Loose:
    def simulate(self, n_paths, n_steps, dt, generator, **options):
        return GBM(0.2).simulate(n_paths, n_steps, dt, [torch.Generator().manual_seed(int(torch.randint(10**9, ()))) for _ in (generator if isinstance(generator, list) else [generator])], **options)
from hirm.frictions import Proportional
ENVIRONMENTS["storm"] = Environment("storm", "test", Loose(), Proportional(1e-3))
POLICIES |="""))
    config = Config(scale="smoke", environments="low,medium", plugins=str(tmp_path / "storm.py"), runs=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="market of environment 'storm' must draw from the generator that it is given"): train(config)
    assert not list((tmp_path / "runs").glob("*-s0-*"))


@pytest.mark.parametrize("made, says", [
    ("Jumps(Loose(0.2), intensity=4.0, mean=-0.06, sd=0.05)", "must draw from the generator that it is given"), ("Mixed(0.2)", "must draw each member from its own generator, got other paths beside another member"),
    ("First()", r"spot must be a tensor \(n_members, n_paths, n_steps\+1\), here \(2, 8, 61\), got torch.Size\(\[1, 8, 61\]\)"), ("Flat()", r"here \(2, 8, 61\), got torch.Size\(\[8, 61\]\)")])
def test_a_market_draws_each_member_from_its_own_generator_also_below_jumps(load, tmp_path, made, says):
    config = load("""
from dataclasses import dataclass, replace
import torch
from hirm.environments import ENVIRONMENTS, Environment
from hirm.frictions import Proportional
from hirm.markets import GBM, Jumps
class Loose(GBM):
    def log_returns(self, variance, n_past, dt, generators): return super().log_returns(variance, n_past, dt, [torch.Generator().manual_seed(int(torch.randint(10**9, ()))) for _ in generators])
class Mixed(GBM):
    def log_returns(self, variance, n_past, dt, generators): return super().log_returns(variance, n_past, dt, [generators[0] for _ in generators])
@dataclass(frozen=True)
class First:
    def simulate(self, n_paths, n_steps, dt, generator, **options): return GBM(0.2).simulate(n_paths, n_steps, dt, generator[:1], **options)
@dataclass(frozen=True)
class Flat:
    def simulate(self, n_paths, n_steps, dt, generator, **options):
        paths = GBM(0.2).simulate(n_paths, n_steps, dt, generator[:1], **options)
        return replace(paths, **{name: getattr(paths, name)[0] for name in ("spot", "variance", "iv", "past")})
ENVIRONMENTS["mine"] = Environment("mine", "test", MADE, Proportional(0.001))
""".replace("MADE", made), runs=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=f"market of environment 'mine'.* {says}"): train(config)
    assert not list((tmp_path / "runs").glob("*-s0-*"))


def test_who_may_also_receive_may_be_paid_to_begin(registries):
    @dataclass(frozen=True)
    class Reversal(Liability):
        @property
        def calls(self): return (1.0, 0.95), (-1.0, 1.02)
        shares, cash = -1.0, 0.95
    in_house = Environment("house", "train", GBM(0.2), Proportional(0.001), liability=Reversal())
    class Plain(GBM): pass
    own = Environment("mine", "train", Plain(0.2), Proportional(0.001), liability=Reversal())
    draw = lambda environment: environment.episode(64, [torch.Generator().manual_seed(0)])
    paid = draw(in_house).premium
    assert (paid < 0).all()
    assert torch.equal(draw(own).premium, paid)


@dataclass(frozen=True)
class Bent:
    "A market that is right but for one thing."
    how: str = ""

    def simulate(self, n_paths, n_steps, dt, generator, **options):
        n_paths, n_steps = n_paths - (self.how == "few"), n_steps - (self.how == "short")
        paths = GBM(0.2).simulate(n_paths, n_steps, dt, None if self.how == "global" else generator, **options)
        bent = {"hundred": lambda: replace(paths, spot=100 * paths.spot), "negative": lambda: replace(paths, spot=torch.cat([paths.spot[..., :-1], -paths.spot[..., -1:]], -1)), "nan": lambda: replace(paths, iv=paths.iv * np.nan),
                "double": lambda: replace(paths, spot=paths.spot.double()), "dt": lambda: replace(paths, dt=1.0), "dict": lambda: vars(paths), "past": lambda: replace(paths, past=paths.past[..., 0])}
        return bent.get(self.how, lambda: paths)()


@pytest.mark.parametrize("how, says", [
    ("hundred", "spot must begin at 1, the unit of all money, got 100; divide"), ("negative", "spot must be finite and not negative"), ("nan", "iv must be finite and not negative"),
    ("double", "spot must be of the dtype asked for, torch.float32, got torch.float64"), ("dt", "dt must be the 0.00396.* years that were asked for, got 1.0"), ("dict", "simulate must give Paths, got dict"),
    ("few", r"spot must be a tensor \(n_members, n_paths, n_steps\+1\), here \(1, 64, 61\)"), ("short", r"spot must be .*here \(1, 64, 61\), got torch.Size\(\[1, 64, 60\]\)"), ("past", "past must be daily log-returns"), ("", None)])
def test_a_market_of_ones_own_gives_what_a_market_gives(how, says):
    environment = Environment("mine", "train", Bent(how), Proportional(0.001))
    draw = lambda: environment.episode(64, [torch.Generator().manual_seed(0)])
    if says is None:
        draw()
        return
    with pytest.raises(ValueError, match=f"market of environment 'mine': {says}"): draw()


@pytest.mark.parametrize("price", [None, -0.01, float("nan"), torch.ones(7), "dear"])
def test_a_premium_of_ones_own_is_a_price(price, monkeypatch):
    monkeypatch.setattr("hirm.environments.premium", lambda *given: price)
    with pytest.raises(ValueError, match="premium of environment 'mine' must be a price of at least 0, one or one a path"):
        Environment("mine", "train", Bent(), Proportional(0.001)).episode(64, [torch.Generator().manual_seed(0)])


def test_the_same_text_elsewhere_reads_the_file_beside_it(registries, tmp_path):
    for name, high in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        write_parts(tmp_path / name)
        (tmp_path / name / "own.yaml").write_text("own: {file: tulips.csv, role: test, half_spread: 0.001}\n")
        config = Config(method="erm", scale="smoke", environments="low,medium", plugins=str(tmp_path / name / "own.yaml"))
        assert str(judged_environments(config)["own"].market.source).startswith(str(tmp_path / name))
