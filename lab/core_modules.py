"""Modules of recurrent cores, all used through the contract of nn.LSTM, and checks that they are.

A core with an import path is a subclass of ``nn.Module`` made and called as ``nn.LSTM`` and
``nn.GRU`` are: ``Class(input_size, hidden_size)``, then ``module(input, hx)`` with input
(T, B, I), which returns output (T, B, hidden_size) and hx, one tensor (layers, B, features) or a
tuple of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lab.cores import CORE_NAMES, RIM_CORES, CoreSettings, import_core
from lab.words import one_line

#: State of a core: one tensor (layers, B, H), or two for LSTMs.
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
    """The form of a core's hx."""

    shapes: tuple[tuple[int, int], ...]  # (layers, features) of each tensor
    is_tensor: bool  # one tensor, as of nn.GRU, rather than a tuple

    def pack(self, state: CoreState) -> CoreState | Tensor:
        """The state as the core takes it."""
        return state[0] if self.is_tensor else state


#: Import paths of the cores that have a name. A class is looked up when a core is made: nothing in
#: ``lab`` depends on the package of a layer.
_PATHS = {
    "rim_lstm": "rims:RIM_LSTM",
    "rim_gru": "rims:RIM_GRU",
    "lstm": "torch.nn:LSTM",
    "gru": "torch.nn:GRU",
    "none": "lab.core_modules:Memoryless",
}


def layer_class(core: str) -> type[nn.Module]:
    """The class of a core, given by name or import path.

    Example:
        >>> layer_class("gru").__name__
        'GRU'
    """
    if core not in _PATHS:
        return import_core(core)
    module, _, name = _PATHS[core].partition(":")
    found: type[nn.Module] = getattr(import_module(module), name)
    return found


def computes_as(module: nn.Module, *cores: str) -> bool:
    """Whether a module's forward is that of one of these cores, not one of a subclass's own."""
    return type(module).forward in [layer_class(core).forward for core in cores]


def as_tuple(hx: Tensor | CoreState) -> CoreState:
    """The tensors of a core's hx."""
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def make_layer(input_size: int, settings: CoreSettings) -> nn.Module:
    """The module of a core: a layer with its options, or a class with an import path.

    Args:
        input_size: features of the input.
        settings: the core and its options.

    Raises:
        ValueError: in one line, if a class with an import path cannot be made.
    """
    core_class = layer_class(settings.core)
    if settings.core in CORE_NAMES:
        return core_class(input_size, settings.hidden_size, **settings.layer_options)
    try:
        return core_class(input_size, settings.hidden_size)
    except Exception as error:  # it is the user's code: anything can happen in it
        raise ValueError(
            f"core {settings.core!r} cannot be made: {core_class.__name__}(input_size="
            f"{input_size}, hidden_size={settings.hidden_size}), given by position, raised "
            f"{one_line(error)}."
        ) from error


def state_form(module: nn.Module, input_size: int, settings: CoreSettings) -> StateForm:
    """The form of a core's state.

    Raises:
        ValueError: in one line, if a class with an import path does not keep to the contract.
    """
    if settings.core not in CORE_NAMES:
        return find_state_form(module, settings.core, input_size, settings.hidden_size)
    # Known without a trial, which on the meta device takes long.
    parts = 2 if settings.core in ("rim_lstm", "lstm") else 1
    shape = (1, 0) if settings.core == "none" else (settings.num_layers, settings.hidden_size)
    return StateForm((shape,) * parts, is_tensor=parts == 1)


def learned_starts(form: StateForm, settings: CoreSettings) -> nn.ParameterList:
    """The states that sequences start from, each (layers, 1, features), zero at first.

    Empty where they are not learned or nothing is kept. RIM layers have theirs inside.
    """
    has_memory = any(size for _, size in form.shapes)
    learns = settings.learned_initial_state and settings.core not in RIM_CORES and has_memory
    return nn.ParameterList(torch.zeros(n, 1, size) for n, size in form.shapes if learns)


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
            with torch.no_grad():
                result = module(input, hx)
        except Exception as error:  # it is the user's code: anything can happen in it
            raise ValueError(
                f"core {core!r}: called with an input of shape {tuple(input.shape)} and hx = "
                f"{given}, it raised {one_line(error)}."
            ) from error
        forms.append(_form_of(result, core, hidden_size))
        hx = forms[-1].pack(as_tuple(result[1]))
    if forms[0] != forms[1]:
        raise ValueError(
            f"core {core!r}: expected hx to keep its form; got {forms[0].shapes} as (layers, "
            f"features) of its tensors from one call and {forms[1].shapes} from the next."
        )
    return forms[0]


def require_repeatable(module: nn.Module, core: str, input_size: int) -> None:
    """Refuse dropout: the update would see other probabilities than the ones that acted."""
    shape = TRIAL_STEPS, TRIAL_ENVS, input_size
    input = torch.linspace(-1, 1, TRIAL_STEPS * TRIAL_ENVS * input_size).view(shape)
    with torch.no_grad():
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
