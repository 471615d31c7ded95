"""MiniGrid generalization suites and vector environments with one behaviour on every backend.

Environments of other people run too; their spaces decide what agents read and do.

Importing this package imports neither gymnasium, minigrid nor EnvPool; making something does.
"""

from envs.actions import ACTIONS, ActionSpace, action_names, parse_actions
from envs.backends.base import (
    AnyObservation,
    BackendName,
    EnvironmentFailed,
    Observation,
    StepResult,
    VectorEnv,
)
from envs.ids import modules_of, return_range
from envs.layout import AnyView, Layout, MixedObservation, parse_view
from envs.mission import MISSION_LENGTH, VOCABULARY, encode_mission
from envs.seeding import level_seeds
from envs.suite_file import get_suite
from envs.suites import SUITES, Suite, Task, get_task
from envs.vector import (
    BackendChoice,
    actions_of,
    make_drawable_env,
    make_vector_env,
    mission_varies,
    require_makeable,
    require_missions_differ,
    resolve_backend,
    view_of,
)
from envs.view import STOCK_VIEW, View, minigrid_view
from envs.wrappers import parse_wrappers

__all__ = [
    "ACTIONS",
    "MISSION_LENGTH",
    "STOCK_VIEW",
    "SUITES",
    "VOCABULARY",
    "ActionSpace",
    "AnyObservation",
    "AnyView",
    "BackendChoice",
    "BackendName",
    "EnvironmentFailed",
    "Layout",
    "MixedObservation",
    "Observation",
    "StepResult",
    "Suite",
    "Task",
    "VectorEnv",
    "View",
    "action_names",
    "actions_of",
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
    "parse_view",
    "parse_wrappers",
    "require_makeable",
    "require_missions_differ",
    "resolve_backend",
    "return_range",
    "view_of",
]
