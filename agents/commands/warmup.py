"""``rims warmup``."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import click

_KERNELS: tuple[Literal["forward", "back"], ...] = ("forward", "back")


class _Kernel(NamedTuple):
    what: str
    fault: Callable[[], str | None]  # what is wrong with it, after it was compiled or loaded


@click.command()
@click.option("--double", is_flag=True, help="Also those that compute in double precision.")
def warmup(double: bool) -> None:
    """Compile the kernels of all layers, so that no first call has to wait.

    Kernels are machine code for this processor. Each is compiled when it is first needed, which
    takes about 10 seconds, and kept for later processes in the user's folder for caches, or in
    RIMS_CACHE_DIR. Each is compared with PyTorch here, as in every process that takes it. If one
    computes wrong numbers, or none can be kept, the exit code is 1.
    """
    if importlib.util.find_spec("numba") is None:
        raise click.ClickException(
            "kernels need numba, which is not installed; layers compute by PyTorch, more slowly."
        )
    from rims.native.store import folder

    wrong = []
    for kernel in _kernels((False, True) if double else (False,)):
        click.echo(f"{kernel.what} ... ", nl=False)
        begin = time.perf_counter()
        fault = kernel.fault()
        click.echo(f"{time.perf_counter() - begin:.1f} s" if fault is None else "wrong numbers")
        wrong += [fault] if fault is not None else []
    if wrong:
        raise click.ClickException(f"{wrong[0]}.")
    if not any(folder().glob("*.kernel")):
        raise click.ClickException(
            f"kernels cannot be kept in {folder()}: every process will compile them again. Set "
            "RIMS_CACHE_DIR to a folder that can be written."
        )
    click.echo(f"Kept in {folder()}.")


def _kernels(precisions: tuple[bool, ...]) -> Iterator[_Kernel]:
    from nfm.fast import native_fault as nfm_fault
    from rims.scan.paths import native_fault as rims_fault

    for double in precisions:
        bits = 64 if double else 32
        for layers, of in (("RIM layers", rims_fault), ("NFM", nfm_fault)):
            for name in _KERNELS:
                what = f"{layers}, {'gradients, ' if name == 'back' else ''}float{bits}"
                yield _Kernel(what, partial(of, name, double))
    if importlib.util.find_spec("jax") is not None:
        from rims.jax.native import selftest

        yield _Kernel("calls by JAX", selftest.fault)
