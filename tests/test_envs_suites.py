"""The table of suites and the look-up of tasks by name."""

import pickle
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs import SUITES, Task, get_suite, get_task, make_vector_env
from selection import short


def test_suites_hold_the_tasks_that_are_promised() -> None:
    table = {name: [task.id for task in suite.tasks] for name, suite in SUITES.items()}
    assert table == {
        "gotoredball": [
            "BabyAI-GoToRedBallNoDists-v0",
            "BabyAI-GoToRedBallGrey-v0",
            "BabyAI-GoToRedBall-v0",
        ],
        "memory": [
            "MiniGrid-MemoryS9-v0",
            "MiniGrid-MemoryS11-v0",
            "MiniGrid-MemoryS13-v0",
            "MiniGrid-MemoryS13Random-v0",
            "MiniGrid-MemoryS17Random-v0",
        ],
        "memoryrandom": [
            "MiniGrid-MemoryS13Random-v0",
            "MiniGrid-MemoryS11-v0",
            "MiniGrid-MemoryS13-v0",
            "MiniGrid-MemoryS17Random-v0",
        ],
        "doorkey": [
            "MiniGrid-DoorKey-5x5-v0",
            "MiniGrid-DoorKey-6x6-v0",
            "MiniGrid-DoorKey-8x8-v0",
            "MiniGrid-DoorKey-16x16-v0",
        ],
        "empty": [
            "MiniGrid-Empty-Random-5x5-v0",
            "MiniGrid-Empty-Random-6x6-v0",
            "MiniGrid-Empty-8x8-v0",
            "MiniGrid-Empty-16x16-v0",
        ],
        "oneroom": [
            "BabyAI-OneRoomS8-v0",
            "BabyAI-OneRoomS12-v0",
            "BabyAI-OneRoomS16-v0",
            "BabyAI-OneRoomS20-v0",
        ],
        "multiroom": [
            "MiniGrid-MultiRoom-N2-S4-v0",
            "MiniGrid-MultiRoom-N4-S5-v1",
            "MiniGrid-MultiRoom-N6-v0",
        ],
        "keycorridor": [
            "MiniGrid-KeyCorridorS3R1-v0",
            "MiniGrid-KeyCorridorS3R2-v0",
            "MiniGrid-KeyCorridorS3R3-v0",
        ],
        "crossing": [
            "MiniGrid-SimpleCrossingS9N1-v0",
            "MiniGrid-SimpleCrossingS9N2-v0",
            "MiniGrid-SimpleCrossingS9N3-v0",
            "MiniGrid-SimpleCrossingS11N5-v0",
        ],
    }


#: The last takes longest: EnvPool does not make it.
CHANCES = [*sorted(SUITES.keys() - {"memory", "memoryrandom", "multiroom"}), "multiroom"]


@pytest.mark.parametrize("name", short(CHANCES, *range(len(CHANCES) - 1)))
def test_chance_is_the_success_rate_of_random_actions(name: str) -> None:
    suite, count = SUITES[name], 400
    successes, running = 0, np.ones(count, dtype=bool)
    rng = np.random.default_rng(0)
    with make_vector_env(suite.train, count, 0) as env:
        if env.backend != "envpool" and name != "multiroom":  # whose episodes are short
            pytest.skip("too slow without EnvPool")
        env.reset()
        while running.any():
            step = env.step(rng.integers(0, env.num_actions, count))
            ended = (step.terminated | step.truncated) & running
            successes += int((step.reward[ended] > 0).sum())
            running &= ~ended
    assert suite.chance is not None
    deviation = (suite.chance * (1 - suite.chance) / count) ** 0.5
    assert abs(successes / count - suite.chance) < 3 * deviation + 0.005


def test_chance_of_memory_is_a_guess() -> None:
    assert SUITES["memory"].chance == 0.5


def test_chance_of_memoryrandom_is_to_look_back_and_else_to_guess() -> None:
    suite, object_place = SUITES["memoryrandom"], (1, 5)
    env: Any = gymnasium.make(suite.train.id).unwrapped
    seen: dict[int, bool] = {}
    for seed in range(200):
        env.reset(seed=seed)
        end = env.success_pos[0]  # where up or down is chosen
        env.agent_pos, env.agent_dir = np.array((end, 6)), 2
        seen[end] = env.in_view(*object_place)
    assert len(seen) == 7
    rate = sum(1.0 if known else 0.5 for known in seen.values()) / len(seen)
    assert suite.chance == pytest.approx(rate, abs=0.005)


def test_suites_train_first_and_an_id_is_one_task_everywhere() -> None:
    tasks = [task for suite in SUITES.values() for task in suite.tasks]
    by_id = {task.id: task for task in tasks}
    assert all(task == by_id[task.id] for task in tasks)
    assert len({task.name for task in tasks}) == len(by_id)
    for name, suite in SUITES.items():
        assert len({task.id for task in suite.tasks}) == len(suite.tasks)
        assert suite.name == name
        assert suite.tasks == (suite.train, *suite.unseen)
        assert suite.description
        assert "\n" not in suite.description


def test_suites_are_read_only() -> None:
    with pytest.raises(TypeError):
        SUITES["mine"] = SUITES["empty"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        SUITES["empty"].name = "other"  # type: ignore[misc]


def test_suites_can_be_sent_to_another_process() -> None:
    suite = get_suite("multiroom")
    assert pickle.loads(pickle.dumps(suite)) == suite


def test_get_suite_unknown_name_gives_close_match_on_one_line() -> None:
    with pytest.raises(ValueError, match=r"^unknown suite 'dorkey'; did you mean 'doorkey'\?$"):
        get_suite("dorkey")
    with pytest.raises(
        ValueError, match=r"the suites are gotoredball, memory, memoryrandom, .*\.$"
    ):
        get_suite("qqq")


def test_get_task_prefers_the_table() -> None:
    task = get_task("MiniGrid-MultiRoom-N4-S5-v1")
    assert task is SUITES["multiroom"].unseen[0]


@pytest.mark.parametrize("id", ["MiniGrid-LavaGapS5-v0", "BabyAI-GoToLocal-v0"])
def test_get_task_knows_every_registered_id(id: str) -> None:
    assert get_task(id) == Task(id=id)


def test_get_task_unknown_id_gives_close_match_on_one_line() -> None:
    with pytest.raises(ValueError, match="unknown environment") as error:
        get_task("MiniGrid-DoorKey-5x5")
    assert str(error.value) == (
        "unknown environment 'MiniGrid-DoorKey-5x5'; did you mean 'MiniGrid-DoorKey-5x5-v0'? "
        "'rims suites' lists the suites."
    )


def test_get_task_knows_ids_without_a_prefix_of_minigrids() -> None:
    assert get_task("CartPole-v1") == Task(id="CartPole-v1")
    with pytest.raises(ValueError, match=r"not registered with gymnasium.* is module:Id"):
        get_task("Qqqqqqqq-v9")


def test_task_refuses_another_view_size_on_envpool() -> None:
    with pytest.raises(ValueError, match="agent_view_size must not be set"):
        Task(id="MiniGrid-DoorKey-5x5-v0", envpool_kwargs={"agent_view_size": 5})


def test_import_is_cheap() -> None:
    code = (
        "import sys, envs; "
        "print(sorted({'gymnasium', 'minigrid', 'envpool', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_get_suite_refuses_what_is_no_name() -> None:
    with pytest.raises(ValueError, match="given by name or as a file's path; got 5"):
        get_suite(5)  # type: ignore[arg-type]
