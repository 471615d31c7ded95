"""Calls as jobs of a Slurm cluster: submitted, waited for, cancelled. Made with submitit."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.running.processes import MAX_ERROR, Outcome
from lab.running.signals import StopRequest
from lab.slurm.job import ResumableCall

if TYPE_CHECKING:  # importing this needs no submitit
    from submitit import AutoExecutor, Job

    Jobs = Sequence[Job[Outcome]]

#: Settings of a job unless given: its name, and minutes until it is stopped and queued again.
DEFAULTS = {"name": "rims", "timeout_min": 240}

#: How often a job may reach its time limit; each time it resumes.
MAX_TIMEOUTS = 100

#: Seconds between two looks at the jobs.
POLL_SECONDS = 2.0

#: Seconds that the answer of a job that has ended may need through a shared file system.
ANSWER_SECONDS = 15.0

_COMMANDS = ("sbatch", "srun", "sacct", "scancel")

_WHOLE_NUMBERS = ("time", "timeout_min", "cpus_per_task", "gpus_per_node", "signal_delay_s")

_LISTS = ("setup", "teardown", "srun_args")

#: Settings that would break a job of one process that is stopped and queued again, and why.
_NOT_TO_BE_SET = {
    "array_parallelism": "give --jobs instead.",
    "num_gpus": "give gpus_per_node instead.",
    **dict.fromkeys(
        ("nodes", "tasks_per_node", "ntasks_per_node"), "each job is one process on one machine."
    ),
    **dict.fromkeys(
        ("additional_parameters", "use_srun", "stderr_to_stdout"), "it cannot be set here."
    ),
}


class SubmissionError(RuntimeError):
    """Slurm does not take the jobs; one line says what it said."""


class SlurmLauncher:
    """Makes calls as jobs, where :func:`lab.running.processes.run_all` makes them in processes
    here.

    Nothing is written before the first call.

    Args:
        folder: for scripts, logs and answers of jobs; on a file system that the cluster shares.
        settings: settings of each job, as :func:`read_settings` returns them.
        tell: called with a line for the user when jobs are submitted or cancelled.

    Raises:
        ValueError: in one line, if submitit or Slurm is not there or a setting cannot be.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        _require_slurm()
        self.folder = folder
        self._tell = tell
        self._executor = _executor(folder, {**DEFAULTS, **settings})

    def __call__(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        jobs: int,
        on_wait: Callable[[int], None] = lambda _: None,
    ) -> list[Outcome]:
        """Call ``function`` with each of ``calls``, ``jobs`` at a time, each as a job.

        On Ctrl-C the jobs are cancelled, before which Slurm asks each to stop.

        Args:
            function: as :class:`lab.slurm.job.ResumableCall` takes it.
            calls: arguments, which are pickled.
            jobs: number of jobs at a time.
            on_wait: called every few seconds with the number of calls that have just ended.

        Returns:
            What became of each call, in their order.

        Raises:
            SubmissionError: if Slurm does not take them.
        """
        calls = list(calls)
        if not calls:
            return []
        submitted: Jobs = []
        try:
            with StopRequest() as stop:  # else jobs could be there of which nobody knows
                submitted = self._submit(function, calls, jobs)
            stop.obey()
            self._tell(f"Submitted as Slurm job {_number(submitted)}; logs are in {self.folder}.")
            return _wait_for(submitted, on_wait)
        except KeyboardInterrupt:
            if submitted:
                with StopRequest():
                    self._tell(_cancel(_number(submitted)))
            raise

    def _submit(
        self, function: Callable[..., Any], calls: list[tuple[Any, ...]], jobs: int
    ) -> Jobs:
        from submitit import JobEnvironment
        from submitit.helpers import clean_env, environment_variables

        self._executor.update_parameters(slurm_array_parallelism=jobs)
        signal_name = {"SUBMITIT_PREEMPT_SIGNAL": JobEnvironment.USR_SIG}
        with clean_env(), environment_variables(**signal_name):
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # the error has it, too
                    columns = zip(*calls, strict=True)
                    return self._executor.map_array(ResumableCall(function), *columns)
            except (RuntimeError, OSError) as error:
                said = " ".join(str(error).split())[:MAX_ERROR] or "sbatch does not say why"
                raise SubmissionError(f"Slurm does not take the jobs: {said}") from None


