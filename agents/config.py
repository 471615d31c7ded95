"""PPOConfig: every setting of an agent's training, which is also the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from envs import (
    BackendChoice,
    Suite,
    Task,
    action_names,
    get_suite,
    get_task,
    parse_actions,
    parse_wrappers,
)
from lab.cores import CORE_METAVAR, CoreSettings, check_core
from lab.settings import TINY, ConfigError, changed, option
from lab.words import did_you_mean

EncoderChoice = Literal["linear", "cnn", "nfm"]
MissionChoice = Literal["auto", "on", "off"]
ActionMode = Literal["sample", "greedy"]


class TaskChoiceError(ConfigError):
    """Neither or both of suite and env."""

    def __init__(self) -> None:
        super().__init__("suite", "and env: give exactly one of them to name the task to train on.")


@dataclass(frozen=True, kw_only=True)
class PPOConfig(CoreSettings):
    """Everything that decides how an agent is trained. Saved as ``config.toml`` with each run.

    Exactly one of ``suite`` and ``env`` names the training task. Counts called ``*_steps`` are
    steps of single environments, summed over all of them unless the name says ``per_env``.

    Raises:
        ConfigError: at construction, for any value that cannot work; it names the field.
        ValueError: for an unknown suite or environment.

    Example:
        >>> config = PPOConfig(env="MiniGrid-DoorKey-5x5-v0", core="lstm")
        >>> config.minibatch_envs, config.task.name
        (16, 'DoorKey-5x5')
    """

    groups: ClassVar[tuple[str, ...]] = ("Task", "Network", "RIM", "Learning", "Machine")

    #: Settings of the training target: no preset of a suite decides them.
    not_of_a_preset: ClassVar[tuple[str, ...]] = ("suite", "env", "core", "seed", "init_from")

    suite: str = option("", "Task", "Suite whose training task to train on; see 'rims suites'.")
    env: str = option(
        "",
        "Task",
        "Environment id to train on, instead of a suite; module:Id for one that a module of yours "
        "registers.",
    )
    wrapper: str = option(
        "",
        "Task",
        "Wrapper of the environment: a class of minigrid.wrappers or gymnasium.wrappers, or "
        "module:Class; repeatable, the innermost first.",
        repeatable=True,
    )
    core: str = option(
        "rim_lstm",
        "Network",
        "Recurrent core; 'none' is a memoryless control. A class of your own is given by its "
        "import path; it is made and called as nn.LSTM is.",
        metavar=CORE_METAVAR,
        first=True,
    )
    seed: int = option(
        0,
        "Task",
        "Seed of the run: weights, actions and levels derive from it.",
        low=0,
        high=2**31 - 1,
    )
    total_steps: int = option(200_000, "Task", "Environment steps to train for.", low=1)

    encoder: EncoderChoice = option(
        "linear",
        "Network",
        "Encoder of the view: a linear layer; convolutions and a linear layer; these with NFM.",
    )
    encoder_size: int = option(
        128, "Network", "Features the core reads: the encoder's output.", low=1
    )
    learned_initial_state: bool = changed(CoreSettings, "learned_initial_state", True)
    direction: bool = option(
        False, "Network", "Let the policy see the compass direction of the agent."
    )
    mission: MissionChoice = option(
        "auto",
        "Network",
        "Let the policy read the mission text; auto: where it differs between levels.",
    )
    actions: str = option(
        "all",
        "Network",
        "Actions the policy chooses from: all that the task has, or some of left, right, forward, "
        "pickup, drop, toggle, done, separated by commas.",
    )

    normalize_observations: bool = option(
        False,
        "Network",
        "Scale numbers in observations to mean 0 and deviation 1, by running statistics that are "
        "saved with the agent.",
    )

    init_from: str = option(
        "",
        "Learning",
        "Run folder whose last saved agent to start from; {core} and {seed} in it stand for those "
        "of this run.",
    )
    num_envs: int = option(  # all of them stand in memory at once
        64, "Learning", "Environments stepped together.", low=1, high=2**16
    )
    rollout_steps_per_env: int = option(
        32, "Learning", "Steps per environment between two updates.", low=1
    )
    minibatches: int = option(
        4, "Learning", "Minibatches per epoch, cut over environments, never over time.", low=1
    )
    epochs: int = option(4, "Learning", "Passes over each rollout.", low=1)
    learning_rate: float = option(
        1e-3, "Learning", "Adam step size at the start.", low=TINY, high=1e6
    )
    adam_epsilon: float = option(
        1e-5, "Learning", "Adam epsilon; avoids division by zero.", low=TINY, high=1
    )
    anneal_learning_rate: bool = option(
        True, "Learning", "Let the step size fall linearly to zero."
    )
    gamma: float = option(0.99, "Learning", "Discount per step.", low=0, high=1)
    gae_lambda: float = option(
        0.95, "Learning", "Decay of generalized advantage estimation.", low=0, high=1
    )
    bootstrap_truncated: bool = option(
        True,
        "Learning",
        "Add the value of the last observation where the step limit cut an episode.",
    )
    reward_scale: float = option(
        1.0,
        "Learning",
        "Factor of rewards in what is learned; returns are shown without it.",
        low=TINY,
        high=1e6,
    )
    clip_range: float = option(
        0.2, "Learning", "Clipping of the probability ratio.", low=TINY, high=1e6
    )
    entropy_coefficient: float = option(
        0.01, "Learning", "Weight of the entropy bonus.", low=0, high=1e6
    )
    value_coefficient: float = option(0.5, "Learning", "Weight of the value loss.", low=0, high=1e6)
    max_grad_norm: float = option(
        0.5, "Learning", "Gradients are scaled down to this norm.", low=TINY, high=1e6
    )
    restart_envs_every: int = option(
        100,
        "Learning",
        "Updates between two restarts of all environments; a resumed run replays at most these.",
        low=1,
    )

    backend: BackendChoice = option("auto", "Machine", "auto: EnvPool where it runs the task.")
    threads: int = option(
        1,
        "Machine",
        "CPU threads of torch and of EnvPool; small networks rarely profit from more.",
        low=1,
        high=1024,
        has_effect=False,
    )
    device: str = option("cpu", "Machine", "Torch device of the policy, such as cpu or cuda.")
    checkpoint_every: int = option(
        20, "Machine", "Updates between two checkpoints.", low=1, has_effect=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.suite) == bool(self.env):
            raise TaskChoiceError
        if self.suite.endswith(".toml"):  # the run may be looked at from another folder
            object.__setattr__(self, "suite", os.path.realpath(self.suite))
        if self.init_from:
            object.__setattr__(self, "init_from", os.path.realpath(self.init_from))
        self._check_wrappers()
        self.task  # noqa: B018  (raises for an unknown suite or environment)
        self._check_actions()
        if self.num_envs % self.minibatches:
            rule = f"must divide the {self.num_envs} environments; got {self.minibatches}."
            raise ConfigError("minibatches", rule)
        check_core(self.core)  # last: it may import somebody's module

    def _check_actions(self) -> None:
        try:
            chosen = self.action_numbers
        except ValueError as error:
            raise ConfigError("actions", str(error)) from None
        names = ["all"] if chosen is None else action_names(chosen)
        object.__setattr__(self, "actions", ",".join(names))

    def _check_wrappers(self) -> None:
        try:
            names = parse_wrappers(self.wrapper)
        except ValueError as error:
            raise ConfigError("wrapper", f"cannot be used: {error}") from None
        object.__setattr__(self, "wrapper", ",".join(names))

    @classmethod
    def preset_of(cls, suite: Suite) -> dict[str, Any]:
        """The settings a suite overrides; their values are not checked yet.

        Raises:
            ValueError: if one is no setting, or one that a suite cannot decide.
        """
        known = [name for name in cls.names() if name not in cls.not_of_a_preset]
        for name in suite.preset:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"the preset of suite {suite.name!r} cannot set {name!r}{hint}")
        return dict(suite.preset)

    @property
    def task(self) -> Task:
        """The task trained on."""
        return self.wrapped(get_suite(self.suite).train if self.suite else get_task(self.env))

    def wrapped(self, task: Task) -> Task:
        """A task with the wrappers of these settings around it.

        Example:
            >>> config = PPOConfig(env="CartPole-v1", wrapper="TimeAwareObservation")
            >>> config.wrapped(config.task).wrappers
            ('TimeAwareObservation', 'TimeAwareObservation')
        """
        names = parse_wrappers(self.wrapper)
        return replace(task, wrappers=(*task.wrappers, *names)) if names else task

    def wrapped_suite(self, suite: Suite) -> Suite:
        """A suite with the wrappers of these settings around all its tasks."""
        unseen = tuple(map(self.wrapped, suite.unseen))
        return replace(suite, train=self.wrapped(suite.train), unseen=unseen)

    @property
    def action_numbers(self) -> tuple[int, ...] | None:
        """The numbers of the actions to choose from; None for all that a task has."""
        return parse_actions(self.actions)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that an observation must hold besides the view."""
        wanted = {"direction": self.direction, "mission": self.mission == "on"}
        return tuple(part for part, needed in wanted.items() if needed)

    @property
    def minibatch_envs(self) -> int:
        """Environments in one minibatch."""
        return self.num_envs // self.minibatches
