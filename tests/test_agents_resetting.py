"""nn.LSTM and nn.GRU with resets inside the sequence, against stepping and starting anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from agents.config import PPOConfig
from agents.model.cores import RecurrentCore
from agents.model.resetting import State, run_with_resets, supports
from tolerances import assert_rounds

LAYERS = {"lstm": (nn.LSTM, 2), "gru": (nn.GRU, 1)}


def step_by_step(
    module: nn.Module, input: Tensor, state: State, starts: State, reset: Tensor
) -> tuple[Tensor, State]:
    """The oracle: the layer itself, one step at a time."""
    outputs = []
    for row, flag in zip(input, reset, strict=True):
        anew = flag.view(1, -1, 1)
        state = tuple(torch.where(anew, a, b) for a, b in zip(starts, state, strict=True))
        output, hx = module(row.unsqueeze(0), state if len(state) > 1 else state[0])
        state = hx if isinstance(hx, tuple) else (hx,)
        outputs.append(output)
    return torch.cat(outputs), state


def everything(result: tuple[Tensor, State], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The output, the state, and gradients of a number that depends on all of both."""
    output, state = result
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    total = (output * weight).sum() + sum((part * part).sum() for part in state)
    return [output, *state, *torch.autograd.grad(total, leaves)]


def random_state(parts: int, rows: int, size: int) -> State:
    """The tensors of a state (1, rows, size), which want gradients."""
    shape = (1, rows, size)
    return tuple(torch.randn(shape, dtype=torch.double, requires_grad=True) for _ in range(parts))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "size", "share"),
    [
        (7, 3, 5, 4, 0.4),
        (1, 1, 1, 1, 1.0),
        (5, 2, 3, 7, 0.0),
        (4, 6, 2, 5, 1.0),
        (13, 1, 3, 2, 0.2),
    ],
)
def test_loop_equals_stepping_in_values_and_gradients(
    name: str, bias: bool, steps: int, batch: int, inputs: int, size: int, share: float
) -> None:
    torch.manual_seed(steps)
    layer, parts = LAYERS[name]
    module = layer(inputs, size, bias=bias).double()
    input = torch.randn(steps, batch, inputs, dtype=torch.double, requires_grad=True)
    state, starts = (random_state(parts, rows, size) for rows in (batch, 1))
    reset = torch.rand(steps, batch) < share
    leaves = [input, *state, *starts, *module.parameters()]
    got = everything(run_with_resets(module, input, state, starts, reset), leaves)
    expected = everything(step_by_step(module, input, state, starts, reset), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_by_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    layer, parts = LAYERS[name]
    module = layer(2, 3).double()
    input = torch.randn(4, 2, 2, dtype=torch.double, requires_grad=True)
    state, starts = (random_state(parts, rows, 3) for rows in (2, 1))
    reset = torch.rand(4, 2) < 0.3

    def run(input: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output, last = run_with_resets(module, input, state, starts, reset)
        return output, *last

    assert torch.autograd.gradcheck(run, (input, *state))


@pytest.mark.parametrize("name", LAYERS)
def test_state_handed_in_and_weights_are_left_alone(name: str) -> None:
    layer, parts = LAYERS[name]
    module = layer(2, 3)
    state, starts = (tuple(torch.ones(1, rows, 3) for _ in range(parts)) for rows in (2, 1))
    before = [parameter.clone() for parameter in module.parameters()]
    output, last = run_with_resets(
        module, torch.ones(3, 2, 2), state, starts, torch.ones(3, 2, dtype=torch.bool)
    )
    last[0].detach().zero_()
    assert output[-1].abs().min() > 0, "the state shares memory with the output"
    assert all(bool((part == 1).all()) for part in (*state, *starts))
    for parameter, was in zip(module.parameters(), before, strict=True):
        assert parameter.equal(was)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("learned", [True, False])
def test_cores_of_agents_take_the_loop(
    name: str, learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PPOConfig(
        env="MiniGrid-Empty-5x5-v0", core=name, hidden_size=6, learned_initial_state=learned
    )
    torch.manual_seed(1)
    core = RecurrentCore(4, config)
    for start in core.starts:
        nn.init.normal_(start)
    input, reset = torch.randn(9, 5, 4), torch.rand(9, 5) < 0.3
    state = tuple(torch.randn_like(part) for part in core.initial_state(5))
    leaves = list(core.parameters())
    expected = everything(core._run_stretches(input, state, reset), leaves)
    for a, b in zip(
        everything(core._run_episodes(input, state, reset), leaves), expected, strict=True
    ):
        assert_rounds(a, b, 9 * 5, times=9)
    monkeypatch.setattr(core, "_run_episodes", None)  # what must not be taken
    monkeypatch.setattr(core, "_run_stretches", None)
    for a, b in zip(everything(core(input, state, reset), leaves), expected, strict=True):
        assert_rounds(a, b, 9 * 5, times=9)


def test_sequences_of_gru_take_the_loop_without_resets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="gru", hidden_size=6)
    torch.manual_seed(4)
    core = RecurrentCore(4, config)
    input, reset = torch.randn(9, 5, 4), torch.zeros(9, 5, dtype=torch.bool)
    reset[0, :3] = True
    state = (torch.randn(1, 5, 6),)
    leaves = list(core.parameters())
    expected = everything(core._run_stretches(input, state, reset), leaves)
    with monkeypatch.context() as patch:
        patch.setattr(core.module, "forward", None)  # what must not be taken
        got = everything(core(input, state, reset), leaves)
    for a, b in zip(got, expected, strict=True):
        assert_rounds(a, b, 9 * 5, times=9)
    monkeypatch.setattr(
        "agents.model.cores.run_with_resets", None
    )  # nn.GRU is quicker for one step
    single, _ = core(input[:1], state, reset[:1])
    assert_rounds(single, expected[0][:1], 4 + 6)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_what_is_used_and_not_frozen(name: str) -> None:
    torch.manual_seed(2)
    layer, parts = LAYERS[name]
    module = layer(2, 3).double()
    module.weight_hh_l0.requires_grad_(False)
    input, reset = torch.randn(5, 2, 2, dtype=torch.double), torch.rand(5, 2) < 0.5
    zeros = [torch.zeros(1, rows, 3, dtype=torch.double) for rows in (2, 1)]
    state, starts = ((part,) * parts for part in zeros)
    leaves = [module.weight_ih_l0, module.bias_ih_l0]
    grads = []
    for run in (run_with_resets, step_by_step):
        _, last = run(module, input, state, starts, reset)  # the output is not used
        grads.append(torch.autograd.grad(last[-1].sum(), leaves))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_supports_one_plain_layer_only() -> None:
    class Doubled(nn.GRU):
        def forward(  # type: ignore[override]
            self, input: Tensor, hx: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            output, state = super().forward(input, hx)
            return 2 * output, state

    hooked = nn.GRU(2, 3)
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    assert supports(nn.LSTM(2, 3))
    assert supports(nn.GRU(2, 3, bias=False))
    for module in (
        nn.LSTM(2, 3, num_layers=2),
        nn.LSTM(2, 3, proj_size=2),
        nn.GRU(2, 3, bidirectional=True),
        nn.GRU(2, 3, batch_first=True),
        nn.RNN(2, 3),
        Doubled(2, 3),
        hooked,
    ):
        assert not supports(module), module
