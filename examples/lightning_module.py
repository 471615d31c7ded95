"""A LightningModule with RIM_GRU: sums of marked numbers, the "adding problem".

Each sequence has two numbers marked; the target is their sum. Lightning sees an nn.Module like any
other, so nothing about training, checkpoints or devices changes.
"""

from __future__ import annotations

import argparse

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from rims import RIM_GRU


class Adder(LightningModule):
    """Reads (B, T, 2), numbers and marks; answers after the last step."""

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__()
        # was: nn.GRU(2, hidden_size, batch_first=True)
        self.gru = RIM_GRU(2, hidden_size, 4, 3, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)
        self.losses: list[float] = []

    def forward(self, sequence: Tensor) -> Tensor:
        """The predicted sum (B,)."""
        _, h_n = self.gru(sequence)
        answer: Tensor = self.head(h_n[-1]).squeeze(-1)
        return answer

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Mean squared error of one batch."""
        sequence, target = batch
        loss = mse_loss(self(sequence), target)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make_data(num_sequences: int, steps: int) -> TensorDataset:
    """Numbers in [0, 1], one marked in each half, and the sum of the two."""
    numbers = torch.rand(num_sequences, steps)
    marks = torch.zeros(num_sequences, steps)
    rows = torch.arange(num_sequences)
    marks[rows, torch.randint(0, steps // 2, (num_sequences,))] = 1
    marks[rows, torch.randint(steps // 2, steps, (num_sequences,))] = 1
    return TensorDataset(torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(-1))


def main(epochs: int = 10, num_sequences: int = 512, steps: int = 10) -> tuple[float, float]:
    """Train; the mean loss of the first epoch and of the last."""
    torch.manual_seed(0)
    model = Adder()
    data = DataLoader(make_data(num_sequences, steps), batch_size=32, shuffle=True)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    first, last = (
        sum(part) / len(part) for part in (model.losses[: len(data)], model.losses[-len(data) :])
    )
    print(f"loss {first:.4f} -> {last:.4f}")
    return first, last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int)
    main(**vars(parser.parse_args()))
