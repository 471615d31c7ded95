"""Other people's environments: nothing that holds for minigrid's own is assumed of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import foreign_envs
from envs import (
    STOCK_VIEW,
    EnvironmentFailed,
    StepResult,
    Task,
    View,
    get_task,
    make_drawable_env,
    make_vector_env,
    minigrid_view,
    mission_varies,
    modules_of,
    require_makeable,
    require_missions_differ,
    resolve_backend,
    view_of,
)
from envs.backends.foreign import told_success
from envs.ids import return_range, success_rule
from foreign_envs import STEPS

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed"
)
BACKENDS = [pytest.param("envpool", marks=needs_envpool), "gymnasium"]


def name(short: str) -> str:
    return f"Foreign-{short}-v0"


@pytest.fixture
def own_things() -> Iterator[None]:
    """A colour and an object of a user's own, known to minigrid."""
    foreign_envs.know_own_things()
    yield
    foreign_envs.forget_own_things()


def play(task: Task | str, action: int = 0, steps: int = STEPS) -> list[StepResult]:
    with make_vector_env(task, 2, 0, "gymnasium") as env:
        env.reset()
        return [env.step(np.full(2, action)) for _ in range(steps)]


def test_modules_of_an_environment_are_those_that_make_it() -> None:
    ids = {
        "Own-Class-v0": {"entry_point": foreign_envs.Room},
        "Own-Text-v0": {"entry_point": "foreign_envs:Room"},
        "Own-Wrapped-v0": {
            "entry_point": "minigrid.envs:EmptyEnv",
            "additional_wrappers": (
                gymnasium.envs.registration.WrapperSpec("W", "foreign_envs:Room", None),
            ),
        },
        "Own-Builtin-v0": {"entry_point": "minigrid.envs:EmptyEnv"},
    }
    for id, how in ids.items():
        gymnasium.register(id, **how)  # type: ignore[arg-type]
    try:
        found = {id: modules_of(id) for id in ids}
        named = modules_of("foreign_envs:Own-Builtin-v0")
    finally:
        for id in ids:
            del gymnasium.registry[id]
    assert found == {
        "Own-Class-v0": ["foreign_envs"],
        "Own-Text-v0": ["foreign_envs"],
        "Own-Wrapped-v0": ["foreign_envs", "minigrid.envs"],
        "Own-Builtin-v0": [],
    }
    assert named == ["foreign_envs"]


# How an episode ends, and whether it was a success -----------------------------------------------


def test_a_step_limit_is_a_truncation_also_with_a_reward_at_every_step() -> None:
    *_, before, end = play(name("Bonus"))
    assert (before.reward > 0).all()
    assert (end.reward > 0).all()
    assert not before.truncated.any()
    assert end.truncated.all()
    assert not end.terminated.any()


def test_terminated_wins_where_an_environment_says_both() -> None:
    task = Task(id="MiniGrid-Empty-5x5-v0", gym_kwargs={"max_steps": 5})
    with make_vector_env(task, 1, 0, "gymnasium") as env:
        env.reset()
        for action in (2, 2, 1, 2, 2):  # to the goal in the very last step
            end = env.step(np.array([action]))
    assert (end.terminated.tolist(), end.truncated.tolist()) == ([True], [False])
    assert end.success.tolist() == [1.0]


@pytest.mark.parametrize("id", ["Room", "Bonus", "Counting", "TellingSometimes"])
def test_success_is_unknown_where_nobody_says(id: str) -> None:
    end = play(name(id), action=1)[-1]
    assert end.truncated.all()
    assert np.isnan(end.success).all()


@pytest.mark.parametrize("id", ["Telling", "TellingOtherwise"])
def test_success_is_the_environments_word(id: str) -> None:
    # Its reward is 1 at every step, so that a rule by reward would call both a success.
    assert play(name(id), action=0)[-1].success.tolist() == [1.0, 1.0]
    assert play(name(id), action=1)[-1].success.tolist() == [0.0, 0.0]


