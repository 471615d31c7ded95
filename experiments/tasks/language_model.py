"""A language model: the next character or word of a text file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from experiments.configs.sequences import LanguageModelConfig
from experiments.data.common import identity, shuffled
from experiments.data.text import END, UNKNOWN, Corpus, pieces, read_corpus, to_columns, to_lines
from experiments.experiment import Curve, Row, Selection, State
from experiments.shared.images import parts
from experiments.shared.sequences import SequenceExperiment, SequenceModel, Shown, outputs_memory
from lab.core_modules import CoreState

_SHOWN_STEPS, _SHOWN = 120, 20


class Batch(NamedTuple):
    """A piece of a stream, one column beside the other, or some lines."""

    inputs: Tensor | PackedSequence  # (T, B) tokens
    targets: Tensor  # (T, B), or (tokens,) in the order of the packed inputs
    begins: bool  # whether the state starts anew, rather than being that behind the last piece


class LanguageModelExperiment(SequenceExperiment[LanguageModelConfig, Batch]):
    """A core reads a text and tells each next token.

    Read as a stream, the text is cut into as many columns as a batch has, each of which is read
    from top to bottom in pieces: the state behind a piece goes on into the next one, the gradient
    does not (truncated backpropagation through time). The state is carried in
    :attr:`experiments.experiment.State.carried`, so that a run which is continued goes on reading
    with it. Read as lines, each line is a sequence of its own, and a batch of them is packed.
    """

    selection = Selection("validation_nats", "lower")
    curves = (
        Curve("loss", "loss in training, nats"),
        Curve("validation_nats", "nats per token of the validation part"),
    )

    def check(self) -> None:
        """Refuse a missing or too short text, and models that cannot be built."""
        config = self.config
        if not config.text_file:
            raise ValueError("--text-file must name the text to learn.")
        for part in (self._corpus.train, self._corpus.validation, self._corpus.test):
            next(iter(self._read(part)))
        if config.reading == "lines" and len(self._lines) < config.batch_size:
            rule = f"must be at most {len(self._lines)}, the lines trained on"
            raise ValueError(f"--batch-size {rule}; got {config.batch_size}.")
        super().check()

    @property
    def data_memory(self) -> float:
        """Bytes of the core's outputs for a piece of a stream; lines have many lengths."""
        config, tokens = self.config, len(self._corpus.train)
        if config.reading == "lines":
            return 0.0
        steps = min(config.bptt, tokens // config.batch_size - 1)
        return outputs_memory(config, steps, config.batch_size)

    def make_model(self) -> nn.Module:
        """Embedded tokens, the core, logits of the tokens."""
        size = self._corpus.size
        return SequenceModel(nn.Embedding(size, self.config.embedding_size), self.config, size)

    @cached_property
    def _corpus(self) -> Corpus:
        config = self.config
        return read_corpus(config.text_file, config.unit, vocabulary=config.vocabulary)

    @cached_property
    def _lines(self) -> list[NDArray[np.int64]]:
        return to_lines(self._corpus.train, self._corpus.line_end)

    @property
    def data_identity(self) -> str:
        """Number and checksum of the tokens."""
        corpus = self._corpus
        return identity([corpus.train], [corpus.validation], [corpus.test])

    @property
    def steps_per_epoch(self) -> int:
        """Pieces, or full batches of lines."""
        config = self.config
        if config.reading == "lines":
            return len(self._lines) // config.batch_size
        return len(pieces(len(self._corpus.train) // config.batch_size, config.bptt))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The text once: pieces in their order, or lines in a random one."""
        if self.config.reading == "stream":
            return self._read(self._corpus.train)
        lines, size = self._lines, self.config.batch_size
        order = shuffled(self.rng(epoch), len(lines), size, drop_last=True)
        return (self._packed([lines[i] for i in index]) for index in order)

    def _read(self, text: NDArray[np.int64]) -> Iterator[Batch]:
        """A part of the text in order: as it is judged, and as a stream is trained on."""
        config = self.config
        if config.reading == "lines":
            lines = to_lines(text, self._corpus.line_end)
            for part in parts(len(lines), config.batch_size):
                yield self._packed(lines[part])
            return
        columns = torch.from_numpy(to_columns(text, config.batch_size)).to(self.device)
        for begin, end in pieces(len(columns), config.bptt):
            yield Batch(columns[begin:end], columns[begin + 1 : end + 1], begins=begin == 0)

    def _packed(self, lines: Sequence[NDArray[np.int64]]) -> Batch:
        """Lines, each told from what stands before it: nothing, then its own tokens."""
        targets = [torch.from_numpy(line).to(self.device) for line in lines]
        inputs = [F.pad(line[:-1], (1, 0), value=END) for line in targets]
        told = pack_sequence(targets, enforce_sorted=False).data
        return Batch(pack_sequence(inputs, enforce_sorted=False), told, begins=True)

    def train_step(self, state: State, batch: Batch) -> dict[str, float | Tensor]:
        """Learn from a piece, and keep the state behind it."""
        before = None if batch.begins else state.carried
        with state.autocast():
            nats, after = _nats(state.model, batch, before)
        state.descend(nats)
        if self.config.reading == "stream":  # the next lines are other ones
            state.carried = tuple(part.detach() for part in after)
        return {"loss": nats.detach()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of the validation part."""
        return {"validation_nats": self._judged(model, self._corpus.validation)}

    def _judged(self, model: nn.Module, text: NDArray[np.int64]) -> float:
        """Mean over all tokens that are told, the state being carried as in training."""
        total, tokens = 0.0, 0
        carried: CoreState | None = None
        for batch in self._read(text):
            nats, carried = _nats(model, batch, None if batch.begins else carried)
            total += float(nats) * batch.targets.numel()
            tokens += batch.targets.numel()
        return total / tokens

    def test(self, model: nn.Module) -> dict[str, float]:
        """Bits and perplexity per token of the test part."""
        nats = self._judged(model, self._corpus.test)
        return {"bits": nats / math.log(2), "perplexity": math.exp(min(nats, 700.0))}

    @property
    def shown(self) -> Shown:
        """The beginnings of parts of the validation text."""
        text = self._corpus.validation
        columns = to_columns(text, min(_SHOWN, len(text) // 2))
        return Shown(torch.from_numpy(columns[:_SHOWN_STEPS]).to(self.device), [])

    @property
    def _unit(self) -> str:
        return "character" if self.config.unit == "char" else "word"

    @property
    def rows(self) -> Sequence[Row]:
        """The same number in two units."""
        is_char = self.config.unit == "char"
        return [
            Row("bits", f"bits per {self._unit}", "", "lower", 0.0, drawn=is_char),
            Row("perplexity", f"perplexity per {self._unit}", "", "lower", 1.0, drawn=not is_char),
        ]

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        config, corpus = self.config, self._corpus
        unknown = np.mean(corpus.test == UNKNOWN)
        how = (
            f"a stream in {config.batch_size} columns, the state carried over pieces of "
            f"{config.bptt}; the first token of each column is not predicted"
            if config.reading == "stream"
            else "lines, each of them a sequence"
        )
        return [
            f"The last tenth of the text, {len(corpus.test):,} {self._unit}s, read as {how}. The "
            f"first {len(corpus.train):,} are trained on, the tenth between them chooses the "
            f"epoch. {corpus.size - 2:,} different ones are known; {100 * unknown:.2f} % of the "
            "test part are others, which count as one.",
        ]


def _nats(model: nn.Module, batch: Batch, state: Any) -> tuple[Tensor, CoreState]:
    """Mean over the tokens of a batch, and the state behind it."""
    logits, after = model(batch.inputs, state)
    steps = logits.data if isinstance(logits, PackedSequence) else logits.flatten(0, 1)
    return F.cross_entropy(steps, batch.targets.flatten()), after
