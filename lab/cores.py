"""Recurrent cores: their names and options, and cores of a user's own.

Options have the names of the arguments of :class:`rims.RIM_LSTM` and ``torch.nn.LSTM``.
Nothing in here imports torch until a class of a user's own is asked for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lab.core_source import may_define_class
from lab.importing import import_from_here
from lab.own_modules import module_source
from lab.settings import ConfigError, Settings, option
from lab.words import did_you_mean, one_line

if TYPE_CHECKING:
    from torch import nn

#: Cores by name; any other is given as ``package.module:Class``.
CoreName = Literal["rim_lstm", "rim_gru", "lstm", "gru", "none"]
CORE_NAMES: tuple[str, ...] = get_args(CoreName)

#: The cores that are made of mechanisms.
RIM_CORES = ("rim_lstm", "rim_gru")

#: Stands for a core in the help of the command line.
CORE_METAVAR = f"[{'|'.join(CORE_NAMES)}|PACKAGE.MODULE:CLASS]"

CommReads = Literal["candidate", "state"]
CommUpdate = Literal["additive", "convex"]
InputGate = Literal["null", "none", "straight_through"]
Competition = Literal["null", "mechanisms"]

#: Options that act between two layers of mechanisms.
_BETWEEN_LAYERS = ("use_inactive", "blocked_grad")

#: Options that need a communication.
_OF_COMMUNICATION = (
    *("comm_key_size", "comm_value_size", "comm_dropout", "comm_reads"),
    *("comm_update", "comm_gate_bias"),
)

_OF_LAYERS = ("num_layers", "dropout")
_OF_MECHANISMS = (
    *("num_rims", "k"),
    *("num_input_heads", "input_key_size", "input_value_size", "input_dropout"),
    *("input_gate", "competition", "tie_margin"),
    *("num_comm_heads", *_OF_COMMUNICATION),
    *_BETWEEN_LAYERS,
    "init_from_unit_size",
)
_OF_RIMS = (*_OF_MECHANISMS, *_OF_LAYERS, "learned_initial_state")

#: The options each core's layer is made with; a class of a user's own has none.
LAYER_OPTIONS: dict[str, tuple[str, ...]] = {
    "rim_lstm": _OF_RIMS,
    "rim_gru": _OF_RIMS,
    "lstm": _OF_LAYERS,
    "gru": _OF_LAYERS,
    "none": (),
}


@dataclass(frozen=True, kw_only=True)
class CoreSettings(Settings):
    """Adds the options of a core. A subclass says which core: its field or property ``core``.

    Supervised runs have more of them, see
    :class:`experiments.configs.sequences.SequenceConfig`: an agent may have no dropout, because it
    has to learn with the probabilities it acted with, and draws its weights in its own way.
    """

    hidden_size: int = option(
        128, "Network", "Features of each layer's output: the total over mechanisms.", low=1
    )
    num_layers: int = option(
        1, "Network", "Layers of the core; each reads the one below.", low=1, high=64
    )
    learned_initial_state: bool = option(
        False, "Network", "Learn the state that episodes and sequences start from; else it is zero."
    )
    num_rims: int = option(4, "RIM", "Mechanisms of a layer; they divide --hidden-size.", low=1)
    k: int = option(3, "RIM", "Mechanisms of a layer that are active at a step.", low=1)
    num_input_heads: int = option(1, "RIM", "Heads of the input attention.", low=1)
    input_key_size: int = option(
        64, "RIM", "Features of a key of the input attention, per head.", low=1
    )
    input_value_size: int = option(
        0,
        "RIM",
        "Features of an input value, per mechanism; 0: four times the mechanism's own.",
        low=0,
    )
    input_gate: InputGate = option(
        "null",
        "RIM",
        "Factor of what a mechanism reads: its attention on the input (null), 1 (none), or 1 with "
        "the gradient of that attention (straight_through).",
    )
    competition: Competition = option(
        "null",
        "RIM",
        "What a mechanism's attention on the input competes with: a null slot, or the other "
        "mechanisms (authors' Atari code).",
    )
    tie_margin: float = option(
        0.0,
        "RIM",
        "Mechanisms whose attention on the input is this close to that of the k-th are active as "
        "well.",
        low=0,
        high=1,
    )
    num_comm_heads: int = option(
        4, "RIM", "Heads of the communication; 0: no communication.", low=0
    )
    comm_key_size: int = option(
        16, "RIM", "Features of a key of the communication, per head.", low=1
    )
    comm_value_size: int = option(
        16, "RIM", "Features of a value of the communication, per head.", low=1
    )
    comm_reads: CommReads = option(
        "candidate",
        "RIM",
        "What other mechanisms read from an inactive one: its discarded candidate (authors' code) "
        "or the state it keeps (paper).",
    )
    comm_update: CommUpdate = option(
        "additive",
        "RIM",
        "Add what a mechanism reads from the others to its state, or mix both by the gate.",
    )
    comm_gate_bias: float = option(
        0.0,
        "RIM",
        "Added to the initial bias of the communication gate; -2 almost closes it at first.",
        low=-100,
        high=100,
    )
    use_inactive: bool = option(
        True, "RIM", "Let a layer also read inactive mechanisms of the one below; else zeros."
    )
    blocked_grad: bool = option(
        False, "RIM", "Pass no gradient into inactive mechanisms of the layer below."
    )

    if TYPE_CHECKING:

        @property
        def core(self) -> str:
            """Name or import path of the core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.core not in RIM_CORES:
            return
        if self.hidden_size % self.num_rims:
            rule = f"must be a multiple of --num-rims {self.num_rims} for {self.core}"
            raise ConfigError("hidden_size", f"{rule}; got {self.hidden_size}.")
        if self.k > self.num_rims:
            rule = f"must be at most --num-rims {self.num_rims}"
            raise ConfigError("k", f"{rule}; got {self.k}.")
        values = self.input_value_size or 4 * self.hidden_size // self.num_rims
        if values % self.num_input_heads:
            rule = (
                f"must divide --input-value-size {values}"
                if self.input_value_size
                else f"must divide the {values} features that a mechanism reads, four times its own"
            )
            raise ConfigError("num_input_heads", f"{rule}; got {self.num_input_heads}.")

    @property
    def size_unit(self) -> int:
        """Hidden sizes that this core can have are multiples of it."""
        if self.core not in RIM_CORES:
            return 1
        heads = 1 if self.input_value_size else self.num_input_heads
        return self.num_rims * (heads // math.gcd(heads, 4))

    @property
    def layer_options(self) -> dict[str, Any]:
        """The options of this core's layer, as arguments of its class."""
        there = self.names()
        given = {
            name: getattr(self, name)
            for name in LAYER_OPTIONS.get(self.core, ())
            if name in there and (name != "dropout" or self.num_layers > 1)
        }
        if "input_value_size" in given:
            given["input_value_size"] = self.input_value_size or None
        return given

    @property
    def unused(self) -> Mapping[str, str]:
        """Adds the options that this core does not have."""
        own, found = LAYER_OPTIONS.get(self.core, ()), dict(super().unused)
        if "num_rims" not in own:
            found |= dict.fromkeys(_OF_MECHANISMS, "needs a core with mechanisms")
        else:
            if self.k == self.num_rims:
                rule = "needs --k below --num-rims"
                found |= dict.fromkeys(("comm_reads", "tie_margin", *_BETWEEN_LAYERS), rule)
            if not self.num_comm_heads:
                found |= dict.fromkeys(_OF_COMMUNICATION, "needs --num-comm-heads above 0")
            if self.input_gate == "none" and not self.tie_margin:
                found["competition"] = "needs --input-gate null or straight_through"
            if self.num_layers == 1:
                found |= dict.fromkeys(_BETWEEN_LAYERS, "needs --num-layers above 1")
            elif not self.use_inactive:
                found["blocked_grad"] = "needs --use-inactive"
        if "num_layers" not in own:
            found["num_layers"] = "needs a core with layers"
        if self.core == "none":
            found["learned_initial_state"] = "needs a core with memory"
        return found


class CoreImportError(ConfigError):
    """A core's import path that leads to no usable class; ``module`` is what it should be in."""

    def __init__(self, core: str, module: str, cause: str, field: str = "core") -> None:
        super().__init__(field, f"{core!r} cannot be used: {cause}.")
        self.module = module


def check_core(core: str, field: str = "core") -> None:
    """Refuse a core that does not exist.

    Args:
        core: name or import path.
        field: the setting it was given in, for errors.

    Raises:
        ConfigError: in one line.
    """
    if ":" in core:
        import_core(core, field)
    elif core not in CORE_NAMES:
        hint = did_you_mean(core, CORE_NAMES)
        names = ", ".join(CORE_NAMES)
        rule = f"must be one of {names}, or package.module:Class; got {core!r}{hint}"
        raise ConfigError(field, rule)


def import_core(path: str, field: str = "core") -> type[nn.Module]:
    """The class that ``package.module:Class`` names; its module is imported.

    Modules are looked for in the current directory first, as ``python -m`` does. Nothing but a
    subclass of ``torch.nn.Module`` is let through: a checkpoint holds such a path too, and must not
    get any other function called. For the same reason a module whose source has no such class is
    not even imported.

    Args:
        path: the import path.
        field: the setting it was given in, for errors.

    Raises:
        ConfigError: in one line, for a path of another form.
        CoreImportError: in one line, if there is no such module or class, or it is no subclass of
            ``torch.nn.Module``.

    Example:
        >>> import_core("torch.nn:GRU").__name__
        'GRU'
    """
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise ConfigError(field, f"must have the form package.module:Class; got {path!r}.")
    source = None if module_name in sys.modules else module_source(module_name)
    if source is not None and not may_define_class(source, class_name):
        cause = f"module {module_name!r} has no class {class_name!r} that derives from another"
        raise CoreImportError(path, module_name, f"{cause}, as torch.nn.Module", field)
    try:
        module = import_from_here(module_name)
    except (Exception, SystemExit) as error:  # it is the user's code: anything can happen in it
        raise CoreImportError(path, module_name, one_line(error), field) from error
    if not hasattr(module, class_name):
        cause = f"module {module_name!r} has no {class_name!r}"
        raise CoreImportError(path, module_name, cause, field)
    found = getattr(module, class_name)
    from torch import nn  # here, because reading a configuration must not take seconds

    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        cause = f"{class_name!r} is not a class that derives from torch.nn.Module"
        raise CoreImportError(path, module_name, cause, field)
    return found


def core_label(core: str) -> str:
    """The name of a core in tables and titles.

    Example:
        >>> core_label("package.module:MyLSTM"), core_label("lstm")
        ('MyLSTM', 'lstm')
    """
    return core.rpartition(":")[2]


def folder_name(core: str) -> str:
    """A core's name as part of the name of a file or folder.

    Example:
        >>> folder_name("package.module:MyLSTM"), folder_name("lstm")
        ('package.module.MyLSTM', 'lstm')
    """
    return core.replace(":", ".")
