"""Peak memory of one pass: on the CPU of a fresh process, ``python -m nfm.bench.memory``."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from nfm.bench.contenders import CASES, NAMES, Case, Settings, contenders
from rims.bench.memory import MB, peak_in_fresh_process, peak_of


def measure(case: Case, settings: Settings) -> list[float]:
    """Megabytes above the level just before a pass, of every contender.

    Raises:
        RuntimeError: if a process ends without a figure, as one that ran out of memory.
    """
    peaks = []
    for place in range(len(NAMES[case.subject])):
        if settings.device == "cuda":
            peaks.append(_cuda_peak(case, settings, place))
        else:
            order: dict[str, Any] = {"settings": settings.to_dict(), "place": place}
            order["case"] = CASES.index(case)
            peaks.append(peak_in_fresh_process("nfm.bench.memory", order))
    return [round(peak / MB, 3) for peak in peaks]


def _cuda_peak(case: Case, settings: Settings, place: int) -> int:
    contender = contenders(case, settings)[place]
    contender.work()
    contender.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contender.work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(case: Case, settings: Settings, place: int) -> int:
    torch.set_num_threads(settings.threads)
    # Two images first: what is loaded or compiled at the first pass is there then.
    contenders(case, settings, batch=2)[place].work()
    return peak_of(contenders(case, settings)[place].work)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(_cpu_peak(CASES[given["case"]], Settings(**given["settings"]), given["place"]))
