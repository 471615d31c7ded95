"""Recurrent cores by name or import path, all used through the contract of nn.LSTM."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from agents.config import PPOConfig, import_core
from agents.model.resetting import run_with_resets, supports
from envs import one_line
from rims import RIM_GRU, RIM_LSTM, RepeatedInput, scan_path

#: State of a core: one tensor (layers, E, H), or two for LSTMs.
CoreState = tuple[Tensor, ...]

#: Size of the run in which a core has to show that it keeps the contract.
TRIAL_STEPS, TRIAL_ENVS = 2, 3


class Memoryless(nn.Module):
    """The control without memory: one layer, the same output size, an empty state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map (T, B, I) to (T, B, H); the state (1, B, 0) comes back as it was."""
        state = input.new_zeros(1, input.shape[1], 0) if hx is None else hx
        return self.linear(input).tanh(), state


class StateForm(NamedTuple):
    """What a core's hx looks like."""

    shapes: tuple[tuple[int, int], ...]  # (layers, features) of each tensor
    is_tensor: bool  # one tensor, as of nn.GRU, rather than a tuple

    def pack(self, state: CoreState) -> CoreState | Tensor:
        """The state as the core takes it."""
        return state[0] if self.is_tensor else state


class RecurrentCore(nn.Module):
    """One interface over every core: sequences in which episodes end and begin.

    A core with an import path is a subclass of ``nn.Module`` made and called as ``nn.LSTM`` and
    ``nn.GRU`` are: ``Class(input_size, hidden_size)``, then ``module(input, hx)`` with input
    (T, B, I), which returns output (T, B, hidden_size) and hx, one tensor (layers, B, features) or
    a tuple of them. It draws its own weights. If its forward takes ``reset`` (T, B), it zeroes its
    state itself where that is true; it is not asked to if episodes start from a learned state.

    Args:
        input_size: features of the input.
        config: which core, and its sizes.

    Shape:
        ``(T, E, I), state, reset (T, E) -> (T, E, H), state``; the input may be a ``RepeatedInput``

    Raises:
        ValueError: in one line, if the core has an import path and does not keep to this.

    Example:
        >>> config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="torch.nn:GRU", hidden_size=8)
        >>> core = RecurrentCore(6, config)
        >>> start = torch.ones(5, 3, dtype=torch.bool)
        >>> output, (h,) = core(torch.zeros(5, 3, 6), core.initial_state(3), start)
        >>> output.shape, h.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """

    like: Tensor

    def __init__(self, input_size: int, config: PPOConfig) -> None:
        super().__init__()
        self.module = _make_module(input_size, config)
        self.output_size = config.hidden_size
        self.form = _state_form(self.module, input_size, config)
        self.is_memoryless = not any(size for _, size in self.form.shapes)
        # RIM layers have a learned start of their own.
        learns_start = config.learned_initial_state and config.core not in ("rim_lstm", "rim_gru")
        starts = [torch.zeros(layers, 1, size) for layers, size in self.form.shapes]
        self.starts = nn.ParameterList(starts if learns_start and not self.is_memoryless else [])
        # A subclass with a forward of its own may not know of these forms of input.
        own_forward = type(self.module).forward
        self.handles_repeated = own_forward in (RIM_LSTM.forward, RIM_GRU.forward)
        self.handles_packed = own_forward in (nn.LSTM.forward, nn.GRU.forward)
        self.handles_reset = _takes_reset(self.module) and not len(self.starts)
        # Type and device of states; a user's core may have no parameter to tell them by.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def initial_state(self, num_envs: int) -> CoreState:
        """The state before a first observation; what it holds does not count, its reset does."""
        return tuple(
            self.like.new_zeros(layers, num_envs, size) for layers, size in self.form.shapes
        )

    def forward(
        self, input: Tensor | RepeatedInput, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run the sequence; the state starts anew before every step where ``reset`` is true."""
        if self.handles_reset:
            if isinstance(input, RepeatedInput) and not self.handles_repeated:
                input = input.expand()
            output, hx = self.module(input, self.form.pack(state), reset=reset)
            return output, _as_tuple(hx)
        if isinstance(input, RepeatedInput):
            input = input.expand()
        is_whole = self.is_memoryless or not bool(reset[1:].any())
        has_loop = input.device.type == "cpu" and supports(self.module)
        # Sequences of nn.GRU take its loop in any case: at the sizes of agents it learns faster so.
        if has_loop and (not is_whole or (isinstance(self.module, nn.GRU) and len(reset) > 1)):
            starts = tuple(self.starts) or self.initial_state(1)
            return run_with_resets(self.module, input, state, starts, reset)  # type: ignore[arg-type]
        if is_whole:
            output, hx = self.module(input, self.form.pack(self._start_where(reset[0], state)))
            return output, _as_tuple(hx)
        if self.handles_packed:
            return self._run_episodes(input, state, reset)
        return self._run_stretches(input, state, reset)

    def _run_stretches(
        self, input: Tensor, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run all environments up to the next reset of any, one stretch after another.

        Needs of the core nothing but the contract, and in the worst case T calls.
        """
        later = 1 + reset[1:].any(1).nonzero().flatten()
        outputs = []
        for begin, end in pairwise([0, *later.tolist(), len(reset)]):
            state = self._start_where(reset[begin], state)
            output, hx = self.module(input[begin:end], self.form.pack(state))
            outputs.append(output)
            state = _as_tuple(hx)
        return torch.cat(outputs), state

    def _run_episodes(
        self, input: Tensor, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run each part between resets as a sequence of its own, all in one packed call.

        The same numbers as stepping and zeroing. Used on GPUs, and for several layers.
        """
        parts = _split_at(reset)
        padded = input.new_zeros(int(parts.lengths.max()), len(parts.lengths), input.shape[-1])
        padded[parts.step, parts.row] = input
        packed = pack_padded_sequence(padded, parts.lengths, enforce_sorted=False)
        start = self._start_where(parts.anew, tuple(s[:, parts.env] for s in state))
        packed_output, hx = self.module(packed, self.form.pack(start))
        output, _ = pad_packed_sequence(packed_output)
        return output[parts.step, parts.row], tuple(s[:, parts.last] for s in _as_tuple(hx))

    def _start_where(self, flag: Tensor, state: CoreState) -> CoreState:
        """The state (layers, S, H), anew where ``flag`` (S,) is true."""
        flag = flag.unsqueeze(-1)
        if not len(self.starts):
            return tuple(s.masked_fill(flag, 0.0) for s in state)
        return tuple(torch.where(flag, new, s) for new, s in zip(self.starts, state, strict=True))


def require_usable(config: PPOConfig) -> None:
    """See that a core given by import path can be made and keeps to the contract.

    Raises:
        ValueError: in one line, if it does not.
    """
    if config.core not in CORES:
        RecurrentCore(config.encoder_size, config)


def _make_module(input_size: int, config: PPOConfig) -> nn.Module:
    if config.core in CORES:
        module = CORES[config.core](input_size, config)
        initialize(module)
        return module
    core_class = import_core(config.core)
    try:
        made: nn.Module = core_class(input_size, config.hidden_size)
    except Exception as error:  # it is the user's code: anything can happen in it
        raise ValueError(
            f"core {config.core!r} cannot be made: {core_class.__name__}(input_size={input_size}, "
            f"hidden_size={config.hidden_size}), given by position, raised {one_line(error)}."
        ) from error
    return made


def _state_form(module: nn.Module, input_size: int, config: PPOConfig) -> StateForm:
    if config.core not in CORES:
        return find_state_form(module, config.core, input_size, config.hidden_size)
    # Known without a trial, which on the meta device takes long.
    parts = 2 if config.core in ("rim_lstm", "lstm") else 1
    size = 0 if config.core == "none" else config.hidden_size
    return StateForm(((1, size),) * parts, is_tensor=parts == 1)


def find_state_form(module: nn.Module, core: str, input_size: int, hidden_size: int) -> StateForm:
    """Run two steps without a state and two with what came, and see that both fit the contract.

    Args:
        module: the core.
        core: its name, for errors.
        input_size: features of the input.
        hidden_size: features of the output.

    Returns:
        The form of its state.

    Raises:
        ValueError: in one line, saying what was expected and what came.
    """
    input = torch.zeros(TRIAL_STEPS, TRIAL_ENVS, input_size)
    hx: Any = None
    forms = []
    for given in ("None", "the state it returned"):
        try:
            with torch.no_grad(), scan_path("reference"):  # compiles no kernels for two steps
                result = module(input, hx)
        except Exception as error:  # it is the user's code: anything can happen in it
            raise ValueError(
                f"core {core!r}: called with an input of shape {tuple(input.shape)} and hx = "
                f"{given}, it raised {one_line(error)}."
            ) from error
        forms.append(_form_of(result, core, hidden_size))
        hx = forms[-1].pack(_as_tuple(result[1]))
    if forms[0] != forms[1]:
        raise ValueError(
            f"core {core!r}: expected hx to keep its form; got {forms[0].shapes} as (layers, "
            f"features) of its tensors from one call and {forms[1].shapes} from the next."
        )
    _require_repeatable(module, core, input_size)
    return forms[0]


def _require_repeatable(module: nn.Module, core: str, input_size: int) -> None:
    """Refuse dropout: the update would see other probabilities than the ones that acted."""
    shape = TRIAL_STEPS, TRIAL_ENVS, input_size
    input = torch.linspace(-1, 1, TRIAL_STEPS * TRIAL_ENVS * input_size).view(shape)
    with torch.no_grad(), scan_path("reference"):
        try:
            first, second = (module(input, None)[0] for _ in range(2))
        except Exception as error:  # it is the user's code: anything can happen in it
            raise ValueError(f"core {core!r}: a second call raised {one_line(error)}.") from error
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ValueError(
            f"core {core!r}: the same input gave different outputs in two calls, as dropout does; "
            "what acts and what learns would not agree. Make it deterministic in training mode."
        )


def _form_of(result: Any, core: str, hidden_size: int) -> StateForm:
    """The form of the state in what a core returned in the trial."""
    expected = (TRIAL_STEPS, TRIAL_ENVS, hidden_size)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"core {core!r}: expected output, hx; got {_describe(result)}.")
    output, hx = result
    if not isinstance(output, Tensor) or output.shape != expected:
        raise ValueError(
            f"core {core!r}: expected an output of shape {expected} = (T, B, hidden_size); "
            f"got {_describe(output)}."
        )
    parts = (hx,) if isinstance(hx, Tensor) else hx
    if not isinstance(parts, tuple) or not parts or not all(_is_state(part) for part in parts):
        raise ValueError(
            f"core {core!r}: expected hx to be a tensor (layers, {TRIAL_ENVS}, features) of "
            f"floating-point numbers, {TRIAL_ENVS} being the batch, or a tuple of them; "
            f"got {_describe(hx)}."
        )
    shapes = tuple((part.shape[0], part.shape[2]) for part in parts)
    return StateForm(shapes, is_tensor=isinstance(hx, Tensor))


def _is_state(part: object) -> bool:
    return (
        isinstance(part, Tensor)
        and part.dim() == 3
        and part.shape[1] == TRIAL_ENVS
        and part.is_floating_point()
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of [{', '.join(_describe(part) for part in value)}]"
    return f"a {type(value).__name__}"


def _takes_reset(module: nn.Module) -> bool:
    parameter = inspect.signature(module.forward).parameters.get("reset")
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameter is not None and parameter.kind in by_keyword


def initialize(module: nn.Module) -> None:
    """Orthogonal weights, zero biases: the recipe of recurrent PPO (as in CleanRL), for every core.

    A weight of three dimensions is one matrix per mechanism, and each of them is made orthogonal.
    """
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:  # not a learned initial state
            for matrix in parameter if parameter.dim() == 3 else [parameter]:
                nn.init.orthogonal_(matrix)


class _Parts(NamedTuple):
    step: Tensor  # (T, E) position of each step inside its part
    row: Tensor  # (T, E) index of its part
    lengths: Tensor  # (S,) on the CPU
    env: Tensor  # (S,) environment of each part
    anew: Tensor  # (S,) bool, false where a part continues its environment's state
    last: Tensor  # (E,) the part each environment ends in


def _split_at(reset: Tensor) -> _Parts:
    num_steps, num_envs = reset.shape
    starts = reset.T.clone()  # (E, T): parts of one environment follow each other
    starts[:, 0] = True
    row = starts.flatten().cumsum(0).sub(1).view(num_envs, num_steps).T  # (T, E)
    env, first = starts.nonzero(as_tuple=True)  # each (S,)
    times = torch.arange(num_steps, device=reset.device).unsqueeze(-1)
    return _Parts(
        step=times - first[row],
        row=row,
        lengths=torch.bincount(row.flatten()).cpu(),
        env=env,
        anew=reset[first, env],
        last=row[-1],
    )


def _as_tuple(hx: Tensor | CoreState) -> CoreState:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _rim(layer: type[RIM_LSTM | RIM_GRU], input_size: int, config: PPOConfig) -> nn.Module:
    return layer(
        input_size,
        config.hidden_size,
        config.num_rims,
        config.k,
        learned_initial_state=config.learned_initial_state,
    )


#: Name -> constructor. Every module maps (T, E, I), hx to (T, E, hidden_size), hx.
CORES: dict[str, Callable[[int, PPOConfig], nn.Module]] = {
    "rim_lstm": lambda size, c: _rim(RIM_LSTM, size, c),
    "rim_gru": lambda size, c: _rim(RIM_GRU, size, c),
    "lstm": lambda size, c: nn.LSTM(size, c.hidden_size),
    "gru": lambda size, c: nn.GRU(size, c.hidden_size),
    "none": lambda size, c: Memoryless(size, c.hidden_size),
}
