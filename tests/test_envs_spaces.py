"""Spaces of observations and actions: what is read, what environments are told, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import any_envs
from any_envs import MIXED
from envs import (
    ActionSpace,
    EnvironmentFailed,
    Layout,
    MixedObservation,
    Task,
    View,
    get_suite,
    get_task,
    make_vector_env,
    parse_view,
    parse_wrappers,
    require_makeable,
    resolve_backend,
    view_of,
)
from envs.backends.leaves import layout_of, read_leaves


def name(short: str) -> str:
    return f"any_envs:Any-{short}-v0"


def first_env(env: Any) -> Any:
    return env._envs.envs[0].unwrapped


@pytest.mark.parametrize(
    ("short", "layout"),
    [
        ("Numbers", Layout(3)),
        ("Place", Layout(0, (5,))),
        ("Places", Layout(0, (2, 3))),
        ("Image", Layout(0, (), ((1, 20, 24),))),
        ("First", Layout(0, (), ((4, 36, 36),))),
        ("Mixed", Layout(6, (3, 2, 4), ((3, 36, 40),))),
    ],
)
def test_layouts_are_read_from_spaces(short: str, layout: Layout) -> None:
    with make_vector_env(name(short), 2, 0) as env:
        assert env.view == layout
        seen = env.reset()
        assert isinstance(seen, MixedObservation)
        assert seen.vector.shape == (2, layout.vector_size)
        assert seen.pixels.shape == (2, layout.pixels)
        assert seen.mission.shape == (2, 0)
        step = env.step(np.zeros((2, *env.actions.shape), dtype=env.actions.dtype))
        assert step.observation.vector.dtype == np.float32
    assert parse_view(layout._asdict() | {"categories": list(layout.categories),
        "images": [list(shape) for shape in layout.images]}) == layout  # fmt: skip


def test_every_part_of_an_observation_has_its_place() -> None:
    layout, leaves = layout_of(MIXED)
    camera = np.random.default_rng(0).integers(0, 256, (36, 40, 3)).astype(np.uint8)
    found = read_leaves(leaves, {
        "place": 3,
        "camera": camera,
        "inner": {"speed": np.array([0.5, -2.0]), "flags": np.array([1, 0], dtype=np.int8)},
        "bytes": np.array([0, 51], dtype=np.uint8),
        "two": np.array([1, 2]),
    })  # fmt: skip
    numbers: dict[str, list[float]] = {"bytes": [0, 0.2], "flags": [1, 0], "speed": [0.5, -2.0]}
    one_hot = [0, 0, 1, 0, 1, 0, 0, 1, 0]
    order = [leaf.name[-1] for leaf in leaves if leaf.kind == "numbers"]
    expected = [number for key in order for number in numbers[key]]
    np.testing.assert_allclose(found["vector"], [*expected, *one_hot], rtol=1e-6)
    assert (found["pixels"].reshape(3, 36, 40) == camera.transpose(2, 0, 1)).all()
    assert layout.vector_size == 15


@pytest.mark.parametrize(
    ("short", "broken", "message"),
    [
        ("Numbers", np.array([0, np.nan, 0]), "the observation is not finite"),
        ("Numbers", np.zeros(4), r"the observation is float64 \(4,\), where its space says \(3,\)"),
        ("Place", 3, "is 3, which is not in its space"),
        ("Image", np.zeros((20, 24, 1)), r"is float64 \(20, 24, 1\), where its space says"),
        ("Mixed", {"place": 1}, "is missing"),
    ],
)
def test_what_is_not_in_its_space_is_named_in_one_line(
    short: str, broken: Any, message: str
) -> None:
    task = Task(id=name(short), gym_kwargs={"broken": broken})
    with make_vector_env(task, 1, 0) as env:
        env.reset()
        actions = np.zeros((1, *env.actions.shape), dtype=env.actions.dtype)
        env.step(actions)
        env.step(actions)
        with pytest.raises(EnvironmentFailed, match=f"failed in step 3: .*{message}") as error:
            env.step(actions)
    assert "\n" not in str(error.value)


def test_environments_are_told_actions_in_their_own_form() -> None:
    told: dict[str, tuple[Any, Any]] = {
        "Place": (np.array([2], dtype=np.uint8), 1),
        "Places": (np.array([[1, 2]], dtype=np.uint8), [[1], [2]]),
        "Box": (np.array([[-0.5, 1e30]], dtype=np.float32), [-0.5, 1e30]),
    }
    for short, (given, expected) in told.items():
        with make_vector_env(name(short), 1, 0) as env:
            env.reset()
            env.step(given)
            action = first_env(env).taken[-1]
            assert first_env(env).action_space.contains(action)
            np.testing.assert_allclose(action, expected, rtol=1e-6)
    with make_vector_env(name("Box"), 1, 0) as env:
        assert env.actions.low == pytest.approx((-0.5, -0.1))
        assert env.actions.high == (1.0, float(np.finfo(np.float32).max))


@pytest.mark.parametrize(
    ("short", "actions"),
    [
        ("Box", np.array([[2.0, 0.0]], dtype=np.float32)),
        ("Box", np.array([[np.nan, 0.0]], dtype=np.float32)),
        ("Box", np.zeros((1, 2), dtype=np.int64)),
        ("Places", np.array([[2, 0]])),
        ("Places", np.array([0])),
    ],
)
def test_actions_outside_their_space_are_refused(short: str, actions: Any) -> None:
    with make_vector_env(name(short), 1, 0) as env:
        env.reset()
        with pytest.raises(ValueError, match=r"VectorEnv\.step: "):
            env.step(actions)
        assert first_env(env).taken == []


@pytest.mark.parametrize(
    ("short", "message"),
    [
        (
            "Rows",
            r"they are Box\(-1.0, 1.0, \(4, 3\), float32\). Change it by --wrapper",
        ),
        ("Floats", "they are Box"),
        ("Words", "part 'word' is Text"),
        ("Many", "actions must be Discrete or MultiDiscrete with at most 256 values"),
        ("Steps", "actions must be .* or a Box of floats"),
        ("Binary", "they are MultiBinary"),
    ],
)
def test_other_spaces_are_refused_in_one_line(short: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        require_makeable(name(short))
    assert name(short) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        {"numbers": -1, "categories": [], "images": [], "mission": False},
        {"numbers": 1, "categories": [0], "images": [], "mission": False},
        {"numbers": 1, "categories": [], "images": [[3, 4]], "mission": False},
        {"numbers": 1, "categories": [], "images": [], "mission": 1},
        {"numbers": 10**12, "categories": [], "images": [], "mission": False},
        {"numbers": 1},
    ],
)
def test_a_layout_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="view must hold numbers"):
        parse_view(value)


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "discrete", "sizes": [2, 3], "low": [], "high": []},
        {"kind": "continuous", "sizes": [], "low": [0.0], "high": []},
        {"kind": "continuous", "sizes": [], "low": [], "high": []},
        {"kind": "multi_discrete", "sizes": [300], "low": [], "high": []},
        {"kind": "both", "sizes": [2], "low": [], "high": []},
        [2],
    ],
)
def test_a_space_of_actions_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="action_space must be"):
        ActionSpace.parse(value)


# Wrappers ----------------------------------------------------------------------------------------


def test_wrappers_of_minigrid_make_images_and_keep_the_rule_of_success() -> None:
    task = Task(id="MiniGrid-Empty-5x5-v0", wrappers=("RGBImgPartialObsWrapper",))
    assert resolve_backend(task) == "gymnasium"
    with pytest.raises(ValueError, match="wrappers are of gymnasium's environments"):
        resolve_backend(task, "envpool")
    assert view_of(task) == Layout(0, (4,), ((3, 56, 56),), mission=True)
    paid = Task(id=task.id, wrappers=("ActionBonus",))  # which changes rewards
    for chosen, expected in ((task, 1.0), (paid, np.nan)):
        with make_vector_env(chosen, 1, 0) as env:
            env.reset()
            for action in (2, 2, 1, 2, 2):
                end = env.step(np.array([action]))
        assert end.terminated.tolist() == [True]
        np.testing.assert_equal(end.success, [expected])


def test_symbolic_views_of_wrappers_stay_symbolic() -> None:
    small = Task(id="MiniGrid-Empty-5x5-v0", wrappers=("ViewSizeWrapper",))
    assert isinstance(view_of(small), View)
    large = Task(id="MiniGrid-Empty-16x16-v0", wrappers=("FullyObsWrapper",))
    assert view_of(large) == View(16, 16, (11, 6, 4))


def test_wrappers_of_a_users_own_are_named_by_module() -> None:
    names = parse_wrappers("any_envs:Doubled, any_envs:Doubled")
    twice, once = Task(id=name("Numbers"), wrappers=names), get_task(name("Numbers"))
    seen = []
    for task in (once, twice):
        with make_vector_env(task, 1, 0) as env:
            seen.append(env.reset()[0])
    np.testing.assert_allclose(seen[1], 4 * seen[0], rtol=1e-6)
    assert any_envs.STEPS == 5


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("RGBImgPartialObsWraper", "did you mean 'RGBImgPartialObsWrapper'"),
        ("any_envs:Doubld", "did you mean 'Doubled'"),
        ("none_such:Wrapper", "module 'none_such' cannot be imported"),
        ("any_envs:Anything", "unknown wrapper"),
    ],
)
def test_unknown_wrappers_are_refused_in_one_line(wrapper: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Task(id="CartPole-v1", wrappers=(wrapper,))
    assert "\n" not in str(error.value)


def test_a_wrapper_that_cannot_be_made_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="cannot be made: TypeError") as error:
        view_of(Task(id="CartPole-v1", wrappers=("ReshapeObservation",)))
    assert "\n" not in str(error.value)


def test_suite_files_take_wrappers(tmp_path: Path) -> None:
    text = 'name = "pole"\ntrain = { id = "CartPole-v1", wrappers = [%s] }\nunseen = []\n'
    (tmp_path / "suite.toml").write_text(text % '"TimeAwareObservation"')
    assert get_suite(str(tmp_path / "suite.toml")).train.wrappers == ("TimeAwareObservation",)
    (tmp_path / "other.toml").write_text(text % "1")
    with pytest.raises(ValueError, match=r"train.wrappers must be a list of names; got \[1\]"):
        get_suite(str(tmp_path / "other.toml"))
