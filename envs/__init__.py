"""MiniGrid generalization suites and vector environments with one behaviour on every backend.

Environments of other people run too, where their spaces are those of MiniGrid.

Importing this package imports neither gymnasium, minigrid nor EnvPool; making something does.
"""

from envs.actions import ACTIONS, action_names, parse_actions
from envs.backends.base import BackendName, EnvironmentFailed, Observation, StepResult, VectorEnv
from envs.ids import modules_of, return_range
from envs.mission import MISSION_LENGTH, VOCABULARY, encode_mission
from envs.seeding import level_seeds
from envs.suite_file import get_suite
from envs.suites import SUITES, Suite, Task, get_task
from envs.vector import (
    BackendChoice,
    make_drawable_env,
    make_vector_env,
    mission_varies,
    require_makeable,
    require_missions_differ,
    resolve_backend,
    view_of,
)
from envs.view import STOCK_VIEW, View, minigrid_view

__all__ = [
    "ACTIONS",
    "MISSION_LENGTH",
    "STOCK_VIEW",
    "SUITES",
    "VOCABULARY",
    "BackendChoice",
    "BackendName",
    "EnvironmentFailed",
    "Observation",
    "StepResult",
    "Suite",
    "Task",
    "VectorEnv",
    "View",
    "action_names",
    "encode_mission",
    "get_suite",
    "get_task",
    "level_seeds",
    "make_drawable_env",
    "make_vector_env",
    "minigrid_view",
    "mission_varies",
    "modules_of",
    "parse_actions",
    "require_makeable",
    "require_missions_differ",
    "resolve_backend",
    "return_range",
    "view_of",
]
