"""Which way a sequence is computed: the default, what only the readable loop can do, a wish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import rims
from layer_cases import both
from rims.parameters import Parameters
from rims.scan import paths, scan_path
from rims.scan.paths import Path
from rims.step import CellStep, State
from scan_cases import (
    LayerKind,
    Results,
    all_paths,
    assert_equal,
    assert_near,
    double,
    fast_paths,
    layer_results,
    leaf,
    needs_numba,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(kind: LayerKind, **options: Any) -> Any:
    return kind(5, 12, 4, 2, dtype=torch.float64, **options)


def chosen(layer: Any, input: Tensor) -> Path:
    return paths.choose(layer.cells[0], input)


def drawn_alike(path: Path | None, layer: Any, input: Tensor) -> Results:
    """Results with the same random dropout every time."""
    torch.manual_seed(1)
    results: Results = layer_results(path, layer, input)
    return results


# --- what the default is


@both
@needs_numba
def test_native_is_the_default_on_the_cpu(kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    assert chosen(layer, input) == "native"
    assert_equal(layer_results(None, layer, input), layer_results("native", layer, input))


@both
def test_without_numba_the_default_is_torch(
    kind: LayerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, input = make(kind, num_layers=2, bidirectional=True), double(6, 3, 5)
    expected = layer_results(None, layer, input)
    monkeypatch.setattr(paths, "_HAS_NUMBA", False)
    assert chosen(layer, input) == "torch"
    got = layer_results(None, layer, input)
    assert_equal(got, layer_results("torch", layer, input))
    assert_near(got, expected)
    with (
        scan_path("native"),
        pytest.raises(RuntimeError, match=r"'native' cannot compute .* numba is not installed"),
    ):
        layer(input)


@both
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"input_slots": True}, (6, 3, 2, 5)),
        ({"num_input_heads": 2}, (6, 3, 5)),
        ({"input_dropout": 0.5}, (6, 3, 5)),
        ({"comm_dropout": 0.5}, (6, 3, 5)),
        ({"proj_size": 8}, (6, 3, 5)),
        ({"comm_update": "convex"}, (6, 3, 5)),
        ({"tie_margin": 0.01}, (6, 3, 5)),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else "",
)
def test_options_of_the_loop_alone_go_there(
    kind: LayerKind, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    if kind is rims.RIM_GRU and "proj_size" in options:
        pytest.skip("a GRU has no projection")
    layer, input = make(kind, **options), double(*shape)
    assert chosen(layer, input) == "reference"
    got, expected = drawn_alike(None, layer, input), drawn_alike("reference", layer, input)
    assert_equal(got, expected)
    (name,) = options
    wanted: list[Path] = ["torch", "native"]
    for path in wanted:
        with scan_path(path), pytest.raises(RuntimeError, match=f"{path!r} cannot .*: {name}"):
            layer(input)


@both
def test_an_option_that_kernels_lack_goes_to_torch(kind: LayerKind) -> None:
    layer, input = make(kind, num_layers=2, competition="mechanisms"), double(6, 3, 5)
    assert chosen(layer, input) == "torch"
    assert_equal(layer_results(None, layer, input), layer_results("torch", layer, input))
    assert_near(layer_results(None, layer, input), layer_results("reference", layer, input))
    with scan_path("native"), pytest.raises(RuntimeError, match=r"'native' cannot .*: competition"):
        layer(input)


@both
@needs_numba
@pytest.mark.parametrize(
    "options",
    [{"input_gate": "none"}, {"input_gate": "straight_through"}, {"num_comm_heads": 0}],
    ids=str,
)
def test_kernels_know_every_input_gate_and_no_communication(
    kind: LayerKind, options: dict[str, Any]
) -> None:
    layer, input = make(kind, num_layers=2, **options), double(6, 3, 5)
    assert chosen(layer, input) == "native"
    assert_near(layer_results(None, layer, input), layer_results("reference", layer, input))


@fast_paths
@both
def test_dropout_of_attentions_matters_in_training_only(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind, input_dropout=0.5, comm_dropout=0.5), double(6, 3, 5)
    expected = layer_results("reference", layer.eval(), input)
    assert chosen(layer, input) != "reference"
    assert_near(layer_results(path, layer, input), expected)
    dropped = drawn_alike(None, layer.train(), input)
    assert not torch.allclose(dropped["result 0"], expected["result 0"])


@fast_paths
@both
def test_dropout_between_layers_is_drawn_as_by_the_reference(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind, num_layers=2, dropout=0.5), double(6, 3, 5)
    assert_near(drawn_alike(path, layer, input), drawn_alike("reference", layer, input))


@both
def test_layers_take_their_own_ways(kind: LayerKind) -> None:
    # elements enter the first layer only, so the second one is free
    layer = make(kind, num_layers=2, input_slots=True)
    first, second = layer.cells
    assert paths.choose(first, double(6, 3, 2, 5)) == "reference"
    assert paths.choose(second, double(6, 3, 12)) != "reference"
    input = double(6, 3, 2, 5)
    assert_near(layer_results(None, layer, input), layer_results("reference", layer, input))


@both
def test_an_empty_batch_takes_the_loop(kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 0, 5)
    output, _ = layer(input)
    assert output.shape == (6, 0, 12)


class Marked(Tensor):
    """Whose numbers could be anywhere."""


@both
def test_other_kinds_of_tensors_take_the_loop(kind: LayerKind) -> None:
    cell, input = make(kind).cells[0], double(6, 3, 5)
    state = tuple(double(3, size) for size in cell.state_sizes)
    marked = tuple(part.as_subclass(Marked) for part in state)
    flags = torch.ones(6, 3, dtype=torch.bool)
    marked_flags = flags.as_subclass(Marked)
    found = [
        paths.choose(cell, input, None, others)
        for others in (
            (*state, flags, flags),
            (*marked, None, None),
            (*state[:-1], marked[-1], None, None),
            (*state, marked_flags, None),
            (*state, None, marked_flags),
        )
    ]
    assert found[0] != "reference"
    assert found[1:] == ["reference"] * 4


# --- what a user changed about a cell


NEGATED = {"stored": torch.neg, "as it is read": torch._neg_view}


@both
def test_numbers_that_are_negated_when_they_are_read(kind: LayerKind) -> None:
    """As of ``z.conj().imag``: what is in memory has the other sign."""
    layer: Any = kind(5, 12, 4, 2, dtype=torch.float64)
    given = [double(6, 3, 5), *(double(1, 3, 12) for _ in range(layer.cells[0].num_states))]
    grad = double(6, 3, 12)

    def results(negated: Any) -> list[Tensor]:
        leaves = [leaf(tensor) for tensor in given]
        input, *states = (negated(x) for x in leaves)
        output, _ = layer(input, tuple(states) if len(states) > 1 else states[0])
        wanted = [*leaves, *layer.parameters()]
        return [output, *torch.autograd.grad(output, wanted, negated(grad))]

    for got, expected in zip(*map(results, NEGATED.values()), strict=True):
        torch.testing.assert_close(got, expected)


@both
def test_a_cell_with_another_candidate_computes_it(kind: LayerKind) -> None:
    cell_type: Any = kind.cell_type

    class Doubled(cell_type):  # type: ignore[misc]
        def candidate(self, p: Parameters, read: Tensor, prev: State) -> State:
            h, *rest = super().candidate(p, read, prev)
            return (2 * h, *rest)

    class Layer(kind):  # type: ignore[valid-type,misc]
        cell_type = Doubled

    layer, input = make(Layer), double(6, 3, 5)
    assert_equal(layer_results(None, layer, input), layer_results("reference", layer, input))


@both
def test_a_cell_with_another_step_computes_it(kind: LayerKind) -> None:
    cell_type: Any = kind.cell_type

    class Silent(cell_type):  # type: ignore[misc]
        def step(self, input: Tensor, state: State, p: Parameters, **given: Any) -> CellStep:
            assert p.comm_output_weight is not None
            none = torch.zeros_like(p.comm_output_weight)
            silent = p._replace(comm_output_weight=none, comm_output_bias=none[:, 0])
            step: CellStep = super().step(input, state, silent, **given)
            return step

    class Layer(kind):  # type: ignore[valid-type,misc]
        cell_type = Silent

    layer, input = make(Layer), double(6, 3, 5)
    output, _ = layer(input)
    plain = make(kind)
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(output, plain(input)[0])  # communication is heard in a plain layer
    for cell in plain.cells:
        nn.init.zeros_(cell.comm_output_weight)
        nn.init.zeros_(cell.comm_output_bias)
    assert_near({"output": output}, {"output": plain(input)[0]})


@both
def test_a_pruned_weight_is_pruned_anew_in_every_forward(kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    half: Any = prune.l1_unstructured  # has no types
    half(layer.cells[0], "key_weight", 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer(input)[0].detach()
    for _ in range(2):
        layer(input)[0].square().sum().backward()
        optimizer.step()
    with scan_path("reference"):
        expected = layer(input)[0]
    assert_near({"output": layer(input)[0]}, {"output": expected})
    assert not torch.allclose(expected, before)


@fast_paths
@both
def test_parametrized_weights_are_trained(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    nn.utils.parametrizations.weight_norm(layer.cells[0], "weight_hh")
    nn.utils.parametrizations.weight_norm(layer.cells[0], "comm_output_weight")
    expected = layer_results("reference", layer, input)
    assert sum("parametrizations" in name for name in expected) == 4
    assert_near(layer_results(path, layer, input), expected)


# --- asking for a way


def test_an_unknown_way_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"expected one of \('reference', .* got 'fastest'"),
        scan_path("fastest"),  # type: ignore[arg-type]
    ):
        pass


@both
def test_a_way_of_another_device_says_so(kind: LayerKind) -> None:
    layer = make(kind)
    with (
        scan_path("triton"),
        pytest.raises(RuntimeError, match="'triton' cannot compute this layer: "),
    ):
        layer(double(6, 3, 5))


def test_wishes_nest_and_end_with_an_exception() -> None:
    layer, input = make(rims.RIM_LSTM), double(6, 3, 5)
    default = chosen(layer, input)

    def fail() -> None:
        with scan_path("torch"):
            raise KeyError

    with scan_path("reference"):
        assert chosen(layer, input) == "reference"
        with pytest.raises(KeyError):
            fail()
        assert chosen(layer, input) == "reference"
        with scan_path(None):
            assert chosen(layer, input) == default
        assert chosen(layer, input) == "reference"
    assert chosen(layer, input) == default


@all_paths
@both
def test_recording_leaves_every_way_as_it_is(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    expected = layer_results(path, layer, input)
    with rims.trace(layer) as trace:
        assert_equal(layer_results(path, layer, input), expected)
    assert trace.communication["cells.0"].shape == (6, 3, 4, 4, 4)


@fast_paths
@both
def test_an_empty_batch_is_no_work_for_a_way_asked_for(path: Path, kind: LayerKind) -> None:
    with scan_path(path), pytest.raises(RuntimeError, match="there is nothing to compute"):
        make(kind)(double(6, 0, 5))
