"""MiniGrid generalization suites and vector environments with one behaviour on every backend.

Importing this package imports neither gymnasium, minigrid nor EnvPool; making something does.
"""

from envs.actions import ACTIONS, action_names, parse_actions
from envs.base import BackendName, Observation, StepResult, VectorEnv
from envs.files import Bounded, read_file, read_text
from envs.mission import MISSION_LENGTH, VOCABULARY, encode_mission
from envs.seeding import level_seeds
from envs.suites import SUITES, Suite, Task, get_suite, get_task
from envs.vector import (
    BackendChoice,
    make_drawable_env,
    make_vector_env,
    mission_varies,
    require_makeable,
    resolve_backend,
)

__all__ = [
    "ACTIONS",
    "MISSION_LENGTH",
    "SUITES",
    "VOCABULARY",
    "BackendChoice",
    "BackendName",
    "Bounded",
    "Observation",
    "StepResult",
    "Suite",
    "Task",
    "VectorEnv",
    "action_names",
    "encode_mission",
    "get_suite",
    "get_task",
    "level_seeds",
    "make_drawable_env",
    "make_vector_env",
    "mission_varies",
    "parse_actions",
    "read_file",
    "read_text",
    "require_makeable",
    "resolve_backend",
]
