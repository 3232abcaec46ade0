"""CPU and CUDA: the same law, and from the same draws the same numbers. Skipped where there is no CUDA device."""
import dataclasses

import pytest
import torch

from hirm.batches import batches, policy_loss
from hirm.config import Config, training_environments
from hirm.environments import ENVIRONMENTS, common_episodes
from hirm.hedging import hedge, map_paths
from hirm.policies import POLICIES, Delta, NoHedge, WhalleyWilmott
from hirm.training import Learner, load_policy, train

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
SMALL = dict(scale="smoke", environments="low,medium", realized_vol=True, n_paths=64, n_validation=200)


def moved(episode):
    "An episode drawn on the CPU, on the device."
    there = lambda x: x.to(DEVICE)
    return dataclasses.replace(episode, paths=map_paths(there, episode.paths), prices=there(episode.prices),
                               payoff=there(episode.payoff), premium=there(episode.premium))


@pytest.mark.parametrize("name", ["low", "crisis_jumps", "crisis_liquidity", "crisis_broken", "sabr_crisis"])
def test_both_devices_draw_from_the_same_law(name):
    groups = []
    for device in ("cpu", DEVICE):
        episodes = list(common_episodes(ENVIRONMENTS[name], 50_000, "law", device=device))
        ledgers = [hedge(Delta(), e) for e in episodes]
        loss, cost = (torch.cat(x, -1).cpu()[0] for x in ([one.loss for one in ledgers], [one.cost for one in ledgers]))
        log_return = torch.cat([e.paths.spot[0, :, -1] for e in episodes]).log().cpu()
        vol = torch.cat([e.paths.realized_vol()[0, :, -1] for e in episodes]).cpu()
        numbers = [x.view(50, -1) for x in (log_return, vol, cost, loss)]
        groups.append(torch.stack([*(x.mean(1) for x in numbers), *(x.std(1) for x in numbers), numbers[-1].quantile(0.95, dim=1)]))
    here, there = groups  # nine numbers of fifty groups
    error = ((here.var(1) + there.var(1)) / 50).sqrt()
    assert ((here.mean(1) - there.mean(1)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("name", ["medium", "crisis_liquidity"])
def test_the_same_draws_are_hedged_the_same(name):
    episode = next(common_episodes(ENVIRONMENTS[name], 500, "draws"))
    learned = {kind: POLICIES[kind]([torch.Generator().manual_seed(0)]) for kind in POLICIES}
    for policy in (NoHedge(), Delta(), WhalleyWilmott()):
        assert torch.allclose(hedge(policy, moved(episode)).loss.cpu(), hedge(policy, episode).loss, atol=1e-5)
    for policy in learned.values():
        here = hedge(policy, episode).loss
        assert torch.allclose(hedge(policy.to(DEVICE), moved(episode)).loss.cpu(), here, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", ["erm", "vrex", "irm", "hirm", "fishr"])
def test_the_same_draws_train_the_same(tmp_path, method, policy):
    here, there = (Config(method=method, policy=policy, n_seeds=2, pretrain=1, ramp=1, device=device, runs=str(tmp_path), **SMALL) for device in ("cpu", DEVICE))
    one, other = Learner(here, here.members()), Learner(there, there.members())
    other.units = one.units.to(DEVICE)
    for step, episode in zip(range(4), batches(one.environments, one.seeds, here)):
        other.policy.load_state_dict(one.policy.state_dict())  # its scaler too, which was fitted to paths of the device's own
        mine, its = one.update(step, episode), other.update(step, moved(episode))
        assert torch.allclose(mine.objective, its.objective.cpu(), rtol=1e-3, atol=1e-4)
        for (name, p), q in zip(one.policy.named_parameters(), other.policy.parameters()):
            assert torch.allclose(p.grad, q.grad.cpu(), rtol=1e-2, atol=1e-3 * p.grad.abs().max().item()), name


@pytest.mark.parametrize("permuted", [False, True])
def test_both_devices_train_on_the_same_paths(permuted):
    """Random numbers are drawn on the CPU for both, and paths are made of them where they are needed."""
    both = [Config(method="erm", permute_labels=permuted, n_seeds=2, device=device, **SMALL) for device in ("cpu", DEVICE)]
    here, there = (next(batches(training_environments(c), [0, 1], c)) for c in both)
    assert there.paths.spot.device.type == DEVICE
    for name in ("spot", "variance", "iv", "past"):
        assert torch.allclose(getattr(there.paths, name).cpu(), getattr(here.paths, name), rtol=1e-3, atol=1e-4), name
    assert not permuted or torch.equal(there.origin.cpu(), here.origin)


def test_a_run_trained_on_the_device_is_read_on_both(tmp_path):
    run = train(Config(method="irm", device=DEVICE, runs=str(tmp_path), **SMALL))
    episodes = list(common_episodes(ENVIRONMENTS["high"], 200, "validation"))
    here = policy_loss(load_policy(run), episodes)
    assert torch.allclose(policy_loss(load_policy(run, DEVICE), map(moved, episodes)).cpu(), here, atol=1e-5)


@pytest.mark.parametrize("method, policy", [("erm", "band"), ("irm", "band"), ("hirm", "mlp")])
def test_the_main_notebook_goes_through_on_the_device(tmp_path, method, policy, tool):
    """Trained, put together, judged, drawn and written down."""
    asked = f"{{method: {method}, policy: {policy}, device: {DEVICE}, scale: smoke, n_seeds: 2, runs: '{tmp_path}'}}"
    done = tool("papermill", "nbs/train.ipynb", str(tmp_path / "out.ipynb"), "-y", asked, "--no-progress-bar")
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(list(tmp_path.glob("*/final_metrics.json"))) == 2
