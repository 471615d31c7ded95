"""Options of ``rims bench``. Their defaults live here, so that help shows them without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from agents.commands.parsing.lists import CommaSeparated, Numbers
from agents.commands.parsing.options import (
    FOLDER,
    Decorated,
    FiniteRange,
    config_options,
    plain_option,
)
from lab.cores import CORE_NAMES

#: Values that --quick sets unless they were typed: one size, two shapes, few rounds.
QUICK: dict[str, Any] = {
    "sizes": ((64, 64, 4, 3),),
    "batches": (16,),
    "steps": (1, 50),
    "rounds": 3,
}

#: The same of ``rims bench agents``.
QUICK_AGENTS: dict[str, Any] = {"rounds": 2, "updates": 2, "num_envs": 8}

#: Settings of PPOConfig that are no part of ``rims bench agents``, or that it has its own of.
NOT_OF_AGENTS = (
    *("core", "seed", "total_steps", "anneal_learning_rate", "bootstrap_truncated"),
    *("threads", "device", "checkpoint_every", "restart_envs_every", "init_from", "actions"),
)

#: The same of ``rims bench nfm``.
QUICK_NFM: dict[str, Any] = {"planes": 4, "batch": 4, "rounds": 3}

#: The same of ``rims bench jax``.
QUICK_JAX: dict[str, Any] = {
    "sizes": ((64, 64, 4, 3),),
    "batches": (16,),
    "steps": (20,),
    "rounds": 3,
}

KINDS = ("lstm", "gru")
PASSES = ("inference", "training")


Decorator = Callable[[Any], Any]


def number_option(
    name: str, default: int, help: str, *, low: int = 1, high: int = 10**6
) -> Decorator:
    """An option for a whole number."""
    allowed = click.IntRange(low, high)
    return plain_option(name, type=allowed, metavar="N", default=default, help=help)


def threads_option(default: int | None, help: str) -> Decorator:
    """The option for threads of torch."""
    allowed = click.IntRange(1, 1024)
    return plain_option("--threads", type=allowed, metavar="N", default=default, help=help)


def folder_option(name: str, default: str) -> Decorator:
    """The option for the folder of a bench's results."""
    files = f"Folder for {name}.json and {name}.md."
    return plain_option("--out", type=FOLDER, metavar="NAME", default=default, help=files)


def _quick(what: str) -> Decorator:
    """The option for a small measurement."""
    how = f"{what}, to see it work; options given here win."
    return plain_option("--quick", is_flag=True, help=how)


THREADS = threads_option(None, "CPU threads of torch.  [default: torch's choice]")


def _of_rounds(contenders: str, *, seconds: float) -> tuple[Decorator, ...]:
    """Options for how long the cases of a bench are timed."""
    return (
        number_option("--rounds", 11, f"Largest number of runs of {contenders} of a case.", low=3),
        plain_option(
            "--seconds-per-case",
            type=FiniteRange(0, 3600),
            metavar="X",
            default=seconds,
            help="A case that takes longer gets fewer rounds, at least 3.",
        ),
    )


def _of_cases(contenders: str, run: str, *, seconds: float) -> tuple[Decorator, ...]:
    """Options for how long the cases of a bench are timed, and on which device."""
    return (
        *_of_rounds(contenders, seconds=seconds),
        THREADS,
        plain_option(
            "--device",
            type=click.Choice(("cpu", "cuda")),
            default="cpu",
            help=f"Where the {run} run.",
        ),
    )


_PASS = plain_option(
    "--pass",
    "passes",
    type=CommaSeparated(PASSES),
    metavar="NAMES",
    default=",".join(PASSES),
    help="Forward without gradients; forward and backward.",
)


