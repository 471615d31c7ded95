"""The training loop: collect, update, log, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from agents.config import PPOConfig
from agents.learning.checkpoint import Checkpoint, agent_store, save_checkpoint
from agents.learning.initial_weights import initial_weights
from agents.learning.ppo import UPDATE_METRICS, update
from agents.learning.recent_episodes import episode_rows
from agents.learning.rollout import collect
from agents.learning.session import Place, Progress, Session, make_checkpoint, restore
from agents.model.mixed_encoder import MixedEncoder
from agents.model.policy import RecurrentActorCritic
from envs import BackendName, EnvironmentFailed
from lab.disk.folder import FAILURE_NAME, claim_run_folder, remove_own_files
from lab.disk.lock import LOCK_NAME
from lab.disk.log import RunLog
from lab.disk.store import has_checkpoint
from lab.running.guards import CannotSave, NotFinite, RunStopped, TrainingError, first_not_finite
from lab.running.signals import Stopped, StopRequest
from lab.running.world import World
from lab.words import message_of

#: Called after every update with the row that was logged.
OnUpdate = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Resumed:
    """A resumed run, which continues as if it had never stopped.

    :func:`agents.learning.resuming.resume` finds out what to give.

    Args:
        checkpoint: its last one; ``None`` if it stopped before the first.
        lock: on its folder, held since before the checkpoint was read; the run releases it.
    """

    checkpoint: Checkpoint | None
    lock: FileLock | None = None


class Trainer:
    """One training run, from a configuration to a checkpoint.

    The folder is locked from construction to the end of :meth:`run`.

    Args:
        config: settings of the run. When a run is resumed, only ``total_steps`` and settings
            without effect in it may differ from before.
        folder: the run folder. That of a new run must be absent or empty.
        world: the processes that train together, each with its part of the environments; by
            default this one alone. All of them make a Trainer; the first one writes. The number of
            processes may change when a run is resumed.
        resumed: the state of a run to resume; ``None`` begins a new one.

    Raises:
        ValueError: before any work, for a task the backend cannot run, an unusable device, a core
            given by import path that cannot be used, another run's weights that cannot be, or a
            folder of a new run that is not empty or in use.
    """

    def __init__(
        self,
        config: PPOConfig,
        folder: Path,
        world: World | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.world = world or World()
        self._resumed = resumed is not None
        self._saved = None if resumed is None else resumed.checkpoint  # the last one
        self._place = Place.checked(config, self.world, self._saved)
        self._initial = initial_weights(config) if self._saved is None else None
        self._session: Session | None = None
        self._log: RunLog | None = None
        self._made_folder = not folder.exists()
        if resumed is not None:
            self._lock = resumed.lock
        else:
            self._lock = claim_run_folder(folder) if self.world.is_first else None

    @property
    def backend(self) -> BackendName:
        """Backend of the environments."""
        return self._place.backend

    @property
    def progress(self) -> Progress:
        """The progress of the run in this process."""
        return Progress() if self._session is None else self._session.progress

    @property
    def policy(self) -> RecurrentActorCritic:
        """The agent in training."""
        return self._going.policy

    @property
    def _going(self) -> Session:
        assert self._session is not None, "the run has not begun"
        return self._session

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
            if self.world.is_first and not self._resumed and self.progress.updates == 0:
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
            raise RunStopped(
                f"training stopped in update {self.progress.updates + 1}: {error}"
            ) from error

    def _train(self, stop: StopRequest, on_update: OnUpdate | None) -> int:
        """Train until the end, or until a process is asked to stop; the signal, or 0."""
        config = self.config
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        with contextlib.ExitStack() as stack:
            session = self._session = self._begin(stack)
            if self._resumed:
                self._continue(session)
            self._log = stack.enter_context(self._make_log()) if self.world.is_first else None
            asked = self._train_on(session, stop, on_update)
            if session.progress.updates > 0:
                self.save()
        return asked

    def _begin(self, stack: contextlib.ExitStack) -> Session:
        """Make environments and agent; ``stack`` closes the environments there are in the end."""
        place, writes = self._place, self.world.is_first and not self._resumed
        env = place.make_envs(0)
        stack.callback(lambda: (env if self._session is None else self._session.runner.env).close())
        try:
            policy = place.make_policy(env, self._initial)
            optimizer = place.make_optimizer(policy)
            if writes:
                agent_store(self.folder).require_space(policy)
        except (RuntimeError, MemoryError) as error:  # of torch, for sizes no memory holds
            if writes:
                self._remove_traces()
            if isinstance(error, RunStopped):
                raise
            why = message_of(error)[:200]
            raise RunStopped(f"the agent cannot be built: {why}.") from None
        return Session.of(place, env, policy, optimizer)

    def _train_on(self, session: Session, stop: StopRequest, on_update: OnUpdate | None) -> int:
        config, progress = self.config, session.progress
        started = time.perf_counter() - progress.seconds
        while progress.env_steps < config.total_steps:
            if asked := int(self.world.largest(stop.number or 0)):
                return asked
            row = self._update(session, started)
            if self._log is not None:
                self._log.write(row)
            self._require_finite(row)
            if progress.updates % config.restart_envs_every == 0:
                session.restart_envs()
            if progress.updates % config.checkpoint_every == 0:
                self.save()
            if on_update is not None and self.world.is_first:
                try:
                    on_update(row)
                except OSError:  # such as a terminal that is gone: nobody looks on any more
                    on_update = None
        return 0

    def _make_log(self) -> RunLog:
        keep = self.progress.env_steps if self._resumed else None
        return RunLog(self.folder, self.config, keep_until=keep)

    def _update(self, session: Session, started: float) -> dict[str, float]:
        """Collect, learn, and return the row to log."""
        config, world, progress = self.config, self.world, session.progress
        lap = time.perf_counter()
        session.anneal()
        rollout, episodes = collect(session.runner, config.rollout_steps_per_env)
        try:
            metrics = update(
                session.policy, session.optimizer, rollout, config, session.shuffle_numbers, world
            )
        except NotFinite as error:
            raise TrainingError(error.name, progress.updates + 1) from None
        if isinstance(session.policy.encoder, MixedEncoder):
            session.policy.encoder.add_seen(rollout.observations, world)
        steps = int(world.sum(rollout.valid.sum()))
        progress.env_steps += steps
        progress.updates += 1
        first_env = world.part(config.num_envs).start
        session.recent.add_rows(world.gather_rows(episode_rows(episodes, first_env)))
        now = time.perf_counter()
        progress.seconds = now - started
        return {
            "update": progress.updates,
            "env_steps": progress.env_steps,
            "seconds": progress.seconds,
            "env_steps_per_second": steps / (now - lap),
            **session.recent.statistics(),
            **metrics,
            "learning_rate": session.optimizer.param_groups[0]["lr"],
        }

    def _require_finite(self, row: Mapping[str, float]) -> None:
        for name in UPDATE_METRICS:
            # Where all returns are equal there is no variance to explain.
            if name != "explained_variance" and not math.isfinite(row[name]):
                raise TrainingError(name, self.progress.updates)
        self._require_finite_parameters()

    def _require_finite_parameters(self) -> None:
        broken = first_not_finite(self.policy.named_parameters())
        if broken is not None:
            raise TrainingError(f"parameter {broken}", self.progress.updates)

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
        if saved is not None and (saved.updates, saved.config) == (
            self.progress.updates,
            self.config,
        ):
            return saved
        self._require_finite_parameters()
        checkpoint = make_checkpoint(self._going)
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

    def _continue(self, session: Session) -> None:
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
            restore(session, checkpoint)
        except (RunStopped, EnvironmentFailed):
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise RunStopped(
                f"the run in {str(self.folder)!r} cannot be resumed: its checkpoint holds an "
                "agent, but not what its training goes on from."
            ) from None
        if self.config != checkpoint.config:
            self.save()  # by this the run is known from now on, also if it is killed at once


def check(config: PPOConfig) -> None:
    """Refuse settings with which no run can be trained; nothing is written.

    Raises:
        ValueError: as :class:`Trainer` for a new run, but for its folder.
    """
    Place.checked(config, World())
    initial_weights(config)