def test_the_environments_word_counts_before_the_rule_of_a_suite() -> None:
    task = Task(id=name("Telling"), success="reward")
    assert play(task, action=1)[-1].success.tolist() == [0.0, 0.0]
    silent = Task(id=name("Bonus"), success="reward")
    assert play(silent)[-1].success.tolist() == [1.0, 1.0]


def test_some_copies_may_say_and_others_not() -> None:
    with make_vector_env(name("TellingSometimes"), 2, 0, "gymnasium") as env:
        env.reset()
        for _ in range(STEPS):
            end = env.step(np.array([0, 1]))
    assert end.success[0] == 1
    assert np.isnan(end.success[1])


@pytest.mark.parametrize("word", [None, "yes", 0.5, float("nan"), np.ones(2)])
def test_what_is_neither_yes_nor_no_is_no_word(word: object) -> None:
    assert told_success({"is_success": word, "success": 1}) == 1.0
    assert told_success({"success": word}) is None
    assert told_success({"final_info": {"success": np.bool_(True)}}) == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_minigrids_own_tasks_keep_their_rule(backend: str) -> None:
    with make_vector_env("MiniGrid-Empty-5x5-v0", 1, 0, backend) as env:  # type: ignore[arg-type]
        env.reset()
        for action in (2, 2, 1, 2, 2):
            end = env.step(np.array([action]))
    assert (end.terminated.tolist(), end.success.tolist()) == ([True], [1.0])


def test_the_rule_is_that_of_a_class_not_of_a_name() -> None:
    gymnasium.register("MiniGrid-Foreign-v0", entry_point=foreign_envs.Room)
    gymnasium.register("Foreign-Own-v0", entry_point="minigrid.envs:EmptyEnv")
    assert success_rule("MiniGrid-Foreign-v0") == ""
    assert success_rule("Foreign-Own-v0") == "reward"
    assert success_rule("MiniGrid-Playground-v0") == ""
    assert return_range("MiniGrid-Foreign-v0") is None
    assert return_range("MiniGrid-Dynamic-Obstacles-5x5-v0") == (-1.0, 1.0)


# Views -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "sides"), [("View9", (9, 9)), ("Full", (5, 5)), ("Full6", (6, 6)), ("ViewAlone", (7, 7))]
)
def test_views_of_any_size_are_read_from_the_environment(id: str, sides: tuple[int, int]) -> None:
    with make_vector_env(name(id), 2, 0) as env:
        assert env.view == View(*sides, STOCK_VIEW.categories)
        assert env.reset().image.shape == (2, *env.view.shape)
        assert env.step(np.zeros(2, dtype=np.int64)).observation.image.shape == (2, *env.view.shape)


def test_agent_view_size_is_an_argument_as_any_other() -> None:
    task = Task(id="MiniGrid-DoorKey-5x5-v0", gym_kwargs={"agent_view_size": 9})
    assert view_of(task)[:2] == (9, 9)
    for kwargs in ({"envpool_id": task.id}, {"envpool_kwargs": {"max_episode_steps": 9}}):
        other = Task(id=task.id, gym_kwargs=task.gym_kwargs, **kwargs)
        assert resolve_backend(other) == "gymnasium"


def test_an_agent_is_shown_no_view_of_another_size() -> None:
    with pytest.raises(ValueError, match="shows its agent 9x9 cells; this one sees 7x7"):
        make_vector_env(name("View9"), 1, 0, view=STOCK_VIEW)


@pytest.mark.usefixtures("own_things")
def test_own_colours_and_objects_are_counted_when_an_environment_is_made() -> None:
    for id in ("Orange", "Kitchen"):
        assert view_of(name(id)).categories == (12, 7, 4)
    assert play(name("Orange"))[0].observation.image[..., 1].max() == 6
    assert play(name("Kitchen"))[0].observation.image[..., 0].max() == 11


