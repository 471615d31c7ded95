"""A LightningModule with RIM_GRU that learns to add.

Two numbers of each sequence are marked and the target is their sum. Lightning sees an nn.Module
like any other: nothing changes about training, checkpoints or devices.
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
    """Reads numbers and marks (B, T, 2) and answers after the last step."""

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__()
        # was: nn.GRU(2, hidden_size, batch_first=True)
        self.gru = RIM_GRU(2, hidden_size, 4, 3, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Mean squared error of one batch."""
        sequence, target = batch
        _, h_n = self.gru(sequence)
        loss = mse_loss(self.head(h_n[-1]).squeeze(-1), target)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make_data(num_sequences: int, steps: int) -> TensorDataset:
    """Numbers in [0, 1], one marked in each half, and the sum of the two."""
    numbers = torch.rand(num_sequences, steps)
    marks = torch.zeros(num_sequences, steps)
    for half in (0, steps // 2):
        where = half + torch.randint(steps // 2, (num_sequences, 1))
        marks.scatter_(1, where, 1.0)
    return TensorDataset(torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(-1))


def main(epochs: int = 8) -> tuple[float, float]:
    """Train; the mean loss of the first epoch and of the last."""
    torch.manual_seed(0)
    model = Adder()
    data = DataLoader(make_data(num_sequences=512, steps=10), batch_size=32, shuffle=True)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    per_epoch = torch.tensor(model.losses).view(epochs, -1).mean(1).tolist()
    print(f"loss {per_epoch[0]:.4f} -> {per_epoch[-1]:.4f}")
    return per_epoch[0], per_epoch[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int)
    main(**vars(parser.parse_args()))
