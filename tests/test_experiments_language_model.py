"""The language model: a state carried over pieces and interruptions, lines in packs."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from command_line import Rims, assert_one_line, tree
from experiments.configs.sequences import CORES, LanguageModelConfig
from experiments.data.text import END
from experiments.experiment import State
from experiments.fit import fit
from experiments.snapshot import Position, Snapshot, load_snapshot, save_snapshot
from experiments.tasks.language_model import Batch, LanguageModelExperiment, _nats
from image_cases import assert_goes_on
from selection import short
from sequence_cases import SMALL, TINY, TWO_CORES
from tolerances import rounding

TEXT = "the cat sat on the mat\nand the dog ran off\n\nthen both met again\n" * 8


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(TEXT)
    return path


def language(text: Path, /, **settings: Any) -> LanguageModelExperiment:
    given = {**TINY, "bptt": 13, **settings}
    return LanguageModelExperiment(LanguageModelConfig(text_file=str(text), **given))


@pytest.mark.parametrize(("core", "reading"), short(product(TWO_CORES, ["stream", "lines"]), -1))
def test_run_that_is_broken_off_goes_on_exactly(
    text: Path, tmp_path: Path, core: str, reading: str
) -> None:
    def make() -> LanguageModelExperiment:
        return language(text, model=core, reading=reading, checkpoint_every=3)

    results = assert_goes_on(make, tmp_path, step=5)  # in the middle of the first epoch
    assert results.steps == 2 * make().steps_per_epoch >= 12
    assert set(results.metrics) == {"bits", "perplexity"}
    assert results.metrics["perplexity"] == pytest.approx(2 ** results.metrics["bits"])


def state_of(experiment: LanguageModelExperiment) -> State:
    torch.manual_seed(0)
    model = experiment.make_model()
    optimizers = experiment.make_optimizers(model)
    return State(model=model, optimizers=optimizers, generator=torch.Generator())


@pytest.mark.parametrize("core", CORES)
def test_state_goes_on_from_piece_to_piece_as_in_one_long_sequence(text: Path, core: str) -> None:
    pieces, whole = (language(text, model=core, bptt=steps) for steps in (5, 10**6))
    torch.manual_seed(0)
    model = whole.make_model().eval()
    with torch.no_grad():
        for part in ("train", "validation"):
            tokens = getattr(whole._corpus, part)
            once, told = whole._judged(model, tokens), pieces._judged(model, tokens)
            assert told == pytest.approx(once, rel=rounding(torch.float32, len(tokens)))
            assert len(list(pieces._read(tokens))) > 1
        # Were every piece to start anew, its numbers would be others.
        first, second, *_ = pieces._read(whole._corpus.train)
        _, behind = _nats(model, first, None)
        nats = [float(_nats(model, second, state)[0]) for state in (None, behind)]
        assert nats[0] != pytest.approx(nats[1], rel=1e-5)


@pytest.mark.parametrize("core", TWO_CORES)
def test_training_carries_the_state_and_cuts_the_gradient(text: Path, core: str) -> None:
    experiment = language(text, model=core, learning_rate=1e-30)  # weights stay as they are
    state, batches = state_of(experiment), experiment.batches(0)
    first, second = next(batches), next(batches)
    assert isinstance(first.inputs, Tensor)
    assert isinstance(second.inputs, Tensor)
    experiment.train_step(state, first)
    _, behind = state.model(first.inputs)
    for carried, expected in zip(state.carried, behind, strict=True):
        assert not carried.requires_grad
        torch.testing.assert_close(carried, expected)
    scalars = experiment.train_step(state, second)
    both = torch.cat([first.inputs, second.inputs])
    logits, _ = state.model(both)
    expected = F.cross_entropy(logits[13:].flatten(0, 1), second.targets.flatten())
    assert float(scalars["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    again = next(experiment.batches(1))
    assert again.begins
    assert experiment.train_step(state, again)["loss"] == pytest.approx(
        float(_nats(state.model, first, None)[0].detach()), rel=1e-5
    )


def test_carried_state_is_part_of_a_checkpoint(text: Path, tmp_path: Path) -> None:
    experiment = language(text)
    state, other = state_of(experiment), state_of(experiment)
    experiment.train_step(state, next(experiment.batches(0)))
    save_snapshot(tmp_path, state, Snapshot(Position(steps=1)))
    load_snapshot(tmp_path, other, "")
    assert len(other.carried) == 2
    for carried, expected in zip(other.carried, state.carried, strict=True):
        assert torch.equal(carried, expected)
        assert float(carried.abs().sum()) > 0


class Counting(nn.Module):
    """Knows nothing; keeps what it was asked."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.asked = size, list[Any]()

    def forward(self, input: Any, state: Any = None) -> tuple[Any, tuple[Tensor, ...]]:
        self.asked.append(input)
        if isinstance(input, Tensor):
            return torch.zeros(*input.shape, self.size), ()
        return input._replace(data=torch.zeros(len(input.data), self.size)), ()


