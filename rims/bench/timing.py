"""Timing two layers alternately, and what the times amount to."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rims.bench.cases import MIN_ROUNDS, Case, Device, Pass, Settings
from rims.layers import RIM_GRU, RIM_LSTM

_LAYERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "lstm": (RIM_LSTM, nn.LSTM),
    "gru": (RIM_GRU, nn.GRU),
}

#: Rounds before the first that counts. A GPU also has to choose kernels and raise its clock.
_WARM_UP_ROUNDS: dict[Device, int] = {"cpu": 1, "cuda": 3}


#: One pass of something; what it returns, of any library, is kept until its end.
Work = Callable[[], Any]


class Pair(NamedTuple):
    """Milliseconds of one round."""

    ours: float
    baseline: float


class Summary(NamedTuple):
    """Medians over rounds; the ratio is taken in each round, between two neighbouring times."""

    ours_ms: float
    baseline_ms: float
    ratio: float
    ratio_low: float  # the quartiles
    ratio_high: float


def summarise(pairs: Sequence[Pair]) -> Summary:
    """Medians and quartiles of at least two rounds.

    >>> summarise([Pair(2, 1), Pair(9, 3), Pair(8, 2)])
    Summary(ours_ms=8, baseline_ms=2, ratio=3.0, ratio_low=2.5, ratio_high=3.5)
    """
    ratios = [ours / baseline for ours, baseline in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Summary(
        ours_ms=statistics.median(pair.ours for pair in pairs),
        baseline_ms=statistics.median(pair.baseline for pair in pairs),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
    )


def make_layers(case: Case, device: Device) -> tuple[nn.Module, nn.Module]:
    """The RIM layer and its baseline, ready for the pass."""
    ours, baseline = _LAYERS[case.kind]
    layers = (ours(*case.size), baseline(case.size.input_size, case.size.hidden_size))
    for layer in layers:
        layer.to(device).train(case.work == "training")
    return layers


def run_once(layer: nn.Module, input: Tensor, work: Pass) -> Tensor:
    """One pass; returns the output."""
    if work == "inference":
        with torch.no_grad():
            output: Tensor = layer(input)[0]
    else:
        output = layer(input)[0]
        output.sum().backward()  # type: ignore[no-untyped-call]
    return output


def time_case(case: Case, settings: Settings) -> list[Pair]:
    """Time both layers round by round: ours, baseline, ours, baseline.

    A machine that slows down slows both, so the ratio within a round is steadier than the times.

    Raises:
        FloatingPointError: if an output is not finite; then its time means nothing.
    """
    layers = make_layers(case, settings.device)
    input = torch.randn(case.steps, case.batch, case.size.input_size, device=settings.device)

    def runner(layer: nn.Module) -> Work:
        return lambda: run_once(layer, input, case.work)

    for layer, name in zip(layers, (case.ours, case.baseline), strict=True):
        if not run_once(layer, input, case.work).isfinite().all():
            raise FloatingPointError(f"{name} of size {case.size}: the output is not finite.")
    contenders = [Contender(runner(layer), layer.zero_grad) for layer in layers]
    rounds, seconds = settings.rounds, settings.seconds_per_case
    return [Pair(*times) for times in alternate(contenders, settings.device, rounds, seconds)]


class Contender(NamedTuple):
    """What is timed, and what is done before it every time."""

    work: Work
    prepare: Callable[[], object]


def alternate(
    contenders: Sequence[Contender], device: Device, rounds: int, seconds: float
) -> list[tuple[float, ...]]:
    """Milliseconds of every contender, round by round, after rounds that do not count.

    Args:
        contenders: in the order they run in.
        device: where they compute.
        rounds: at most.
        seconds: fewer rounds if they would take longer, but at least ``MIN_ROUNDS``.
    """
    clock = _cuda_ms if device == "cuda" else _cpu_ms

    def time_one(contender: Contender) -> float:
        contender.prepare()
        return round(clock(contender.work), 6)

    for _ in range(_WARM_UP_ROUNDS[device]):
        for contender in contenders:
            time_one(contender)
    times: list[tuple[float, ...]] = []
    started = time.perf_counter()
    while len(times) < rounds:
        elapsed = time.perf_counter() - started
        next_end = elapsed + elapsed / max(1, len(times))
        if len(times) >= MIN_ROUNDS and next_end > seconds:
            break
        times.append(tuple(time_one(contender) for contender in contenders))
    return times


def _cpu_ms(work: Work) -> float:
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would fall into one of the two times
    try:
        start = time.perf_counter()
        kept = work()
        end = time.perf_counter()
    finally:
        if was_enabled:
            gc.enable()
    del kept  # freeing the output is not timed
    return 1e3 * (end - start)


def _cuda_ms(work: Work) -> float:
    make = torch.cuda.Event
    start, end = (make(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()

    def between_events() -> Any:
        start.record()
        kept = work()
        end.record()
        return kept

    _cpu_ms(between_events)  # for its care about garbage
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))
