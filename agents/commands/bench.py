"""``rims bench``."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands.parsing import bench_options
from agents.commands.parsing.errors import UserError, checking_input
from agents.commands.parsing.options import (
    GroupedCommand,
    make_config,
    require_effect_of_cores,
    typed_of,
)
from lab.running.memory import require_memory
from lab.running.signals import exit_code

if TYPE_CHECKING:
    from agents.throughput.run import Contest
    from rims.bench.cases import Settings


@click.group(invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure speed and memory."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@contextmanager
def measuring(out: Path, left: str = "what was measured is in") -> Iterator[None]:
    """Hold the folder of the results, and say in one line what ended a measurement before its time.

    Args:
        out: the folder; is made.
        left: words for what an interruption leaves in it.
    """
    from lab.disk.folder import claim_folder

    with checking_input():
        lock = claim_folder(out)
    try:
        yield
    except KeyboardInterrupt as interruption:
        click.echo(f"Interrupted; {left} {out}.", err=True)
        sys.exit(exit_code(interruption))
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from None
    finally:
        lock.release()


def _require_memory(grid: Settings) -> None:
    """Refuse a largest case whose weights, inputs and outputs do not fit into memory."""
    needed = max(
        4.0 * (3 * size.hidden_size + steps * batch) * (size.input_size + size.hidden_size)
        for size in grid.sizes
        for steps in grid.steps
        for batch in grid.batches
    )
    require_memory(needed, "the largest case", "give less of --size, --batch or --steps")


@bench.command()
@bench_options.cells_options
def cells(out: Path, resume: bool, **given: Any) -> None:
    """Time RIM layers against nn.LSTM and nn.GRU.

    Both layers of a pair have the same input and hidden size and run alternately in one process,
    inference and training, over a grid of layer sizes, batches and sequence lengths. For large
    cases peak memory is measured too. cells.json and cells.md are complete after every case, so
    that the command can be stopped; the same command goes on.
    """
    import torch

    from rims.bench.cases import Settings, Size
    from rims.bench.run import bench_cells

    given = bench_options.apply_quick(given)
    given["sizes"] = tuple(Size(*size) for size in given["sizes"])
    given["threads"] = given["threads"] or torch.get_num_threads()
    with checking_input():
        settings = Settings(**given)
        _require_memory(settings)
    command = shlex.join(("rims", *sys.argv[1:]))
    with measuring(out, "the same command goes on from what is in"):
        report = bench_cells(
            settings, out, command, resume=resume, say=lambda line: click.echo(line, err=True)
        )
    click.echo(report, nl=False)


@bench.command()
@bench_options.nfm_options
def nfm(out: Path, **given: Any) -> None:
    """Time a network with NFM against the same without.

    PreActResNet-18 on images of 32x32: without NFM, with it, and with it where the attention is
    written plainly; and that attention alone. All contenders run alternately in one process,
    training and inference. nfm.json and nfm.md are complete after every case.
    """
    import torch

    from nfm.bench.contenders import IMAGE, Settings
    from nfm.bench.run import bench_nfm

    given = bench_options.apply_quick(given, bench_options.QUICK_NFM)
    given["threads"] = given["threads"] or torch.get_num_threads()
    with checking_input():
        settings = Settings(**given)
        points = IMAGE**2 * settings.batch  # of the first stage's map; the last has 8 times as many
        needed = 4.0 * settings.planes * (points + 9 * 64 * settings.planes)
        require_memory(needed, "the largest case", "give less of --planes or --batch")
    command = shlex.join(("rims", *sys.argv[1:]))
    with measuring(out):
        report = bench_nfm(settings, out, command, say=lambda line: click.echo(line, err=True))
    click.echo(report, nl=False)


@bench.command("jax")
@bench_options.jax_options
def jax_(out: Path, **given: Any) -> None:
    """Time the layers for JAX against Flax's and against the same layers in torch.

    Contenders run alternately in one process, jitted, inference and training, on all processors
    that this process may use. Needs the extra "jax". jax.json and jax.md are complete after every
    case.
    """
    try:
        from rims.jax.bench import bench_jax, best_device
    except ImportError as error:
        raise UserError(str(error)) from None
    from lab.running.processes import usable_processors
    from rims.bench.cases import Settings, Size

    given = bench_options.apply_quick(given, bench_options.QUICK_JAX)
    given["sizes"] = tuple(Size(*size) for size in given["sizes"])
    given["device"] = given["device"] or best_device()
    with checking_input():
        grid = Settings(**given, threads=usable_processors(), memory=False)
        _require_memory(grid)
    command = shlex.join(("rims", *sys.argv[1:]))
    with measuring(out), checking_input():
        report = bench_jax(grid, out, command, say=lambda line: click.echo(line, err=True))
    click.echo(report, nl=False)


@bench.command("first-call")
@bench_options.THREADS
def first_call(threads: int | None) -> None:
    """Time the first calls of a layer, compilation of its kernels included.

    They are timed in a fresh process with nothing compiled before, and in another after it. This
    takes about 15 seconds.
    """
    import torch

    from rims.bench.first_call import measure_first_calls, to_markdown

    try:
        runs = measure_first_calls(threads or torch.get_num_threads())
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    click.echo(to_markdown(runs), nl=False)


@bench.command(cls=GroupedCommand)
@bench_options.agents_options
def agents(out: Path, cores: tuple[str, ...], sb3: bool, **given: Any) -> None:
    """Time the training of agents against sb3-contrib.

    Environment steps per second, collecting and updating together, of every core with our PPO and
    of sb3-contrib's RecurrentPPO with the same settings. Contenders run alternately, each in a
    fresh process. agents.json and agents.md are complete after every round. Without --suite and
    --env the task is that of suite doorkey.
    """
    from agents.model.footprint import require_fits
    from agents.model.trainable import require_trainable
    from agents.throughput.run import SB3_NAMES, Contest
    from envs import View, view_of
    from lab.running.processes import usable_processors

    typed_envs = bench_options.is_typed("num_envs") or not given["quick"]
    given = bench_options.apply_quick(given, bench_options.QUICK_AGENTS)
    rounds, updates, threads = (given.pop(name) for name in ("rounds", "updates", "threads"))
    if not given["suite"] and not given["env"]:
        given["suite"] = "doorkey"
    config = make_config(given)
    require_effect_of_cores(config, cores, typed_of(given))
    with checking_input():  # after the preset, which would win over what was not typed
        few = {} if typed_envs else {"num_envs": given["num_envs"]}
        # All actions, whatever the preset of a suite says: sb3-contrib has them all.
        threads = threads or usable_processors()
        config = replace(config, threads=threads, actions="all", **few)
    contenders = (*cores, *SB3_NAMES) if sb3 and _has_sb3() else cores
    contest = Contest(config=config, contenders=contenders, updates=updates, rounds=rounds)
    with checking_input():
        require_trainable(config)
        require_fits(config)
        if not isinstance(view_of(config.task, config.backend), View):
            raise ValueError(
                f"{config.task.id} has no symbolic view; the benchmark needs MiniGrid."
            )
    with measuring(out):
        report = _measure_agents(contest, out)
    click.echo(report, nl=False)


def _has_sb3() -> bool:
    there = importlib.util.find_spec("sb3_contrib") is not None
    if not there:
        notice = "sb3-contrib is not installed (pip install 'rims-toolkit[examples]'): without it."
        click.echo(notice, err=True)
    return there


def _measure_agents(contest: Contest, out: Path) -> str:
    from agents.throughput.ours import Round
    from agents.throughput.report import progress_line, to_dict, to_markdown
    from agents.throughput.run import Measured, MeasuringError, measure
    from lab.disk.output import write_text

    machine = about_machine(contest.config.threads)

    def write(name: str, newest: Round, measured: Measured) -> None:
        click.echo(progress_line(contest, name, newest, measured), err=True)
        plain = json.dumps(to_dict(contest, measured, machine), indent=1)
        write_text(out / "agents.json", plain + "\n")
        write_text(out / "agents.md", to_markdown(contest, measured, machine))

    try:
        return to_markdown(contest, measure(contest, write), machine)
    except MeasuringError as error:
        raise click.ClickException(str(error)) from None


#: Packages that decide the speed of training.
_PACKAGES = ("torch", "numpy", "gymnasium", "minigrid", "envpool", "sb3-contrib")


def about_machine(threads: int) -> dict[str, Any]:
    """The machine and versions of a measurement of agents."""
    import importlib.metadata

    import agents as package
    from rims.bench import machine

    about = machine.describe("cpu", threads, shlex.join(("rims", *sys.argv[1:])))
    folder = Path(package.__file__).parent
    versions = {"Python": about.pop("python")}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    del about["torch"], about["numpy"]
    # "dirty" where either package differs from the commit
    commits = {about["commit"], machine.commit(folder)}
    return {
        **about,
        "commit": max(commits, key=len),
        "source": {"rims": about["source"], "agents": machine.source_digest(folder)},
        "versions": versions,
    }