@pytest.mark.parametrize("reading", ["stream", "lines"])
def test_bits_are_of_the_tokens_that_are_told(text: Path, reading: str) -> None:
    experiment = language(text, reading=reading)
    model = Counting(experiment._corpus.size)
    found = experiment.test(model)
    assert found["bits"] == pytest.approx(math.log2(model.size))
    tokens = experiment._corpus.test
    asked = sum(i.numel() if isinstance(i, Tensor) else len(i.data) for i in model.asked)
    assert asked == (len(tokens) if reading == "lines" else len(tokens) // 4 * 4 - 4)


def test_lines_are_told_from_what_stands_before_in_them(text: Path) -> None:
    experiment = language(text, reading="lines", batch_size=3)
    lines = [experiment._lines[i] for i in (0, 1, 2)]
    batch = experiment._packed(lines)
    assert not isinstance(batch.inputs, Tensor)
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(batch.inputs)
    assert lengths.tolist() == [len(line) for line in lines]
    assert lengths.tolist()[2] == 1  # an empty line is its end alone
    told, _ = torch.nn.utils.rnn.pad_packed_sequence(batch.inputs._replace(data=batch.targets))
    for i, line in enumerate(lines):
        assert padded[: len(line), i].tolist() == [END, *line[:-1].tolist()]
        assert told[: len(line), i].tolist() == line.tolist()


@pytest.mark.parametrize("core", TWO_CORES)
def test_packed_lines_are_judged_as_one_by_one(text: Path, core: str) -> None:
    experiment = language(text, model=core, reading="lines")
    torch.manual_seed(0)
    model = experiment.make_model().eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for line in experiment._lines[:5]:
            steps = torch.from_numpy(line)[:, None]
            inputs = torch.cat([torch.full((1, 1), END), steps[:-1]])
            nats, _ = _nats(model, Batch(inputs, steps, begins=True), None)
            total, tokens = total + float(nats) * len(line), tokens + len(line)
        packed, _ = _nats(model, experiment._packed(experiment._lines[:5]), None)
    assert float(packed) == pytest.approx(total / tokens, rel=1e-5)


def test_every_epoch_reads_lines_in_another_order(text: Path) -> None:
    experiment = language(text, reading="lines")
    first, again, other = (next(experiment.batches(n)).targets.tolist() for n in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("unit", ["char", "word"])
def test_learns_a_text_that_repeats_itself(text: Path, tmp_path: Path, unit: str) -> None:
    settings = {**SMALL, "unit": unit, "epochs": 12, "learning_rate": 0.02}
    experiment = language(text, model="gru", **settings)
    results = fit(experiment, tmp_path)
    assert results.metrics["bits"] < 0.5 * math.log2(experiment._corpus.size)
    drawn = [row.label for row in experiment.rows if row.drawn]
    assert drawn == ["bits per character" if unit == "char" else "perplexity per word"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "--text-file must name the text to learn."),
        (("--text-file", "none.txt"), "none.txt cannot be read as UTF-8"),
        (("--text-file", "a.txt", "--batch-size", "60"), "tokens must fill 60 columns"),
        (
            ("--text-file", "a.txt", "--reading", "lines", "--batch-size", "40"),
            "--batch-size must be at most ",
        ),
        (
            ("--text-file", "a.txt", "--reading", "lines", "--bptt", "5"),
            "--bptt cuts a stream; --reading is lines.",
        ),
    ],
)
def test_mistake_is_one_line_before_any_work(
    rims: Rims, tmp_path: Path, given: tuple[str, ...], told: str
) -> None:
    (tmp_path / "here" / "a.txt").write_text(TEXT)
    before = tree(tmp_path)
    result = rims("experiment", "language-model", "--run-root", "root", *given)
    assert told in assert_one_line(result)
    assert tree(tmp_path) == before