@pytest.mark.usefixtures("own_things")
def test_what_an_agent_was_not_made_for_is_refused() -> None:
    message = "object 11, and the agent knows 0 to 10"
    with make_vector_env(name("Kitchen"), 1, 0, view=STOCK_VIEW) as env:  # noqa: SIM117
        with pytest.raises(EnvironmentFailed, match=message):
            env.reset()
    # The control: the same agent in a room that has none.
    with make_vector_env("MiniGrid-Empty-5x5-v0", 1, 0, "gymnasium", view=STOCK_VIEW) as env:
        env.reset()


def test_a_space_may_say_how_much_it_holds() -> None:
    space = gymnasium.spaces.Box(0, np.array([12, 8, 255] * 49).reshape(7, 7, 3), dtype=np.uint8)
    id = name("Said")
    gymnasium.register(id, entry_point=lambda **k: foreign_envs.Odd("image", space, **k))
    assert view_of(id).categories == (13, 9, 4)


@needs_envpool
def test_an_agent_of_few_categories_is_refused_on_envpool() -> None:
    with pytest.raises(ValueError, match="shows its agent what this one cannot read"):
        make_vector_env("MiniGrid-Empty-5x5-v0", 1, 0, "envpool", view=View(7, 7, (3, 6, 4)))


def test_minigrid_view_of_today_is_the_usual_one() -> None:
    assert minigrid_view() == STOCK_VIEW
    assert not STOCK_VIEW.holds(View(7, 7, (12, 6, 4)))


# What is refused before anything is made ---------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("Symbolic", "the view must hold no numbers below 0"),
        ("Inventory", "hold 'inventory', which agents do not read beside a .*; leave it out"),
        ("Compass", r"direction must be Discrete\(4\); it is Discrete\(8\)"),
        ("Tokens", r"mission must be text; it is MultiDiscrete\(\[9 9\]\)"),
        ("Orange", "failed in its reset: AssertionError: orange"),
    ],
)
def test_environments_that_do_not_fit_are_refused_in_one_line(id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        require_makeable(name(id))
    assert name(id) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_gymnasiums_other_environments_are_made(id: str) -> None:
    assert require_makeable(id) == "gymnasium"


def test_spaces_that_agents_do_not_read_are_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"observations must be vectors .*; they are Tuple"
    ) as error:
        require_makeable("Blackjack-v1")
    assert "\n" not in str(error.value)


def test_actions_are_called_as_the_environment_calls_them() -> None:
    with make_vector_env(name("Counting"), 1, 0) as env:
        assert env.action_names == ("0", "1", "2")
    with make_vector_env(name("Room"), 1, 0) as env:
        assert env.action_names[2] == "forward"
    with pytest.raises(ValueError, match=r"of those that .* has, 0, 1, 2; got left"):
        require_makeable(name("Counting"), actions=(0,))


def test_parts_that_are_missing_are_refused_where_the_agent_reads_them() -> None:
    assert require_makeable(name("NoDirection")) == "gymnasium"
    with pytest.raises(ValueError, match="gives no direction, which the agent is to read"):
        require_makeable(name("NoDirection"), parts=("direction",))


def test_missions_in_unknown_words_are_refused_where_they_are_all_the_same() -> None:
    for id in ("Speaking", "SpeakingOtherwise"):
        assert mission_varies(name(id))
    require_missions_differ(name("Speaking"))
    with pytest.raises(ValueError, match=r"are the same to an agent, .* words it does not know"):
        require_missions_differ(name("SpeakingOtherwise"))


