"""Agents in other people's environments: trained, judged and recorded there, or refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from minigrid.core.constants import OBJECT_TO_IDX

import foreign_envs
from agents.config import PPOConfig
from agents.judging import evaluate as evaluating
from agents.judging.compare import judge, plan
from agents.judging.evaluate import check_task, evaluate
from agents.judging.report import to_dict, to_markdown, write_report
from agents.learning.checkpoint import agent_store, load_checkpoint, save_checkpoint
from agents.learning.resuming import resume
from agents.learning.train import Resumed, Trainer
from agents.model.cost import multiply_adds
from agents.model.encoder import ObservationEncoder
from agents.model.observations import Observations
from agents.model.policy import RecurrentActorCritic
from agents.model.trainable import require_trainable
from agents.sweep.run import last_part, run_once
from agents.watching.overlay import draw_view
from agents.watching.record import record_episode
from command_line import TOY, Rims, assert_one_line
from compare_cases import ignore
from envs import STOCK_VIEW, EnvironmentFailed, Task, View, get_suite, get_task, make_vector_env
from lab.comparing import train_missing
from lab.disk.folder import read_progress
from lab.running.guards import RunStopped
from lab.settings import ConfigError
from selection import short

CPU = torch.device("cpu")
ROUND = {"num_envs": 4, "rollout_steps_per_env": 8, "minibatches": 2, "epochs": 1}


def name(short: str) -> str:
    """As the command line takes it: other processes import the module by it."""
    return f"foreign_envs:Foreign-{short}-v0"


def make_config(short: str, **changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "env": name(short),
        "core": "gru",
        "hidden_size": 8,
        "encoder_size": 8,
        "total_steps": 60,
        **ROUND,
        **changes,
    }
    return PPOConfig(**settings)


def policy_for(short: str, **changes: Any) -> RecurrentActorCritic:
    config = make_config(short, **changes)
    with make_vector_env(config.task, 1, 0) as env:
        return RecurrentActorCritic(config, env.num_actions, read_mission=False, view=env.view)


@pytest.fixture
def own_things() -> Iterator[None]:
    foreign_envs.know_own_things()
    yield
    foreign_envs.forget_own_things()


# Views -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["linear", "cnn", "nfm"])
@pytest.mark.parametrize("short", ["View9", "Full"])
def test_agents_train_on_views_of_any_size(tmp_path: Path, short: str, encoder: str) -> None:
    config = make_config(short, encoder=encoder)
    saved = Trainer(config, tmp_path / "run").run()
    loaded = load_checkpoint(tmp_path / "run")
    assert isinstance(saved.view, View)
    assert loaded.view == saved.view == saved.view._replace(categories=STOCK_VIEW.categories)
    assert isinstance(loaded.view, View)
    assert loaded.view.width == {"View9": 9, "Full": 5}[short]
    result = evaluate(loaded.make_policy(), config.task, episodes=2, seed=0)
    assert len(result.episodes) == 2
    assert multiply_adds(loaded.make_policy()).total > 0


def test_a_run_in_another_view_resumes_bit_identically(tmp_path: Path) -> None:
    config = make_config("Full", total_steps=200, restart_envs_every=3, checkpoint_every=2)
    whole = Trainer(config, tmp_path / "whole").run()

    def stop(row: Mapping[str, float]) -> None:
        if row["update"] == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, tmp_path / "parts").run(stop)
    parts = resume(tmp_path / "parts")[0].run()
    assert parts.updates == whole.updates > 4
    assert parts.view == whole.view
    assert all(torch.equal(parts.policy[key], value) for key, value in whole.policy.items())


def test_the_one_hot_view_of_an_own_size_has_each_category_in_its_place() -> None:
    view = View(2, 1, (3, 2, 2))
    encoder = ObservationEncoder(4, direction=False, mission=False, view=view)
    seen: list[torch.Tensor] = []
    encoder.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = torch.tensor([[[2, 1, 0]], [[0, 0, 1]]], dtype=torch.uint8).view(1, 2, 1, 3)
    encoder(Observations(image, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1)))
    assert seen[0].tolist() == [[0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1]]


@pytest.mark.usefixtures("own_things")
def test_own_colours_have_a_place_of_their_own() -> None:
    with make_vector_env(name("Orange"), 1, [0]) as env:
        observation = env.reset()
    assert observation.image[..., 1].max() == 6
    encoder = ObservationEncoder(16, direction=False, mission=False)  # made after minigrid knew
    seen: list[int] = []
    encoder.linear.register_forward_pre_hook(lambda _, given: seen.append(int(given[0].sum())))
    encoder(Observations.from_numpy(observation, CPU))
    assert seen == [3 * 49]  # a one for each number of each cell; two in one place would be fewer


@pytest.mark.parametrize(("channel", "value"), [(0, 11), (1, 6), (2, 4)])
def test_an_encoder_refuses_what_has_no_place(channel: int, value: int) -> None:
    encoder = ObservationEncoder(4, direction=False, mission=False, view=STOCK_VIEW)
    image = torch.zeros(1, *STOCK_VIEW.shape, dtype=torch.uint8)
    rest = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1)
    image[0, 3, 3, channel] = value - 1
    encoder(Observations(image, *rest))  # the control: the largest that has one
    image[0, 3, 3, channel] = value
    with pytest.raises(ValueError, match="objects, colours and states must be below"):
        encoder(Observations(image, *rest))


@pytest.mark.usefixtures("own_things")
def test_agents_with_own_things_are_trained_loaded_and_recorded(tmp_path: Path) -> None:
    config = make_config("Kitchen")
    Trainer(config, tmp_path / "run").run()
    foreign_envs.forget_own_things()  # the agent knows them still
    policy = load_checkpoint(tmp_path / "run").make_policy()
    assert policy.view.categories == (12, 7, 4)
    foreign_envs.know_own_things()
    recording = record_episode(policy, config.task, "gru", seed=0)
    assert recording.outcome.startswith(f"ended after {foreign_envs.STEPS} steps, return")
    assert recording.views[0][..., 0].max() == 11
    assert draw_view(recording.views[0]).shape == (224, 224, 3)


def test_the_agent_is_drawn_where_a_full_view_shows_it() -> None:
    image = np.ones((5, 5, 3), dtype=np.uint8)
    pictures = []
    for x in (1, 2):
        image[..., 0] = OBJECT_TO_IDX["empty"]
        image[x, 1] = (OBJECT_TO_IDX["agent"], 0, 0)
        pictures.append(draw_view(image))
    assert (pictures[0][:, 32:64] != pictures[1][:, 32:64]).any()
    assert (pictures[0][128:] == pictures[1][128:]).all()  # and nowhere else


# What an agent cannot see or do ------------------------------------------------------------------


def test_an_agent_is_not_judged_on_a_view_of_another_size(tmp_path: Path) -> None:
    policy = policy_for("View9")
    with pytest.raises(ValueError, match="shows its agent 7x7 cells; this one sees 9x9"):
        check_task(policy, get_task("MiniGrid-Empty-5x5-v0"))
    with pytest.raises(ValueError, match="shows its agent 6x6 cells; this one sees 5x5"):
        require_trainable(make_config("Full"), others=[get_task(name("Full6"))])
    check_task(policy, get_task(name("View9")))


@pytest.mark.usefixtures("own_things")
def test_an_agent_meets_what_it_was_not_made_for_as_an_error() -> None:
    config = make_config("Room")
    policy = RecurrentActorCritic(config, 7, read_mission=False, view=STOCK_VIEW)
    with pytest.raises(ValueError, match="object 11, and the agent knows 0 to 10"):
        check_task(policy, get_task(name("Kitchen")))
    with pytest.raises(EnvironmentFailed, match="object 11, and the agent knows 0 to 10"):
        evaluate_unchecked(policy, get_task(name("Kitchen")))
    assert len(evaluate(policy, config.task, episodes=2, seed=0).episodes) == 2  # the control


def evaluate_unchecked(policy: RecurrentActorCritic, task: Task) -> None:
    evaluating._first_episodes(policy, task, [0], "gymnasium", None, None)


def test_parts_and_missions_that_an_agent_cannot_read_are_refused_before_a_folder(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    for named, changes, message in (
        ("NoDirection", {"direction": True}, "gives no direction"),
        ("ViewAlone", {"mission": "on"}, "gives no mission"),
        ("SpeakingOtherwise", {}, "are the same to an agent"),
        ("RGB", {"encoder": "nfm"}, "encoder must be linear"),
        ("Room", {"normalize_observations": True}, "needs a Box of numbers to read"),
        ("Counting", {"actions": "left"}, "actions must be of those"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(make_config(named, **changes), folder)
    assert not folder.exists()
    Trainer(make_config("SpeakingOtherwise", mission="off"), folder).run()  # the cure


def test_init_from_needs_the_same_view(tmp_path: Path) -> None:
    Trainer(make_config("Full"), tmp_path / "source").run()
    source = str(tmp_path / "source")
    with pytest.raises(ConfigError, match=r"names an agent, .* that sees View"):
        Trainer(make_config("Full6", init_from=source), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Trainer(make_config("Full", init_from=source, seed=1), tmp_path / "run").run()


# Checkpoints -------------------------------------------------------------------------------------


def test_checkpoints_without_a_view_are_of_the_usual_one(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run, tmp_path / "run")
    store = agent_store(tmp_path / "run")
    stored = store.load("last")
    about = {k: v for k, v in stored.about.items() if k != "view"}
    assert about != stored.about
    checkpoint = load_checkpoint(toy_run)
    number = checkpoint.updates + 1
    store.save(number, stored.tensors, {**about, "updates": number}, score=None)
    assert load_checkpoint(tmp_path / "run").view == STOCK_VIEW


@pytest.mark.parametrize("view", [[7, 7], [7, 7, [11, 6, 400]], "7x7", [0, 7, [11, 6, 4]], None])
def test_a_view_that_is_none_is_refused_in_one_line(
    toy_run: Path, tmp_path: Path, view: object
) -> None:
    checkpoint = load_checkpoint(toy_run)
    save_checkpoint(tmp_path, replace(checkpoint, view=view))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not a complete checkpoint .view must"):
        load_checkpoint(tmp_path)


# Success that nobody tells -----------------------------------------------------------------------


def test_success_is_none_where_nobody_says_and_the_environments_word_where_it_does(
    tmp_path: Path,
) -> None:
    silent, telling = (
        evaluate(policy_for(short), get_task(name(short)), episodes=4, seed=0)
        for short in ("Bonus", "Telling")
    )
    assert silent.success_rate is None
    assert silent.to_dict()["success_rate"] is None
    assert telling.success_rate is not None
    assert telling.success_rate.mean < 1  # though every reward is above 0
    assert telling.mean_return.mean == foreign_envs.STEPS


def test_progress_and_checkpoints_keep_that_success_is_not_known(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Trainer(make_config("Bonus"), folder).run()
    progress = read_progress(folder)
    assert math.isnan(progress["success_rate"][-1])
    assert math.isfinite(progress["episode_return_mean"][-1])
    trainer, _ = resume(folder, total_steps=120)
    trainer.run()
    assert math.isnan(read_progress(folder)["success_rate"][-1])


SUITE = """
name = "mine"
train = "foreign_envs:Foreign-Bonus-v0"
unseen = ["foreign_envs:Foreign-Room-v0"]
"""


@pytest.mark.parametrize("rule", short([False, True], 1))
def test_a_comparison_of_silent_environments_is_by_return(tmp_path: Path, rule: bool) -> None:
    text = SUITE
    if rule:  # the control: a rule of the suite
        text = text.replace('"foreign', '{ success = "reward", id = "foreign')
        text = text.replace('-v0"', '-v0" }')
    (tmp_path / "mine.toml").write_text(text)
    suite = get_suite(str(tmp_path / "mine.toml"))
    config = PPOConfig(**{
        **{k: v for k, v in vars(make_config("Room")).items() if k != "env"},
        "suite": str(tmp_path / "mine.toml"),
    })  # fmt: skip
    runs = plan(config, ["gru", "none"], [0], tmp_path / "root", tasks=suite.tasks)
    assert train_missing(runs, 2, ignore) == []
    comparison = judge(
        runs, suite, suite.tasks, episodes=4, mode="sample", jobs=2, on_progress=ignore
    )
    plain, markdown = json.loads(json.dumps(to_dict(comparison))), to_markdown(comparison)
    core = plain["cores"]["gru"]
    task = core["tasks"][suite.train.id]
    assert comparison.by_success is rule
    assert plain["judged_by"] == ("success rate" if rule else "return")
    assert ("## Success rate" in markdown) is rule
    assert ("what success is" in markdown) is not rule
    assert ("## Sample efficiency" in markdown) is rule
    assert (task["success_rate"] is not None) is rule
    assert (core["env_steps_to_learn"] is not None) is rule
    assert task["mean_return"]["mean"] > 1
    assert all(path.is_file() for path in write_report(comparison, tmp_path))


def test_a_sweep_needs_an_objective_that_is_known(tmp_path: Path) -> None:
    config, unseen = make_config("Bonus"), (get_task(name("Bonus")),)
    folder = tmp_path / "run"
    for tasks in ((), unseen):
        with pytest.raises(ValueError, match='take the objective "return"'):
            run_once(config, folder, tasks, 2)
        assert run_once(config, folder, tasks, 2, "return").value > 1
    assert last_part(folder, "return") > 1


# What goes wrong later ---------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["NaN", "Floats", "Raising", "Later"])
def test_an_environment_that_fails_stops_training_and_the_checkpoint_stays(
    tmp_path: Path, short: str
) -> None:
    folder = tmp_path / "run"
    config = make_config("Room")
    Trainer(config, folder).run()
    before = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    checkpoint = load_checkpoint(folder)
    task = replace(config, env=name(short), total_steps=10_000)
    with pytest.raises(RunStopped, match=f"training stopped in update 1: environment .*{short}"):
        Trainer(task, tmp_path / "new").run()
    assert not (tmp_path / "new" / "checkpoints").exists()
    # The same room becomes such a one while the run is interrupted.
    trainer = Trainer(task, folder, resumed=Resumed(checkpoint))
    with pytest.raises(RunStopped, match=r"environment .* failed in "):
        trainer.run()
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before


def test_an_environment_that_never_ends_an_episode_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluating, "MAX_STEPS", 50)
    with pytest.raises(EnvironmentFailed, match="has not ended an episode in 50 steps; give it"):
        evaluate(policy_for("Endless"), get_task(name("Endless")), episodes=2, seed=0)


# The command line --------------------------------------------------------------------------------


def test_commands_take_module_and_id(rims: Rims, tmp_path: Path) -> None:
    room = name("Bonus")
    done = rims("train", "--env", room, *TOY, "--run-dir", "run")
    assert done.code == 0
    assert "success unknown" in done.err
    assert f'env = "{room}"' in Path("run/config.toml").read_text()
    table = rims("evaluate", "run", "--episodes", "2")
    assert table.code == 0
    assert "the environment does not say" in table.out
    plain = json.loads(rims("evaluate", "run", "--env", room, "--episodes", "2", "--json").out)
    assert plain["tasks"][0]["success_rate"] is None
    recorded = rims("record", "run", "--out", "film.gif", "--max-steps", "3")
    assert recorded.code == 0
    assert rims("plot", "run", "--out", "plot.png").code == 0
    assert "unknown" in rims("watch", "run").out
    assert rims("resume", "run", "--total-steps", "256").code == 0


@pytest.mark.parametrize(
    ("env", "hint"),
    [
        ("Blackjack-v1", "observations must be vectors of numbers"),
        (name("Inventory"), "which agents do not read"),
        ("no_such_module:A-v0", "cannot be imported"),
        ("foreign_envs:Foreign-Rom-v0", "did you mean 'Foreign-Room-v0'"),
    ],
)
def test_environments_that_do_not_fit_are_refused_before_anything_is_made(
    rims: Rims, env: str, hint: str
) -> None:
    assert hint in assert_one_line(rims("train", "--env", env, *TOY))
    assert list(Path().iterdir()) == []


def test_environments_that_fail_end_commands_in_one_line(rims: Rims) -> None:
    assert rims("train", "--env", name("Room"), *TOY, "--run-dir", "run").code == 0
    for env, code, hint in (
        ("NaN", 1, "failed in step 3: the reward nan is not finite"),
        ("Text", 1, "failed in step 3: ValueError"),
        ("RGB", 2, "images 3x40x40, a mission; this one sees 7x7 cells"),
    ):
        line = assert_one_line(rims("evaluate", "run", "--env", name(env), "--episodes", "2"), code)
        assert hint in line
    line = assert_one_line(rims("record", "run", "--out", "a.gif", "--env", name("Blind")))
    assert "cannot be drawn" in line
    assert not Path("a.gif").exists()
    failed = rims("train", "--env", name("NaN"), *TOY, "--run-dir", "bad")
    assert (failed.code, failed.out) == (1, "")
    assert "the reward nan is not finite" in failed.err.splitlines()[-1]
