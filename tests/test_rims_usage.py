"""Usage statistics and rasters of a trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rims
from rims.scan import ScanOutput


def trace_of(active: list[list[list[int]]]) -> rims.Trace:
    """A trace of one cell with the given activity [time][sample][mechanism]."""
    trace = rims.Trace()
    none = torch.zeros(0)
    trace.add("cell", ScanOutput(none, (), torch.tensor(active).bool(), None, None))
    return trace


def test_usage_by_hand() -> None:
    # mechanism 0 always, 1 in two of four steps, 2 in two of four, 3 never; one sample
    usage = trace_of([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[1, 0, 1, 0]], [[1, 1, 0, 0]]]).usage["cell"]
    assert usage.share.tolist() == [1.0, 0.5, 0.5, 0.0]
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert usage.entropy.item() == pytest.approx(expected, abs=1e-12)
    assert usage.switching_rate.tolist() == pytest.approx([0, 2 / 3, 2 / 3, 0], abs=1e-12)


def test_usage_of_one_step_has_no_switching() -> None:
    usage = trace_of([[[1, 0], [0, 1]]]).usage["cell"]
    assert usage.share.tolist() == [0.5, 0.5]
    assert usage.entropy.item() == pytest.approx(math.log(2), abs=1e-12)
    assert usage.switching_rate.tolist() == [0, 0]


def test_printed_table_has_a_row_per_mechanism() -> None:
    text = str(trace_of([[[1, 1, 0]], [[1, 0, 1]]]))
    assert text.splitlines()[1].split() == ["cell,", "0", "100.0%", "0.0%"]
    assert text.splitlines()[3].split() == ["cell,", "2", "50.0%", "100.0%"]
    assert "of at most 1.099 nats" in text


def test_calls_of_different_batch_sizes_are_refused_in_words() -> None:
    layer = rims.RIM_GRU(5, 6, 3, 2)
    with rims.trace(layer) as trace:
        layer(torch.zeros(2, 3, 5))
        layer(torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"cells\.0 had batch sizes \[3, 4\]"):
        _ = trace.active


def pixels(panel: object) -> Tensor:
    return torch.as_tensor(panel.get_images()[0].get_array()).bool()  # type: ignore[attr-defined]


def test_raster_shows_what_was_active() -> None:
    torch.manual_seed(0)
    layer = rims.RIM_LSTM(5, [6, 8], [3, 4], [2, 1], num_layers=2)
    with rims.trace(layer) as trace:
        layer(torch.randn(11, 2, 5))
    figure = rims.plot_activations(trace, sample=1)
    assert len(figure.axes) == 2
    for panel, active in zip(figure.axes, trace.active.values(), strict=True):
        assert torch.equal(pixels(panel), active[:, 1].T)
    assert not torch.equal(trace.active["cells.0"][:, 0], trace.active["cells.0"][:, 1])


def test_raster_of_nothing_or_of_an_absent_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="the trace is empty"):
        rims.plot_activations(rims.Trace())
    trace = trace_of([[[1, 0]]])
    with pytest.raises(ValueError, match=r"sample must lie in \[0, 1\); got 1"):
        rims.plot_activations(trace, sample=1)