def read_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings of jobs from KEY=VALUE, by the names submitit has for them.

    Raises:
        ValueError: in one line, for what is no such text or cannot be set.

    Example:
        >>> read_settings(["partition=gpu", "time=120", "setup=module load python"])
        {'partition': 'gpu', 'time': 120, 'setup': ['module load python']}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, is_there, value = text.partition("=")
        if not (is_there and key and value):
            raise ValueError(f"--slurm: {text!r} is not KEY=VALUE, such as partition=gpu.")
        if key in _NOT_TO_BE_SET:
            raise ValueError(f"--slurm {key}: {_NOT_TO_BE_SET[key]}")
        if key in _LISTS:
            settings.setdefault(key, []).append(value)
        else:
            settings[key] = _value(key, value)
    return settings


def _value(key: str, text: str) -> str | int | float | bool:
    if key in _WHOLE_NUMBERS:
        if not re.fullmatch("[0-9]{1,9}", text):
            unit = ", in minutes" if key in ("time", "timeout_min") else ""
            raise ValueError(f"--slurm {key} must be a whole number{unit}; got {text!r}.")
        return int(text)
    if key == "mem_gb":
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise ValueError(f"--slurm mem_gb must be a number; got {text!r}.")
        return float(text)
    return True if (key, text) == ("exclusive", "true") else text


def _require_slurm() -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--launcher slurm needs submitit: pip install 'rims-toolkit[slurm]'")
    for command in _COMMANDS:
        if shutil.which(command) is None:
            raise ValueError(
                f"--launcher slurm: there is no {command!r} on this machine; run it on one from "
                "which jobs of a Slurm cluster are submitted."
            )


def _executor(folder: Path, settings: Mapping[str, Any]) -> AutoExecutor:
    from submitit import AutoExecutor

    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # it writes to standard output
    executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS)
    generic = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
    for key, value in settings.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about settings that go only with others
                executor.update_parameters(**{key if key in generic else f"slurm_{key}": value})
        except NameError:
            raise ValueError(
                f"--slurm {key}: submitit has no such setting of a job; it has partition, time, "
                "mem_gb, cpus_per_task, gpus_per_node, account, qos, constraint and others."
            ) from None
    # Whatever the cluster's default: a job that was stopped is to be queued again.
    executor.update_parameters(slurm_additional_parameters={"requeue": True})
    return executor


def _number(jobs: Jobs) -> str:
    """The number of the one job, or of the array they are."""
    return jobs[0].job_id.partition("_")[0]


def _cancel(number: str) -> str:
    """Cancel a job or an array; return a message about it."""
    done = subprocess.run(["scancel", number], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())
        return f"Slurm job {number} could not be cancelled: {said or 'scancel does not say why'}."
    return f"Cancelled Slurm job {number}: runs under way save; the same command goes on with them."


def _wait_for(jobs: Jobs, on_wait: Callable[[int], None]) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    silent_since: dict[int, float] = {}
    while True:
        before = len(outcomes)
        for place, job in enumerate(jobs):
            if place in outcomes or not job.done():
                continue
            if job.paths.result_pickle.exists():
                outcomes[place] = _answer(job)
                continue
            now = time.monotonic()
            if now - silent_since.setdefault(place, now) >= ANSWER_SECONDS:
                outcomes[place] = Outcome(error=_ended(job, f"ended ({job.state})"))
        on_wait(len(outcomes) - before)
        if len(outcomes) == len(jobs):
            return [outcomes[place] for place in range(len(jobs))]
        time.sleep(POLL_SECONDS)


def _answer(job: Job[Outcome]) -> Outcome:
    try:
        return job.result()
    except Exception:  # of the job, or unpickling its answer; the others go on
        return Outcome(error=_ended(job, "failed"))


def _ended(job: Job[Outcome], how: str) -> str:
    return f"its Slurm job {job.job_id} {how}; {str(job.paths.stderr)!r} may say why."
