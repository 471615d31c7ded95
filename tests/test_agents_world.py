"""Several processes that train one agent: the numbers of one, one writer, and one end."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import PPOConfig
from agents.learning.checkpoint import agent_store, load_checkpoint
from agents.learning.resuming import resume
from agents.learning.session import require_divisible
from agents.learning.train import Trainer
from command_line import ENV, ROOT, TOY, tree, wait_for_rows
from envs import level_seeds, make_vector_env
from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.disk.lock import HOLDER_NAME
from lab.running.ranks import launched, local_device
from lab.running.world import World, WorldBroken, joined
from lab.settings import ConfigError
from selection import short
from test_agents_resume import STEPS, TIME_COLUMNS, make_config

# Started by a process that has imported what they need, else each would take seconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["agents.learning.resuming", "envs.backends.gymnasium_backend", "torch.utils.tensorboard"]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def as_rank(
    rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with joined("cpu") as world:
        function(world, *arguments)


def in_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Call ``function(world, *arguments)`` in so many processes; their exit codes."""
    port = free_port()
    processes = [
        _SERVER.Process(target=as_rank, args=(rank, size, port, function, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def train_together(world: World, config: PPOConfig, folder: str) -> None:
    Trainer(config, Path(folder), world).run()


def go_on_together(world: World, folder: str, total_steps: int) -> None:
    trainer, _ = resume(Path(folder), total_steps=total_steps, world=world)
    trainer.run()


def check_collectives(world: World) -> None:
    rank, size = world.rank, world.size
    assert size == 3
    assert world.sum(torch.tensor([float(rank)])).tolist() == [3.0]
    assert world.largest(rank / 2) == 1.0
    flags = world.gather(torch.tensor([[rank == 1], [True]]), 1)
    assert flags.tolist() == [[False, True, False], [True] * 3]
    rows = world.gather_rows(torch.full((rank, 2), float(rank)))
    assert rows.tolist() == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    assert world.gather_rows(torch.zeros(0, 4)).shape == (0, 4)
    mine = torch.tensor([rank + 5])
    world.same(mine)
    assert mine.tolist() == [5]
    assert [world.part(6).start, world.part(6).stop] == [2 * rank, 2 * rank + 2]


def test_collectives() -> None:
    assert in_ranks(3, check_collectives) == [0, 0, 0]


def assert_close_rows(first: Path, second: Path, *, updates: int) -> None:
    ours, theirs = read_progress(first), read_progress(second)
    assert list(ours) == list(theirs)
    for name in ours:
        if name not in TIME_COLUMNS:
            # 1 minus a quotient is as wrong as the quotient, however small it is itself.
            least = 2e-4 if name == "explained_variance" else 2e-6
            expected = pytest.approx(theirs[name][:updates], rel=2e-4, abs=least, nan_ok=True)
            assert ours[name][:updates] == expected, name


@pytest.mark.parametrize(
    ("core", "env"),
    short([("rim_lstm", "MiniGrid-DoorKey-5x5-v0"), ("gru", ENV), ("none", ENV)], 0),
)
def test_two_processes_give_the_numbers_of_one(tmp_path: Path, core: str, env: str) -> None:
    """To within rounding over the first updates; later, rounding decides about an action."""
    config = make_config(core=core, env=env, total_steps=6 * STEPS)
    Trainer(config, tmp_path / "one").run()
    assert in_ranks(2, train_together, config, str(tmp_path / "two")) == [0, 0]
    assert_close_rows(tmp_path / "one", tmp_path / "two", updates=6)
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert (one.env_steps, one.updates) == (two.env_steps, two.updates)
    for name, weight in one.policy.items():
        torch.testing.assert_close(two.policy[name], weight, rtol=1e-4, atol=1e-5)
    # What the rest of the run follows from is that of all environments.
    assert torch.equal(two.training["actions"], one.training["actions"])
    assert torch.equal(two.training["seen"]["image"], one.training["seen"]["image"])
    assert torch.equal(two.training["random"]["actions"], one.training["random"]["actions"])
    assert torch.equal(two.training["recent_episodes"], one.training["recent_episodes"])


@pytest.mark.long
def test_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    config = make_config(core="gru", env=ENV, total_steps=6 * STEPS, anneal_learning_rate=False)
    Trainer(config, tmp_path / "one").run()
    for name, sizes in (("up", (1, 2)), ("down", (2, 1))):
        folder = str(tmp_path / name)
        half = replace(config, total_steps=3 * STEPS)
        assert in_ranks(sizes[0], train_together, half, folder) == [0] * sizes[0]
        codes = in_ranks(sizes[1], go_on_together, folder, config.total_steps)
        assert codes == [0] * sizes[1]
        assert_close_rows(tmp_path / "one", tmp_path / name, updates=6)


def check_same_weights(world: World, folder: str) -> None:
    """After every update, and with what a single process would not do: one rank's own data."""
    trainer = Trainer(make_config(core="gru", total_steps=256), Path(folder), world)
    require = trainer._require_finite

    def compare(row: Any) -> None:
        require(row)
        own = torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])
        every = world.gather(own.unsqueeze(0), 0)
        assert torch.equal(every[0], every[1])

    trainer._require_finite = compare  # type: ignore[method-assign]
    trainer.run()


def test_weights_are_the_same_in_all_processes_after_each_update(tmp_path: Path) -> None:
    assert in_ranks(2, check_same_weights, str(tmp_path / "run")) == [0, 0]


def check_levels(world: World, folder: str) -> None:
    config = make_config(core="none", num_envs=8)
    trainer = Trainer(config, Path(folder), world)
    for restart in (0, 1):
        with trainer._place.make_envs(restart) as env:
            seen = torch.from_numpy(env.reset().image)
        seeds = level_seeds(config.seed, "train", 8, restart)
        with make_vector_env(config.task, 8, seeds, "gymnasium") as alone:
            expected = torch.from_numpy(alone.reset().image)
        assert len(seen) == 4
        assert torch.equal(world.gather(seen, 0), expected)
        assert not torch.equal(expected[:4], expected[4:])


def test_levels_of_processes_are_parts_of_those_of_one(tmp_path: Path) -> None:
    assert in_ranks(2, check_levels, str(tmp_path / "run")) == [0, 0]


def test_number_of_environments_must_fit() -> None:
    config = make_config(num_envs=8, minibatches=2)
    require_divisible(config, 4)
    with pytest.raises(ConfigError, match="multiple of 3 processes times 2 minibatches; got 8"):
        require_divisible(config, 3)


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == (0, 1)
    with joined("cpu") as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3"
    assert local_device("cuda:1") == "cuda:1"
    assert local_device("cpu") == "cpu"


# torchrun ---------------------------------------------------------------------------------------


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
        port = ("--master-port", str(free_port()))
        started.append(
            subprocess.Popen(
                [sys.executable, *launcher, *port, "-m", "cli", *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


ENDLESS = ("train", "--env", ENV, "--core", "none", *TOY, "--total-steps", "100000000")


def ranks_of(running: subprocess.Popen[str]) -> dict[int, int]:
    """Process numbers by rank."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes()
        if found := re.search(rb"\0RANK=(\d)", environment):
            ranks[int(found[1])] = int(child)
    return ranks


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="looks for children in /proc"
)


@needs_proc
@pytest.mark.long
def test_signal_to_one_process_saves_and_ends_all(tmp_path: Path, torchrun: Any) -> None:
    running = torchrun(*ENDLESS, "--checkpoint-every", "100000", "--run-dir", "run")
    wait_for_rows(running, tmp_path / "run" / PROGRESS_NAME)
    os.kill(ranks_of(running)[1], signal.SIGTERM)
    _, err = running.communicate(timeout=90)
    assert running.returncode != 0
    assert err.count("Interrupted; the agent is saved") == 1
    updates = read_progress(tmp_path / "run")["update"]
    assert agent_store(tmp_path / "run").load().number == updates[-1] >= 2


@pytest.mark.long
@needs_proc
def test_death_of_one_process_ends_the_others(tmp_path: Path, torchrun: Any) -> None:
    running = torchrun(*ENDLESS, "--checkpoint-every", "1", "--run-dir", "run")
    folder = tmp_path / "run"
    wait_for_rows(running, folder / PROGRESS_NAME)
    ranks = ranks_of(running)
    os.kill(ranks[1], signal.SIGKILL)
    _, err = running.communicate(timeout=90)
    assert running.returncode != 0
    assert not Path(f"/proc/{ranks[0]}").exists()
    assert str(WorldBroken()) in err
    before = load_checkpoint(folder)  # whole
    assert before.updates >= 1
    trainer, _ = resume(folder, total_steps=before.env_steps + 200)
    trainer.run()


@pytest.mark.long
def test_terminated_torchrun_saves_once(tmp_path: Path, torchrun: Any) -> None:
    running = torchrun(*ENDLESS, "--checkpoint-every", "100000", "--run-dir", "run")
    wait_for_rows(running, tmp_path / "run" / PROGRESS_NAME)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=90)
    assert running.returncode != 0
    assert err.count("Interrupted; the agent is saved") == 1
    updates = read_progress(tmp_path / "run")["update"]
    assert agent_store(tmp_path / "run").load().number == updates[-1] >= 2


@pytest.mark.long
def test_mistake_under_torchrun_is_told_once_and_nothing_is_written(
    tmp_path: Path, torchrun: Any
) -> None:
    start = time.monotonic()
    running = torchrun("train", "--env", ENV, "--num-envs", "6", "--minibatches", "2")
    _, err = running.communicate(timeout=90)
    assert running.returncode != 0
    assert err.count("Error: --num-envs must be a multiple of 2 processes") == 1
    assert tree(tmp_path) == {}
    assert time.monotonic() - start < 60


@pytest.mark.long
def test_complete_run_resumed_under_torchrun_ends_well(tmp_path: Path, torchrun: Any) -> None:
    folder = tmp_path / "run"
    Trainer(PPOConfig(env=ENV, core="none", num_envs=8, total_steps=8), folder).run()
    before = tree(folder)
    running = torchrun("resume", "run")
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0
    assert err.count("Notice: the run in 'run' is complete") == 1
    assert {n: c for n, c in tree(folder).items() if n != HOLDER_NAME} == {
        n: c for n, c in before.items() if n != HOLDER_NAME
    }
