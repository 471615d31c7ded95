"""Usage statistics and rasters of a trace."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rims
from rims.trace import Call


def trace_of(active: list[list[list[int]]], valid: list[list[int]] | None = None) -> rims.Trace:
    """A trace of one cell with the given activity [time][sample][mechanism]."""
    trace = rims.Trace()
    flags = torch.tensor(active).bool()
    counts = torch.ones_like(flags[..., 0]) if valid is None else torch.tensor(valid).bool()
    trace.add("cell", Call(flags, torch.zeros(0), torch.zeros(0), counts))
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


def test_padding_counts_nowhere() -> None:
    # sample 1 has two steps and then padding
    active = [[[1, 0], [1, 0]], [[0, 1], [1, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 0]]]
    usage = trace_of(active, [[1, 1], [1, 1], [1, 0], [1, 0]]).usage["cell"]
    assert usage.share.tolist() == pytest.approx([5 / 6, 1 / 6], abs=1e-12)
    assert usage.switching_rate.tolist() == [0.5, 0.5]  # two of four pairs of real steps


def test_stepping_gives_the_usage_of_one_call() -> None:
    torch.manual_seed(0)
    layer = rims.RIM_GRU(4, 12, 3, 2)
    input = torch.randn(20, 2, 4)
    with rims.trace(layer) as whole:
        layer(input)
    with rims.trace(layer) as stepped:
        hx = None
        for step in input:
            _, hx = layer(step.unsqueeze(0), hx)
    for got, want in zip(stepped.usage["cells.0"], whole.usage["cells.0"], strict=True):
        assert torch.equal(got, want)
    assert whole.usage["cells.0"].switching_rate.any()


@pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
def test_usage_of_packed_sequences_and_their_order(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(4, 12, 3, 2, num_layers=2, bidirectional=True)
    sequences = [torch.randn(length, 4) for length in (2, 5, 3)]
    with rims.trace(layer) as trace:
        layer(pack_sequence(sequences, enforce_sorted=False))
    for name, active in trace.active.items():
        assert trace.valid[name].sum(0).tolist() == [2, 5, 3]
        assert active.any(-1).sum(0).tolist() == [2, 5, 3]
        assert trace.usage[name].share.sum().item() == pytest.approx(2, abs=1e-12)
    for b, sequence in enumerate(sequences):
        with rims.trace(layer) as alone:
            layer(sequence)
        for name, active in alone.active.items():
            assert torch.equal(trace.active[name][: len(sequence), b], active[:, 0])
            torch.testing.assert_close(
                trace.input_attention[name][: len(sequence), b],
                alone.input_attention[name][:, 0],
            )


def test_trace_keeps_no_graph_and_copies_are_not_recorded() -> None:
    layer = rims.RIM_LSTM(5, 6, 3, 2)
    with rims.trace(layer) as trace:
        output, _ = layer(torch.zeros(2, 3, 5))
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        recorded = [part for calls in trace._calls.values() for call in calls for part in call]
        assert output.requires_grad
        assert not any(part.requires_grad for part in recorded)
        for other in copies:
            assert other.recorders == []
            other(torch.zeros(2, 3, 5))
    assert trace.active["cells.0"].shape[0] == 2


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


def test_raster_of_all_sequences_is_the_share_in_which_a_mechanism_is_active() -> None:
    trace = trace_of([[[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 1], [0, 1]]])
    (panel,) = rims.plot_activations(trace, sample=None).axes
    (image,) = panel.images
    shares = torch.as_tensor(image.get_array())
    assert shares.tolist() == [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0  50%", "1  50%"]


def test_raster_of_nothing_or_of_an_absent_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="the trace is empty"):
        rims.plot_activations(rims.Trace())
    trace = trace_of([[[1, 0]]])
    with pytest.raises(ValueError, match=r"sample must lie in \[0, 1\); got 1"):
        rims.plot_activations(trace, sample=1)