def _of_grid(sizes: tuple[str, ...], batches: str, steps: str, kinds: str) -> tuple[Decorator, ...]:
    """Options for the cases that a bench of layers measures."""
    return (
        plain_option(
            "--size",
            "sizes",
            type=Numbers(("input_size", "hidden_size", "num_rims", "k")),
            multiple=True,
            metavar="I,H,N,K",
            default=sizes,
            help="Sizes of a layer: input_size,hidden_size,num_rims,k; repeatable.",
        ),
        plain_option(
            "--batch",
            "batches",
            type=Numbers(),
            metavar="N,...",
            default=batches,
            help="Sequences at a time, separated by commas.",
        ),
        plain_option(
            "--steps",
            type=Numbers(),
            metavar="N,...",
            default=steps,
            help="Lengths of a sequence, separated by commas.",
        ),
        plain_option(
            "--kind",
            "kinds",
            type=CommaSeparated(KINDS),
            metavar="NAMES",
            default=",".join(KINDS),
            help=kinds,
        ),
        _PASS,
    )


def _with(options: Sequence[Decorator], command: Decorated) -> Decorated:
    """A command with these options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


_CELLS = (
    *_of_grid(
        ("600,300,6,4", "128,256,8,4", "64,64,4,3"),
        "1,16,64,256",
        "1,50,100,500",
        "RIM_LSTM against nn.LSTM, RIM_GRU against nn.GRU.",
    ),
    *_of_cases("both layers", "layers", seconds=6.0),
    plain_option(
        "--memory/--no-memory",
        default=None,
        help="Measure peak memory of every case, or of none.  "
        "[default: of batches from 16 with sequences from 100 steps]",
    ),
    _quick("One small layer, two shapes and 3 rounds"),
    folder_option("cells", "bench-cells"),
    plain_option(
        "--resume/--no-resume",
        default=True,
        help="Keep what is in the folder if made by the same commit, torch, threads, device and "
        "processor, and skip its cases.",
    ),
)


def cells_options(command: Decorated) -> Decorated:
    """The options of ``rims bench cells``."""
    return _with(_CELLS, command)


_AGENTS = (
    plain_option(
        "--cores",
        type=CommaSeparated(CORE_NAMES),
        metavar="NAMES",
        default=",".join(CORE_NAMES),
        help="Our cores to measure, separated by commas.",
    ),
    plain_option(
        "--sb3/--no-sb3",
        default=True,
        help="Measure sb3-contrib's RecurrentPPO beside them.",
    ),
    number_option("--rounds", 5, "Runs of every contender.", high=10**4),
    number_option(
        "--updates", 5, "Timed updates per round, after a first one that is not timed.", high=10**4
    ),
    threads_option(None, "CPU threads of torch.  [default: number of usable processors]"),
    _quick("2 rounds of 2 updates with 8 environments"),
    folder_option("agents", "bench-agents"),
)


def agents_options(command: Decorated) -> Decorated:
    """The options of ``rims bench agents``."""
    return _with(_AGENTS, config_options(*NOT_OF_AGENTS)(command))


_NFM = (
    number_option("--planes", 64, "Channels of the network's first stage."),
    number_option("--batch", 32, "Images at a time."),
    *_of_cases("all contenders", "networks", seconds=120.0),
    _quick("A narrow network, 4 images and 3 rounds"),
    folder_option("nfm", "benchmarks/results"),
)


def nfm_options(command: Decorated) -> Decorated:
    """The options of ``rims bench nfm``."""
    return _with(_NFM, command)


_JAX = (
    *_of_grid(
        ("600,300,6,4",),
        "16,64",
        "100",
        "RIM_LSTM against Flax's OptimizedLSTMCell, RIM_GRU against its GRUCell.",
    ),
    *_of_rounds("all contenders", seconds=20.0),
    plain_option(
        "--device",
        type=click.Choice(("cpu", "cuda")),
        help="Where the layers run.  [default: cuda if torch and JAX both find a GPU]",
    ),
    _quick("One small layer, short sequences and 3 rounds"),
    folder_option("jax", "bench-jax"),
)


def jax_options(command: Decorated) -> Decorated:
    """The options of ``rims bench jax``."""
    return _with(_JAX, command)


def is_typed(name: str) -> bool:
    """Whether an option was given rather than left at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def apply_quick(given: dict[str, Any], quick: dict[str, Any] = QUICK) -> dict[str, Any]:
    """``given`` without "quick", with what it stands for in place of defaults."""
    replaced = {name: value for name, value in quick.items() if not is_typed(name)}
    rest = {name: value for name, value in given.items() if name != "quick"}
    return {**rest, **replaced} if given["quick"] else rest
