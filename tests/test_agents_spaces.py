"""Agents for observations and actions of any space: encoded, acted, trained, resumed, judged."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.config import PPOConfig
from agents.judging.evaluate import check_task, evaluate
from agents.learning.checkpoint import load_checkpoint, save_checkpoint
from agents.learning.losses import LossSettings, Taken, ppo_loss, ppo_loss_by_autograd
from agents.learning.ppo import update
from agents.learning.resuming import resume
from agents.learning.rollout import Runner, collect
from agents.learning.train import Trainer
from agents.model.cost import multiply_adds
from agents.model.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from agents.model.mixed_encoder import MixedEncoder, RunningMoments
from agents.model.observations import MixedObservations, RepeatedObservations
from agents.model.policy import RecurrentActorCritic
from agents.model.view_maps import SMALLEST_NATURE, image_features, image_maps
from agents.watching.overlay import Overlay, draw_seen
from agents.watching.record import record_episode
from any_envs import STEPS
from command_line import TOY, Rims, assert_one_line
from envs import Layout, get_task, make_vector_env
from lab.settings import ConfigError
from selection import short

SHORTS = ("Numbers", "Place", "Places", "Box", "Image", "First", "Mixed")


def name(short: str) -> str:
    return f"any_envs:Any-{short}-v0"


def make_config(short: str, **changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "env": name(short),
        "core": "gru",
        "hidden_size": 8,
        "encoder_size": 8,
        "total_steps": 60,
        "num_envs": 4,
        "rollout_steps_per_env": 8,
        "minibatches": 2,
        "epochs": 1,
        **changes,
    }
    return PPOConfig(**settings)


def policy_for(config: PPOConfig) -> RecurrentActorCritic:
    torch.manual_seed(0)
    with make_vector_env(config.task, 1, 0) as env:
        return RecurrentActorCritic(config, env.actions, read_mission=False, view=env.view)


# Distributions -----------------------------------------------------------------------------------


def references(
    said: torch.Tensor,
) -> list[tuple[Distribution, list[torch.distributions.Distribution]]]:
    gaussian = DiagonalGaussian([-1.0] * 5, [1.0] * 5)
    torch.nn.init.normal_(gaussian.log_std)
    deviation = gaussian.log_std.detach().exp()
    parts = said.split_with_sizes([2, 3], -1)
    return [
        (Categorical(range(5)), [torch.distributions.Categorical(logits=said)]),
        (MultiCategorical([2, 3]), [torch.distributions.Categorical(logits=p) for p in parts]),
        (
            gaussian,
            [torch.distributions.Normal(said[..., i], deviation[i]) for i in range(5)],
        ),
    ]


def test_distributions_agree_with_those_of_torch() -> None:
    torch.manual_seed(0)
    said = torch.randn(400, 5)
    generator = torch.Generator().manual_seed(0)
    for distribution, parts in references(said):
        assert distribution.features == 5
        parameters = distribution.settle(said)
        actions = distribution.sample(parameters, distribution.draw(400, generator))
        columns = [actions] if len(parts) == 1 else actions.unbind(-1)
        logs = sum(part.log_prob(a) for part, a in zip(parts, columns, strict=True))
        torch.testing.assert_close(distribution.log_prob(parameters, actions), logs)
        entropies = sum(part.entropy() for part in parts)
        torch.testing.assert_close(distribution.entropy(parameters), entropies)
        best = distribution.log_prob(parameters, distribution.mode(parameters))
        assert bool((best >= distribution.log_prob(parameters, actions)).all())


def test_actions_are_drawn_as_often_as_they_are_probable() -> None:
    generator = torch.Generator().manual_seed(0)
    two = MultiCategorical([2, 3])
    parameters = two.settle(torch.tensor([1.0, 0, 0, 1, 2])).expand(20_000, 5)
    actions = two.sample(parameters, two.draw(20_000, generator))
    for column, part in zip(
        actions.unbind(-1), parameters[0].split_with_sizes([2, 3]), strict=True
    ):
        shares = column.bincount(minlength=len(part)) / len(column)
        torch.testing.assert_close(shares, part.exp(), atol=0.02, rtol=0)
    gaussian = DiagonalGaussian([-9.0] * 2, [9.0] * 2)
    gaussian.log_std.data = torch.tensor([0.5, -1.0])
    drawn = gaussian.sample(torch.tensor([[1.0, -2.0]]), gaussian.draw(20_000, generator))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), gaussian.log_std.exp(), atol=0.05, rtol=0)


def test_a_clipped_action_keeps_the_probability_of_what_was_drawn() -> None:
    gaussian = DiagonalGaussian([-1.0], [1.0])
    mean, drawn = torch.tensor([[0.0]]), torch.tensor([[3.0]])
    action = gaussian.sample(mean, drawn)
    assert gaussian.told(action).tolist() == [[1.0]]
    assert gaussian.log_prob(mean, action).item() == pytest.approx(-4.5 - 0.9189385)


def test_the_loss_by_autograd_is_that_by_hand() -> None:
    torch.manual_seed(0)
    said = torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)
    values = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    old = torch.randn(6, 5, 3, dtype=torch.float64).log_softmax(-1)
    actions = torch.randint(3, (6, 5))
    taken = Taken(
        actions,
        old.gather(-1, actions.unsqueeze(-1)).squeeze(-1),
        torch.randn(6, 5, dtype=torch.float64),
        torch.randn(6, 5, dtype=torch.float64),
        torch.rand(6, 5) < 0.7,
    )
    settings, categorical = LossSettings(0.2, 0.5, 0.01), Categorical(range(3))
    found = []
    for by_hand in (True, False):
        parameters = categorical.settle(said)
        if by_hand:
            loss = ppo_loss(parameters, values, taken, settings)
        else:
            log_prob = categorical.log_prob(parameters, actions)
            entropy = categorical.entropy(parameters)
            loss = ppo_loss_by_autograd(log_prob, entropy, values, taken, settings)
        grads = torch.autograd.grad(loss.loss, [said, values])
        found.append((*loss, *grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# Encoder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 36, 36), (1, 84, 100), (3, 35, 200), (4, 1, 1), (2, 5, 9)])
def test_convolutions_stand_over_images_of_any_size(shape: tuple[int, int, int]) -> None:
    maps = image_maps(shape)
    assert maps(torch.zeros(2, *shape)).flatten(1).shape == (2, image_features(shape))
    kernel = next(p for p in maps.parameters() if p.ndim == 4).shape[-1]
    assert kernel == (8 if min(shape[1:]) >= SMALLEST_NATURE else 3)


def test_pixels_are_scaled_and_stay_in_their_places() -> None:
    layout = Layout(numbers=1, images=((1, 5, 5), (3, 2, 4)))
    encoder = MixedEncoder(4, layout, mission=False, normalize=False)
    seen: list[torch.Tensor] = []
    for maps in encoder.maps:
        maps.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pixels = torch.arange(25 + 24, dtype=torch.uint8).expand(2, 3, 49)
    encoder(MixedObservations(torch.zeros(2, 3, 1), pixels, torch.zeros(2, 3, 0)))
    first, second = seen
    assert first.shape == (6, 1, 5, 5)
    assert second.shape == (6, 3, 2, 4)
    torch.testing.assert_close(second[0, 1, 0, 2].item() * 255, 25.0 + 8 + 2)


def test_moments_are_those_of_all_numbers_together() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(n, 3) * 5 + 100 for n in (2, 40, 7)]
    moments = RunningMoments(3)
    assert torch.equal(moments(parts[0]).clamp(-10, 10), parts[0].clamp(-10, 10))  # nothing yet
    for part in parts:
        moments.add(part)
    every = torch.cat(parts).double()
    torch.testing.assert_close(moments.mean, every.mean(0))
    torch.testing.assert_close(moments.variance, every.var(0, correction=0))
    scaled = moments(torch.cat(parts))
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert moments(torch.full((1, 3), 1e6)).tolist() == [[10.0] * 3]


def test_only_numbers_are_normalised() -> None:
    encoder = MixedEncoder(4, Layout(2, (3,)), mission=False, normalize=True)
    assert encoder.moments is not None
    seen: list[torch.Tensor] = []
    encoder.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    observations = MixedObservations(
        torch.tensor([[3.0, 10, 0, 1, 0], [5.0, 30, 0, 1, 0]]).unsqueeze(0),
        torch.zeros(1, 2, 0, dtype=torch.uint8),
        torch.zeros(1, 2, 0, dtype=torch.int64),
    )
    encoder.add_seen(observations)
    encoder(observations)
    expected = torch.tensor([[-1.0, -1, 0, 1, 0], [1.0, 1, 0, 1, 0]])
    torch.testing.assert_close(seen[0], expected)
    repeated = MixedEncoder(4, Layout(2, (3,)), mission=False, normalize=True)
    repeated.add_seen(RepeatedObservations.of(observations))
    assert repeated.moments is not None
    assert torch.equal(repeated.moments.variance, encoder.moments.variance)


@pytest.mark.parametrize("short", SHORTS)
def test_replay_equals_what_was_stored_and_resets_forget(short: str) -> None:
    """Log-probabilities of a rollout with episodes that end inside it, anew and as collected."""
    policy = policy_for(make_config(short))
    torch.nn.init.normal_(policy.actor.weight)
    with make_vector_env(name(short), 4, 0) as env:
        runner = Runner(env, policy, torch.Generator().manual_seed(0))
        collect(runner, 3)
        rollout, episodes = collect(runner, 2 * STEPS)
    assert episodes
    assert bool(rollout.episode_start[1:].any())
    pairs = isinstance(rollout.observations, RepeatedObservations)
    assert pairs == policy.encoder.repeats == (short not in ("Numbers", "Box"))
    envs = torch.tensor([2, 0])
    output = policy(
        rollout.observations.envs(envs),
        tuple(part[:, envs] for part in rollout.initial_state),
        rollout.episode_start[:, envs],
    )
    again = policy.distribution.log_prob(output.parameters, rollout.actions[:, envs])
    torch.testing.assert_close(again, rollout.log_probs[:, envs], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(output.values, rollout.values[:-1, envs], atol=1e-4, rtol=1e-5)
    # The control: without the resets it is something else.
    never = torch.zeros_like(rollout.episode_start[:, envs])
    state = tuple(part[:, envs] for part in rollout.initial_state)
    other = policy(rollout.observations.envs(envs), state, never)
    assert not torch.allclose(other.values, output.values, atol=1e-4)


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", short(["gru", "rim_lstm", "lstm", "none"], 0, 1))
@pytest.mark.parametrize("env", SHORTS)
def test_agents_are_trained_saved_and_judged(tmp_path: Path, env: str, core: str) -> None:
    config = make_config(env, core=core)
    errors: list[float] = []
    saved = Trainer(config, tmp_path / "run").run(lambda row: errors.append(row["ratio_error"]))
    assert max(errors) < 1e-4
    loaded = load_checkpoint(tmp_path / "run")
    assert (loaded.view, loaded.space) == (saved.view, saved.space)
    policy = loaded.make_policy()
    assert multiply_adds(policy).total > 0
    for mode in ("sample", "greedy"):
        result = evaluate(policy, config.task, episodes=2, seed=0, mode=mode)
        assert [episode.length for episode in result.episodes] == [STEPS] * 2
        assert result.success_rate is None


def test_gaussians_move_towards_what_is_rewarded() -> None:
    """Rewards are highest for actions of 0: the deviation falls, as does the loss of the mean."""
    config = make_config("Mixed", core="none", num_envs=16, epochs=8, learning_rate=3e-3)
    policy = policy_for(config)
    assert isinstance(policy.distribution, DiagonalGaussian)
    policy.actor.bias.data.fill_(1.0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    shuffle = torch.Generator().manual_seed(0)
    with make_vector_env(config.task, 16, 0) as env:
        runner = Runner(env, policy, torch.Generator().manual_seed(0))
        means = []
        for _ in range(15):
            rollout, _ = collect(runner, 8)
            means.append(float(rollout.rewards[rollout.valid].mean()))
            update(policy, optimizer, rollout, config, shuffle)
    assert means[-1] > means[0] + 0.1
    assert bool((policy.distribution.log_std < 0).all())


def test_scaled_rewards_are_learned_from_and_returns_are_shown_as_they_are(tmp_path: Path) -> None:
    rows: list[Mapping[str, float]] = []
    for scale in (1.0, 0.5):
        Trainer(make_config("Box", reward_scale=scale), tmp_path / str(scale)).run(rows.append)
    plain, scaled = rows[0], rows[len(rows) // 2]
    assert plain["episode_return_mean"] == scaled["episode_return_mean"]
    assert scaled["value_loss"] < 0.5 * plain["value_loss"]


@pytest.mark.parametrize("env", short(["Box", "Mixed", "Places", "Image"], 0, 1))
def test_a_run_resumes_bit_identically(tmp_path: Path, env: str) -> None:
    config = make_config(
        env,
        normalize_observations=env in ("Box", "Mixed"),
        total_steps=200,
        restart_envs_every=3,
        checkpoint_every=2,
    )
    whole = Trainer(config, tmp_path / "whole").run()

    def stop(row: Mapping[str, float]) -> None:
        if row["update"] == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, tmp_path / "parts").run(stop)
    parts = resume(tmp_path / "parts")[0].run()
    assert parts.updates == whole.updates > 5
    assert all(torch.equal(parts.policy[key], value) for key, value in whole.policy.items())
    assert ("encoder.moments.mean" in whole.policy) == config.normalize_observations


def test_running_statistics_are_saved_and_stay_as_they_are_when_an_agent_is_used(
    tmp_path: Path,
) -> None:
    config = make_config("Numbers", normalize_observations=True)
    trainer = Trainer(config, tmp_path / "run")
    saved = trainer.run()
    rows = saved.updates * config.num_envs * config.rollout_steps_per_env
    assert saved.policy["encoder.moments.count"].item() == rows
    policy = load_checkpoint(tmp_path / "run").make_policy()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    assert before["encoder.moments.variance"].tolist() != [1.0] * 3
    evaluate(policy, config.task, episodes=4, seed=0)
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


def test_no_statistics_without_the_option() -> None:
    policy = policy_for(make_config("Numbers"))
    assert set(policy.state_dict()) == {key for key, _ in policy.named_parameters()}


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        ("Numbers", {"encoder": "cnn"}, "encoder must be linear.* there is no image"),
        ("Image", {"encoder": "nfm"}, "encoder must be linear.* through convolutions in any case"),
        ("Place", {"normalize_observations": True}, "needs a Box of numbers to read; .*of 5"),
        ("Numbers", {"direction": True}, "gives no direction"),
        ("Numbers", {"mission": "on"}, "gives no mission"),
        ("Box", {"actions": "left"}, "actions cannot be chosen from: .* has continuous actions"),
        ("Rows", {}, "no agent can be trained in"),
    ],
)
def test_what_an_agent_cannot_do_is_refused_before_anything_is_made(
    tmp_path: Path, env: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Trainer(make_config(env, **changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_agents_are_not_judged_in_other_spaces() -> None:
    for own, other, message in (
        ("Numbers", "Box", "has continuous actions of 2 .*, but the agent 2 actions"),
        ("Numbers", "Place", "shows its agent categories of 5; this one sees 3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            check_task(policy_for(make_config(own)), get_task(name(other)))


@pytest.mark.parametrize("changes", [{"low": [0.0]}, {"kind": "discrete"}, {"sizes": [2]}])
def test_checkpoints_with_another_space_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    Trainer(make_config("Box"), tmp_path / "run").run()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.action_space is not None
    space = checkpoint.action_space._replace(**changes)
    folder = tmp_path / "other"
    folder.mkdir()
    if space.kind == "discrete":
        object.__setattr__(checkpoint, "num_actions", 7)
        space = None  # type: ignore[assignment]
    object.__setattr__(checkpoint, "action_space", space)
    save_checkpoint(folder, checkpoint)
    with pytest.raises(ValueError, match=r"action_space must be|do not fit") as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_wrappers_are_checked_when_settings_are_made() -> None:
    with pytest.raises(ConfigError, match=r"wrapper cannot be used: unknown wrapper 'FlatWrap'"):
        make_config("Numbers", wrapper="FlatWrap")


# Recording ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["Numbers", "Places", "Box", "Image", "First", "Mixed"])
def test_episodes_are_recorded_and_drawn(env: str) -> None:
    config = make_config(env)
    recording = record_episode(policy_for(config), config.task, "gru", seed=0)
    assert recording.steps == STEPS
    assert (len(recording.frames), len(recording.views)) == (STEPS + 1, STEPS + 1)
    overlay = Overlay(recording)
    assert overlay.draw(0).size == overlay.draw(STEPS).size
    assert ((recording.probabilities >= 0) & (recording.probabilities <= 1)).all()
    assert recording.probabilities.shape == (STEPS, len(recording.action_names))


def test_pictures_of_what_is_seen() -> None:
    colours = np.zeros((8, 4, 3), dtype=np.uint8)
    colours[0, 0] = 200
    assert draw_seen(colours)[:28, :28].min() == 200
    assert draw_seen(colours[..., :1]).shape == (224, 112, 3)
    bars = draw_seen(np.array([0.0, 3.0, -3.0, 1e30]))
    dark = (bars[..., 0] == 90).sum(axis=1)[::16]
    assert dark[0] == 1
    assert dark[1] == dark[2] < dark[3]


# The command line --------------------------------------------------------------------------------


def test_commands_take_any_environment(rims: Rims) -> None:
    twice = ("--wrapper", "any_envs:Doubled", "--wrapper", "FlattenObservation")
    done = rims("train", "--env", name("Numbers"), *twice, *TOY, "--run-dir", "run")
    assert done.code == 0, done.err
    text = Path("run/config.toml").read_text()
    assert 'wrapper = "any_envs:Doubled,FlattenObservation"' in text
    plain = json.loads(rims("evaluate", "run", "--episodes", "2", "--json").out)
    assert plain["tasks"][0]["success_rate"] is None
    for more in ((), ("--env", name("Numbers"))):
        assert rims("evaluate", "run", *more, "--episodes", "2").code == 0
        assert rims("record", "run", *more, "--out", "film.gif", "--max-steps", "2").code == 0
    assert rims("resume", "run", "--total-steps", "256").code == 0
    assert rims("watch", "run").code == 0


SUITE = """
name = "any"
train = "any_envs:Any-Numbers-v0"
unseen = ["any_envs:Any-Box-v0"]
"""


def test_comparisons_wrap_all_tasks_of_a_suite(rims: Rims) -> None:
    Path("any.toml").write_text(SUITE.replace("Any-Box", "Any-Unseen"))
    call = ("compare", "--suite", "any.toml", "--cores", "none", "--seeds", "1", *TOY)
    more = ("--wrapper", "any_envs:Doubled", "--run-root", "root", "--episodes", "2")
    done = rims(*call, *more, "--jobs", "1")
    assert done.code == 0, done.err
    assert "## Return" in Path("root/comparison.md").read_text()
    Path("any.toml").write_text(SUITE)  # with other actions
    line = assert_one_line(rims(*call, "--run-root", "other"))
    assert "Any-Box-v0" in line
    assert not Path("other").exists()


def test_what_commands_cannot_do_is_one_line(rims: Rims) -> None:
    assert rims("train", "--env", name("Unseen"), *TOY, "--run-dir", "run").code == 0
    line = assert_one_line(rims("record", "run", "--out", "film.gif"))
    assert "cannot be drawn" in line
    line = assert_one_line(rims("train", "--env", "CartPole-v1", "--wrapper", "Nothing", *TOY))
    assert "--wrapper cannot be used: unknown wrapper 'Nothing'" in line
    line = assert_one_line(rims("train", "--env", name("Words"), *TOY))
    assert "part 'word' is Text" in line
    assert not Path("runs").exists()
