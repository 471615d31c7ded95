"""Number types: every float type forward and backward, conversions, and autocast as in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rims

Kind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]
CellKind = type[rims.RIM_LSTMCell] | type[rims.RIM_GRUCell]
both = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
both_cells = pytest.mark.parametrize("kind", [rims.RIM_LSTMCell, rims.RIM_GRUCell])

#: Steps, batch, features.
T, B, I = 7, 3, 11  # noqa: E741
#: hidden_size, num_rims, k.
D, N, K = 10, 5, 2

THEIRS: dict[type[nn.Module], Any] = {
    rims.RIM_LSTM: nn.LSTM,
    rims.RIM_GRU: nn.GRU,
    rims.RIM_LSTMCell: nn.LSTMCell,
    rims.RIM_GRUCell: nn.GRUCell,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in tensors(part)]


def dtypes(result: Any) -> list[torch.dtype]:
    return [tensor.dtype for tensor in tensors(result)]


def total(result: Any) -> Tensor:
    return torch.stack([tensor.float().sum() for tensor in tensors(result)]).sum()


def state(kind: type[nn.Module], h: Tensor) -> Any:
    return (h, h.clone()) if "LSTM" in kind.__name__ else h


# --- every float type


def numbers(layer: Any, input: Tensor, hx: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs and gradients in double precision, and who was active."""
    input, hx = input.clone().requires_grad_(), hx.clone().requires_grad_()
    with rims.trace(layer) as trace:
        output, _ = layer(input, state(type(layer), hx))
    layer.zero_grad()
    output.sum().backward()
    gradients = [input.grad, hx.grad, *(p.grad for p in layer.parameters())]
    assert dtypes(output) == [input.dtype]
    return [t.detach().double() for t in (output, *gradients)], trace.active["cells.0"]


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_float_type_is_near_double(kind: Kind, dtype: torch.dtype) -> None:
    layer: Any = kind(I, D, N, K, dtype=dtype)
    exact: Any = kind(I, D, N, K, dtype=torch.float64)
    # Widening is exact: both compute from the same weights and inputs.
    exact.load_state_dict(layer.state_dict())
    input, hx = torch.randn(T, B, I, dtype=dtype), torch.randn(1, B, D, dtype=dtype)
    got, active = numbers(layer, input, hx)
    expected, expected_active = numbers(exact, input.double(), hx.double())
    assert torch.equal(active, expected_active)
    assert (active.sum(-1) == K).all()
    # A step rounds a chain of about ten results by eps / 2 each, and there are T steps; errors do
    # not pile up faster, as the gates forget. Relative to the largest number of each tensor.
    bound = 5 * T * torch.finfo(dtype).eps
    for part, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a - b).abs().max() <= bound * b.abs().max(), part
    # and the other type is really computed in: double itself would be nearer
    assert (got[0] - expected[0]).abs().max() > torch.finfo(dtype).eps / 100


@both_cells
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cell_keeps_the_type_as_torch(kind: CellKind, dtype: torch.dtype) -> None:
    theirs, ours = THEIRS[kind](I, D, dtype=dtype), kind(I, D, N, K, dtype=dtype)
    input, h = torch.randn(B, I, dtype=dtype), torch.randn(B, D, dtype=dtype)
    for arguments in ((input,), (input, state(kind, h))):
        result = ours(*arguments)
        assert dtypes(result) == dtypes(theirs(*arguments)) == [dtype] * len(tensors(result))
    ours.zero_grad()
    torch.autograd.backward(total(ours(input, state(kind, h))))
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all(), name


@both
@pytest.mark.parametrize("convert", ["double", "half", "bfloat16"])
def test_conversion_reaches_everything(kind: Kind, convert: str) -> None:
    layer: Any = kind(I, D, N, K, 2, bidirectional=True)
    converted = getattr(layer, convert)()
    assert converted is layer
    dtype = getattr(torch.zeros(()), convert)().dtype
    assert {p.dtype for p in layer.parameters()} == {dtype}
    result = layer(torch.randn(T, B, I, dtype=dtype))
    assert set(dtypes(result)) == {dtype}
    with pytest.raises(ValueError, match="dtype"):
        layer(torch.randn(T, B, I, dtype=torch.float32))


@both
def test_to_meta_runs_for_shapes_as_torch(kind: Kind) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    theirs, ours = THEIRS[kind](I, D, **options).to("meta"), kind(I, D, N, K, **options).to("meta")
    input = torch.empty(B, T, I, device="meta")
    expected = tensors(theirs(input))
    for got, wanted in zip(tensors(ours(input)), expected, strict=True):
        assert (got.shape, got.device.type) == (wanted.shape, "meta")
    torch.autograd.backward(total(ours(input)))
    assert all(p.grad is not None and p.grad.is_meta for p in ours.parameters())