# What goes wrong later ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("NaN", "step 3: the reward nan is not finite"),
        ("Infinite", r"step 3: the reward 1e\+39 is not finite"),
        ("Text", "step 3: ValueError: could not convert string to float: 'much'"),
        ("Floats", "step 3: the view is float64 .*, not all finite, where its space says"),
        ("Raising", r"step 3: ZeroDivisionError: over the hills \(foreign_envs.py, line "),
        ("Later", "step 3: the view holds colour 77, and the agent knows 0 to 5"),
    ],
)
def test_what_cannot_be_learned_from_is_named_in_one_line(id: str, message: str) -> None:
    with make_vector_env(name(id), 2, 0) as env:
        env.reset()
        for _ in range(2):
            env.step(np.zeros(2, dtype=np.int64))
        with pytest.raises(EnvironmentFailed, match=message) as error:
            env.step(np.zeros(2, dtype=np.int64))
    assert str(error.value).startswith(f"environment {name(id)!r} failed in ")
    assert "\n" not in str(error.value)


def test_standard_output_belongs_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    play(name("Raising"), steps=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "I am about to step" in printed.err


def test_actions_are_numbers_that_can_be_calculated_with() -> None:
    with make_vector_env(name("Counting"), 1, 0) as env:
        env.reset()
        assert env.step(np.zeros(1, dtype=np.uint8)).reward.tolist() == [0.0]
        assert env.step(np.full(1, 2, dtype=np.uint8)).reward.tolist() == [0.5]


@pytest.mark.parametrize("id", ["Blind", "NoRenderMode"])
def test_what_cannot_be_drawn_is_refused_in_one_line(id: str) -> None:
    def draw() -> None:
        with make_drawable_env(name(id), 0) as env:
            env.reset()
            env.frame()

    with pytest.raises(ValueError, match=r"cannot be (drawn|made to be drawn): ") as error:
        draw()
    assert "\n" not in str(error.value)


# Names -------------------------------------------------------------------------------------------

MODULE = """
import gymnasium
from minigrid.envs import EmptyEnv
gymnasium.register("Mine/Maze-v0", entry_point=lambda **k: EmptyEnv(size=5, **k))
"""


def test_a_module_in_the_current_directory_registers_what_its_id_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_envs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    task = get_task("my_envs:Mine/Maze-v0")
    assert (task.id, task.name) == ("my_envs:Mine/Maze-v0", "Mine-Maze")
    assert resolve_backend(task) == "gymnasium"
    # Another process is told the id alone.
    monkeypatch.delitem(sys.modules, "my_envs")
    monkeypatch.delitem(gymnasium.registry, "Mine/Maze-v0")
    with make_vector_env(task, 1, 0) as env:
        assert env.reset().image.shape == (1, 7, 7, 3)
    with pytest.raises(ValueError, match="unknown environment 'my_envs:Mine/Mase-v0'; did you"):
        get_task("my_envs:Mine/Mase-v0")


@pytest.mark.parametrize(
    ("id", "source", "message"),
    [
        ("none_such:A-v0", "", r"cannot be imported \(ModuleNotFoundError: No module named"),
        ("broken:A-v0", "1 / 0", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("leaving:A-v0", "raise SystemExit(3)", r"cannot be imported \(SystemExit: 3\)"),
        ("../there:A-v0", "", "must have the form package.module:Id"),
    ],
)
def test_modules_that_cannot_be_imported_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if source:
        (tmp_path / f"{id.partition(':')[0]}.py").write_text(source)
    with pytest.raises(ValueError, match=message) as error:
        get_task(id)
    assert "\n" not in str(error.value)


@needs_envpool
def test_an_id_of_minigrids_registered_anew_does_not_run_on_envpool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    id = "MiniGrid-Empty-6x6-v0"
    assert resolve_backend(id) == "envpool"
    spec = gymnasium.envs.registration.EnvSpec(id, entry_point=foreign_envs.Room)
    monkeypatch.setitem(gymnasium.registry, id, spec)
    assert resolve_backend(id) == "gymnasium"
    with pytest.raises(ValueError, match="is not what minigrid has there"):
        resolve_backend(id, "envpool")
