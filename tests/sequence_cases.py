"""What the sequence tasks share in tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Cores that train in a moment.
TINY: dict[str, Any] = {
    "embedding_size": 5,
    "hidden_size": 6,
    "num_rims": 3,
    "k": 2,
    "input_key_size": 4,
    "num_comm_heads": 2,
    "comm_key_size": 3,
    "comm_value_size": 3,
    "epochs": 2,
    "batch_size": 4,
    "checkpoint_every": 2,
    "learning_rate": 0.01,
}

#: Those of them that only mechanisms have.
RIM_SETTINGS = (
    *("num_rims", "k", "input_key_size"),
    *("num_comm_heads", "comm_key_size", "comm_value_size"),
)

#: The same, to be learned with.
SMALL: dict[str, Any] = {
    **TINY,
    "embedding_size": 16,
    "hidden_size": 48,
    "num_rims": 4,
    "k": 3,
    "checkpoint_every": 500,
}

#: One core with mechanisms and one without.
TWO_CORES = ("rim_lstm", "gru")


class Told(nn.Module):
    """Gives what it was made with, whatever the input: (T, B, outputs), or its last step."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output, self.given = output, 0

    def forward(
        self, input: Tensor, state: Any = None, *, last_only: bool = False
    ) -> tuple[Tensor, Any]:
        batch = input.shape[1]
        part = self.output[:, self.given : self.given + batch]
        self.given = (self.given + batch) % self.output.shape[1]
        return part[-1] if last_only else part, state


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of the command line."""
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def one_hot(tokens: Tensor, size: int, height: float = 20.0) -> Tensor:
    """Logits that tell these tokens."""
    logits: Tensor = torch.nn.functional.one_hot(tokens, size) * height
    return logits
