"""Plain PyTorch: a classifier of sequences of different lengths, with nn.LSTM and with RIM_LSTM.

The class of a sequence is its first symbol, so the layer has to remember it to the end. `train` was
written for nn.LSTM and does not know which of the two it gets.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils.rnn import pack_sequence

from rims import RIM_LSTM

SYMBOLS = 4


def make_batch(batch_size: int, max_steps: int) -> tuple[list[Tensor], Tensor]:
    """Sequences of 3 to ``max_steps`` random symbols, one-hot, and the first symbol of each."""
    lengths = torch.randint(3, max_steps + 1, (batch_size,)).tolist()
    symbols = [torch.randint(SYMBOLS, (length,)) for length in lengths]
    sequences = [one_hot(s, SYMBOLS).float() for s in symbols]  # each (T, SYMBOLS)
    return sequences, torch.stack([s[0] for s in symbols])


def train(layer: nn.Module, hidden_size: int, updates: int) -> list[float]:
    """The loss of every update."""
    torch.manual_seed(1)  # the same batches for every layer
    head = nn.Linear(hidden_size, SYMBOLS)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(updates):
        sequences, target = make_batch(batch_size=32, max_steps=10)
        _, (h_n, _) = layer(pack_sequence(sequences, enforce_sorted=False))
        loss = cross_entropy(head(h_n[-1]), target)  # h_n is in the order of `sequences`
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(updates: int = 120, hidden_size: int = 24) -> dict[str, list[float]]:
    """Train both layers; the losses of each by name."""
    torch.manual_seed(0)
    layers = {
        "nn.LSTM": nn.LSTM(SYMBOLS, hidden_size),
        "RIM_LSTM": RIM_LSTM(SYMBOLS, hidden_size, 4, 3),  # the only line that changes
    }
    results = {name: train(layer, hidden_size, updates) for name, layer in layers.items()}
    for name, losses in results.items():
        size = sum(p.numel() for p in layers[name].parameters())
        print(f"{name:9} {size:6} parameters  loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--updates", type=int)
    parser.add_argument("--hidden-size", type=int)
    main(**vars(parser.parse_args()))