@both_cells
def test_cell_on_meta_runs_for_shapes_as_torch(kind: CellKind) -> None:
    theirs, ours = THEIRS[kind](I, D, device="meta"), kind(I, D, N, K, device="meta")
    input = torch.empty(B, I, device="meta")
    got, expected = tensors(ours(input)), tensors(theirs(input))
    assert [(t.shape, t.is_meta) for t in got] == [(t.shape, True) for t in expected]


# --- autocast

#: In what the arguments come, and in what the state comes; None: no state is given.
ARGUMENTS = [
    (torch.float32, None),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]
arguments = pytest.mark.parametrize(("of_input", "of_state"), ARGUMENTS)


def under_autocast(module: Any, *given: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    with torch.autocast("cpu", dtype=dtype):
        result = module(*given)
    module.zero_grad()
    torch.autograd.backward(total(result))
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
    return result


@both_cells
@arguments
def test_autocast_cell_returns_the_types_of_torch(
    kind: CellKind, of_input: torch.dtype, of_state: torch.dtype | None
) -> None:
    given: list[Any] = [torch.randn(B, I, dtype=of_input)]
    if of_state is not None:
        given.append(state(kind, torch.randn(B, D, dtype=of_state)))
    expected = under_autocast(THEIRS[kind](I, D), *given)
    assert dtypes(under_autocast(kind(I, D, N, K), *given)) == dtypes(expected)


@arguments
@pytest.mark.parametrize("num_layers", [1, 2])
def test_autocast_gru_returns_the_types_of_torch(
    num_layers: int, of_input: torch.dtype, of_state: torch.dtype | None
) -> None:
    given: list[Any] = [torch.randn(T, B, I, dtype=of_input)]
    if of_state is not None:
        given.append(torch.randn(num_layers, B, D, dtype=of_state))
    expected = under_autocast(nn.GRU(I, D, num_layers), *given)
    assert dtypes(under_autocast(rims.RIM_GRU(I, D, N, K, num_layers), *given)) == dtypes(expected)


@both
@arguments
def test_autocast_packed_returns_the_types_of_torch(
    kind: Kind, of_input: torch.dtype, of_state: torch.dtype | None
) -> None:
    # of different lengths: torch takes another way through an LSTM of equal ones
    packed = pack_sequence([torch.randn(length, I, dtype=of_input) for length in (5, 3)])
    given: list[Any] = [packed]
    if of_state is not None:
        given.append(state(kind, torch.randn(1, 2, D, dtype=of_state)))
    expected = under_autocast(THEIRS[kind](I, D), *given)
    assert dtypes(under_autocast(kind(I, D, N, K), *given)) == dtypes(expected)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="without bfloat16 in the CPU torch's own LSTM takes another way",
)
@arguments
@pytest.mark.parametrize("num_layers", [1, 2])
def test_autocast_lstm_returns_the_types_of_torch(
    num_layers: int, of_input: torch.dtype, of_state: torch.dtype | None
) -> None:
    given: list[Any] = [torch.randn(T, B, I, dtype=of_input)]
    if of_state is not None:
        given.append(state(rims.RIM_LSTM, torch.randn(num_layers, B, D, dtype=of_state)))
    expected = under_autocast(nn.LSTM(I, D, num_layers), *given)
    assert dtypes(under_autocast(rims.RIM_LSTM(I, D, N, K, num_layers), *given)) == dtypes(expected)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_selects_exactly_k_and_stays_near(kind: Kind, dtype: torch.dtype) -> None:
    layer: Any = kind(I, D, N, K)
    input, h = torch.randn(T, B, I), torch.randn(1, B, D)
    with rims.trace(layer) as plain:
        expected, _ = layer(input, state(kind, h))
    with rims.trace(layer) as trace:
        output, _ = under_autocast(layer, input, state(kind, h), dtype=dtype)
    active = trace.active["cells.0"]
    assert (active.sum(-1) == K).all()
    # Rows that ever selected others than in float32 may differ at will; most did not.
    same = (active == plain.active["cells.0"]).all(-1).all(0)
    assert same.any()
    # the same bound as for a layer that is of this type altogether
    error = (output.float() - expected)[:, same].abs().max()
    assert error <= 5 * T * torch.finfo(dtype).eps * expected.abs().max()
    # The input of an LSTM alone is rounded, as torch does it; sums are of single numbers on a CPU.
    assert bool(error > 0) == (kind is rims.RIM_LSTM)


@both
def test_autocast_of_a_zero_state_selects_the_lowest(kind: Kind) -> None:
    layer: Any = kind(I, D, N, K)
    with rims.trace(layer) as trace:
        under_autocast(layer, torch.randn(1, B, I))
    assert trace.active["cells.0"].tolist() == [[[m < K for m in range(N)]] * B]


@both
def test_autocast_leaves_double_alone_as_torch(kind: Kind) -> None:
    theirs: Any = THEIRS[kind](I, D, dtype=torch.float64)
    ours: Any = kind(I, D, N, K, dtype=torch.float64)
    input = torch.randn(T, B, I, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = ours(input), theirs(input)
    assert dtypes(got) == dtypes(expected)
    assert torch.equal(got[0], ours(input)[0])
