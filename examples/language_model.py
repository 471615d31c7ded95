"""A character-level language model with truncated backpropagation through time.

The text is read in pieces. The state at the end of a piece is carried over to the next one and
detached, so memory reaches further back than the gradient. Written for nn.LSTM, run with RIM_LSTM.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rims import RIM_LSTM

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Embedding, a recurrent layer, logits of the next character."""

    def __init__(self, num_characters: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, 32)
        # was: nn.LSTM(32, hidden_size, batch_first=True)
        self.lstm = RIM_LSTM(32, hidden_size, 4, 3, batch_first=True)
        self.head = nn.Linear(hidden_size, num_characters)

    def forward(self, characters: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Logits (B, T, characters) and the state after the last character."""
        output, state = self.lstm(self.embedding(characters), state)
        return self.head(output), state


def main(
    text: Path = LICENSE, epochs: int = 15, steps: int = 20, hidden_size: int = 64
) -> list[float]:
    """Train on ``text``; the mean loss per character of every epoch, in nats."""
    torch.manual_seed(0)
    content = text.read_text(encoding="utf-8")
    alphabet = sorted(set(content))
    rows = torch.tensor([alphabet.index(c) for c in content])
    rows = rows[: len(rows) // 8 * 8].view(8, -1)  # 8 parts of the text side by side: (B, all T)

    model = LanguageModel(len(alphabet), hidden_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(epochs):
        state: State | None = None
        pieces = []
        for start in range(0, rows.shape[1] - 1, steps):
            characters = rows[:, start : start + steps + 1]
            logits, (h, c) = model(characters[:, :-1], state)
            loss = cross_entropy(logits.flatten(0, 1), characters[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            state = (h.detach(), c.detach())  # carried over, but no gradient goes back through it
            pieces.append(loss.item())
        losses.append(sum(pieces) / len(pieces))
        print(f"epoch {epoch:2}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--epochs", type=int)
    main(**vars(parser.parse_args()))
