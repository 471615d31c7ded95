"""The training loop: collect, update, log, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from filelock import FileLock

from agents.config import PPOConfig
from agents.learning.checkpoint import Checkpoint, agent_store, save_checkpoint
from agents.learning.initial_weights import initial_weights
from agents.learning.optimizer import load_optimizer, make_optimizer
from agents.learning.ppo import UPDATE_METRICS, update
from agents.learning.recent_episodes import RecentEpisodes, episode_rows
from agents.learning.rollout import Runner, collect
from agents.model.cores import require_usable
from agents.model.encoder import Observations
from agents.model.footprint import require_fits
from agents.model.policy import RecurrentActorCritic, reads_mission
from agents.model.trainable import require_trainable
from envs import (
    BackendChoice,
    BackendName,
    EnvironmentFailed,
    VectorEnv,
    View,
    level_seeds,
    make_vector_env,
)
from lab.disk.folder import (
    FAILURE_NAME,
    claim_run_folder,
    remove_own_files,
)
from lab.disk.lock import LOCK_NAME
from lab.disk.log import RunLog
from lab.disk.store import has_checkpoint
from lab.running.devices import usable_device
from lab.running.guards import CannotSave, NotFinite, RunStopped, TrainingError, first_not_finite
from lab.running.ranks import local_device
from lab.running.signals import Stopped, StopRequest
from lab.running.world import World
from lab.settings import ConfigError

#: Called after every update with the row that was logged.
OnUpdate = Callable[[Mapping[str, float]], None]


class Trainer:
    """One training run, from a configuration to a checkpoint.

    The folder is locked from construction to the end of :meth:`run`.

    Args:
        config: what to train.
        folder: the run folder; must be absent or empty.
        world: the processes that train together, each with its part of the environments; by
            default this one alone. All of them make a Trainer; the first one writes.

    Raises:
        ValueError: before any work, for a task the backend cannot run, an unusable device, a core
            given by import path that cannot be used, another run's weights that cannot be, or a
            folder that is not empty or in use.
    """

    def __init__(self, config: PPOConfig, folder: Path, world: World | None = None) -> None:
        self._begin(config, folder, world or World(), config.backend, None)
        self._initial = initial_weights(config)
        self._made_folder = not folder.exists()
        self._lock = claim_run_folder(folder) if self.world.is_first else None

    @classmethod
    def check(cls, config: PPOConfig) -> None:
        """See that a run with these settings can be trained; nothing is written.

        Raises:
            ValueError: as for a new run, but for its folder.
        """
        cls.__new__(cls)._begin(config, Path(), World(), config.backend, None)
        initial_weights(config)

    @classmethod
    def resuming(
        cls,
        folder: Path,
        config: PPOConfig,
        checkpoint: Checkpoint | None,
        world: World | None = None,
        lock: FileLock | None = None,
    ) -> Self:
        """A trainer that goes on with the run in ``folder`` as if it had never stopped.

        :func:`agents.learning.resuming.resume` finds out what to give.

        Args:
            folder: of a run that was interrupted, or is to go on for more steps.
            config: that of the run; of settings with an effect only ``total_steps`` may differ.
            checkpoint: its last one; ``None`` if it stopped before the first.
            world: as for a new run; the number of processes may be another one than before.
            lock: on the folder, held since before the checkpoint was read; is released in the end.

        Raises:
            ValueError: as for a new run.
        """
        trainer = cls.__new__(cls)
        # What "auto" means can change with what is installed; the levels would be others.
        backend = config.backend if checkpoint is None else checkpoint.backend
        view = None if checkpoint is None else checkpoint.view
        trainer._begin(config, folder, world or World(), backend, view)
        trainer._saved = checkpoint
        trainer._initial = initial_weights(config) if checkpoint is None else None
        trainer._resumed = True
        trainer._lock = lock
        return trainer

    def _begin(
        self,
        config: PPOConfig,
        folder: Path,
        world: World,
        backend: BackendChoice,
        view: View | None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.world = world
        self.device = usable_device(local_device(config.device))
        self.backend: BackendName = require_trainable(config, backend, view=view)
        self._view = view  # of the agent; None until there is one
        require_usable(config)
        require_divisible(config, world.size)
        require_fits(config, world.size)
        self.env_steps = 0
        self.updates = 0
        self.seconds = 0.0  # of the run, with those before it was resumed
        self._recent = RecentEpisodes(config.num_envs)
        self._saved: Checkpoint | None = None  # the last one
        self._log: RunLog | None = None
        self._resumed = False
        self._made_folder = False

    @property
    def saved(self) -> bool:
        """Whether the run folder holds a checkpoint."""
        return has_checkpoint(self.folder)

    def run(self, on_update: OnUpdate | None = None) -> Checkpoint:
        """Train to the end and save.

        A request to stop (Ctrl-C, SIGTERM) lets the update finish, saves and raises; a second one
        raises at once and leaves the last checkpoint as it is, as does any failure. Stopped before
        its first update has ended, a new run leaves nothing behind.

        Args:
            on_update: called after every update, in the first process.

        Returns:
            The trained agent.

        Raises:
            RunStopped: in one line, if training cannot go on: a number is not finite, a checkpoint
                cannot be written, or another process of the run has ended.
            KeyboardInterrupt: on a request to stop, when all is saved; as
                :class:`lab.running.signals.Stopped`, which knows the signal.
        """
        try:
            with StopRequest() as stop, self._stopped_by_environments():
                asked = self._train(stop, on_update)
            if asked:
                raise Stopped(asked)
            if self.world.is_first:
                (self.folder / FAILURE_NAME).unlink(missing_ok=True)  # of an earlier attempt
            assert self._saved is not None
            return self._saved
        except KeyboardInterrupt:
            if self.world.is_first and not self._resumed and self.updates == 0:
                self._remove_traces()
            raise
        finally:
            if self._lock is not None:
                self._lock.release()

    @contextlib.contextmanager
    def _stopped_by_environments(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFailed as error:
            raise RunStopped(f"training stopped in update {self.updates + 1}: {error}") from error

    def _train(self, stop: StopRequest, on_update: OnUpdate | None) -> int:
        """Train until the end, or until a process is asked to stop; the signal, or 0."""
        config = self.config
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        # On the CPU, whatever the device: a run can go on with another one.
        self._actions = torch.Generator().manual_seed(config.seed)
        self._shuffle = torch.Generator().manual_seed(config.seed)
        with contextlib.ExitStack() as stack:
            env = self._make_envs(0)
            stack.callback(lambda: self._env.close())
            try:
                self._make_agent(env)
                if self.world.is_first and not self._resumed:
                    agent_store(self.folder).require_space(self.policy)
            except (RuntimeError, MemoryError) as error:  # of torch, for sizes no memory holds
                if self.world.is_first and not self._resumed:
                    self._remove_traces()
                if isinstance(error, RunStopped):
                    raise
                why = " ".join(str(error).split())[:200] or type(error).__name__
                raise RunStopped(f"the agent cannot be built: {why}.") from None
            self._runner = Runner(env, self.policy, self._actions, self.world)
            if self._resumed:
                self._continue()
            self._log = stack.enter_context(self._make_log()) if self.world.is_first else None
            asked = self._train_on(stop, on_update)
            if self.updates > 0:
                self.save()
        return asked

    def _train_on(self, stop: StopRequest, on_update: OnUpdate | None) -> int:
        config = self.config
        started = time.perf_counter() - self.seconds
        while self.env_steps < config.total_steps:
            if asked := int(self.world.largest(stop.number or 0)):
                return asked
            row = self._update(started)
            if self._log is not None:
                self._log.write(row)
            self._require_finite(row)
            if self.updates % config.restart_envs_every == 0:
                self._restart_envs()
            if self.updates % config.checkpoint_every == 0:
                self.save()
            if on_update is not None and self.world.is_first:
                try:
                    on_update(row)
                except OSError:  # such as a terminal that is gone: nobody looks on any more
                    on_update = None
        return 0

    def _make_log(self) -> RunLog:
        keep = self.env_steps if self._resumed else None
        return RunLog(self.folder, self.config, keep_until=keep)

    def _update(self, started: float) -> dict[str, float]:
        """Collect, learn, and return the row to log."""
        lap = time.perf_counter()
        self._anneal()
        rollout, episodes = collect(self._runner, self.config.rollout_steps_per_env)
        try:
            metrics = update(
                self.policy, self.optimizer, rollout, self.config, self._shuffle, self.world
            )
        except NotFinite as error:
            raise TrainingError(error.name, self.updates + 1) from None
        steps = int(self.world.sum(rollout.valid.sum()))
        self.env_steps += steps
        self.updates += 1
        first_env = self.world.part(self.config.num_envs).start
        self._recent.add_rows(self.world.gather_rows(episode_rows(episodes, first_env)))
        now = time.perf_counter()
        self.seconds = now - started
        return {
            "update": self.updates,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "env_steps_per_second": steps / (now - lap),
            **self._recent.statistics(),
            **metrics,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def _require_finite(self, row: Mapping[str, float]) -> None:
        for name in UPDATE_METRICS:
            # Where all returns are equal there is no variance to explain.
            if name != "explained_variance" and not math.isfinite(row[name]):
                raise TrainingError(name, self.updates)
        self._require_finite_parameters()

    def _require_finite_parameters(self) -> None:
        broken = first_not_finite(self.policy.named_parameters())
        if broken is not None:
            raise TrainingError(f"parameter {broken}", self.updates)

    def _remove_traces(self) -> None:
        """Undo what the run made in its folder, which was empty before."""
        remove_own_files(self.folder)
        agent_store(self.folder).clear_remains()
        with contextlib.suppress(OSError):  # there is none, or a checkpoint is in it
            agent_store(self.folder).folder.rmdir()
        if self._lock is not None:
            self._lock.release()
        (self.folder / LOCK_NAME).unlink(missing_ok=True)
        if self._made_folder:
            with contextlib.suppress(OSError):  # something of another's is in it
                self.folder.rmdir()

    def save(self) -> Checkpoint:
        """Write a checkpoint unless there is one of this update; all processes together.

        None of them goes on before it is on disk.

        Raises:
            TrainingError: if a parameter is not finite; such an agent never replaces a good one.
            CannotSave: if it cannot be written.
        """
        saved = self._saved
        if saved is not None and (saved.updates, saved.config) == (self.updates, self.config):
            return saved
        self._require_finite_parameters()
        checkpoint = self._make_checkpoint()
        if self.world.is_first:
            if self._log is not None:
                self._log.sync()
            try:
                save_checkpoint(self.folder, checkpoint)
            except OSError as error:
                raise CannotSave(self.folder, error) from None
        self.world.wait()
        self._saved = checkpoint
        return checkpoint

    def _make_checkpoint(self) -> Checkpoint:
        score = self._recent.statistics()["episode_return_mean"]
        # Those of an interruption do not compete to be the best: a run without it has none.
        regular = self.updates % self.config.checkpoint_every == 0
        done = self.env_steps >= self.config.total_steps
        return Checkpoint(
            config=self.config,
            num_actions=self.num_actions,
            read_mission=self.read_mission,
            view=self.policy.view,
            backend=self.backend,
            env_steps=self.env_steps,
            updates=self.updates,
            policy=self.policy.state_dict(),
            optimizer=self.optimizer.state_dict(),
            training=self._training_state(),
            score=score if math.isfinite(score) and (regular or done) else None,
        )

    def _training_state(self) -> dict[str, object]:
        """What, besides the agent, the rest of the run follows from; of all processes."""
        runner, gather = self._runner, self.world.gather
        random = {
            "actions": self._actions.get_state(),
            "shuffle": self._shuffle.get_state(),
            "torch": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        actions = np.array(runner.actions, dtype=np.uint8).reshape(-1, runner.env.num_envs)
        return {
            "seconds": self.seconds,
            "core_state": [gather(part, 1) for part in runner.state],  # each (L, E, H)
            "actions": gather(torch.from_numpy(actions), 1),  # (t, E) since the environments began
            "seen": {k: gather(v, 0) for k, v in runner.seen._asdict().items()},
            "recent_episodes": self._recent.to_tensor(),
            "random": random,
        }

    def _continue(self) -> None:
        """Bring everything where it was when the last checkpoint was saved, if there is one.

        Raises:
            RunStopped: if that cannot be done.
        """
        checkpoint, world = self._saved, self.world
        mark = -1.0 if checkpoint is None else checkpoint.training.get("seconds", -1.0)
        if world.largest(mark) != -world.largest(-mark):
            raise RunStopped(
                "the processes of this run do not see the same checkpoints; its folder has to be "
                "on a file system that all of them share."
            )
        if checkpoint is None:
            return
        try:
            self._restore(checkpoint)
        except (RunStopped, EnvironmentFailed):
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise RunStopped(
                f"the run in {str(self.folder)!r} cannot be resumed: its checkpoint holds an "
                "agent, but not what its training goes on from."
            ) from None
        if self.config != checkpoint.config:
            self.save()  # by this the run is known from now on, also if it is killed at once

    def _restore(self, checkpoint: Checkpoint) -> None:
        training, runner = checkpoint.training, self._runner
        part = self.world.part(self.config.num_envs)
        self.env_steps, self.updates = checkpoint.env_steps, checkpoint.updates
        self.seconds = training["seconds"]
        self.policy.load_state_dict(checkpoint.policy)
        load_optimizer(self.optimizer, checkpoint.optimizer)
        self._recent.add_rows(training["recent_episodes"])
        if self.updates >= self.config.restart_envs_every:
            self._restart_envs()
        runner.replay(
            training["actions"][:, part].numpy(),
            Observations(**{name: value[part] for name, value in training["seen"].items()}),
        )
        state = tuple(x[:, part].to(self.device) for x in training["core_state"])
        if [(x.shape, x.dtype) for x in state] != [(x.shape, x.dtype) for x in runner.state]:
            raise ValueError("the state of another core")
        runner.state = state
        random = training["random"]
        self._actions.set_state(random["actions"])
        self._shuffle.set_state(random["shuffle"])
        torch.set_rng_state(random["torch"])
        if "cuda" in random and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)

    def _make_envs(self, restart: int) -> VectorEnv:
        """This process's part of the environments."""
        config = self.config
        part = self.world.part(config.num_envs)
        seeds = level_seeds(config.seed, "train", config.num_envs, restart)[part]
        self._env = make_vector_env(
            config.task, len(seeds), seeds, self.backend, config.threads, self._view
        )
        return self._env

    def _restart_envs(self) -> None:
        """Make the environments anew, with other levels.

        EnvPool's cannot be saved. So that those of a resumed run can be brought where they were by
        doing again what was done in them, there is never long since they began.
        """
        self._env.close()
        self._runner.restart(self._make_envs(self.updates // self.config.restart_envs_every))

    def _make_agent(self, env: VectorEnv) -> None:
        config = self.config
        self.num_actions = env.num_actions
        self.read_mission = reads_mission(config)
        self._view = view = self._view or env.view
        policy = RecurrentActorCritic(
            config, self.num_actions, read_mission=self.read_mission, view=view
        )
        if self._initial is not None:
            policy.load_state_dict(self._initial)
        self.policy = policy.to(self.device)
        self.optimizer = make_optimizer(self.policy, config)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                self.world.same(parameter.data)

    def _anneal(self) -> None:
        if self.config.anneal_learning_rate:
            left = max(0.0, 1 - self.env_steps / self.config.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * left


def require_divisible(config: PPOConfig, processes: int) -> None:
    """See that every process gets as many environments, in every minibatch.

    Raises:
        ConfigError: if not.
    """
    if config.num_envs % (processes * config.minibatches):
        rule = (
            f"must be a multiple of {processes} processes times {config.minibatches} minibatches; "
            f"got {config.num_envs}."
        )
        raise ConfigError("num_envs", rule)
