"""Algorithm 1 over lists of modules and inside foreign networks, and what a trace of it shows."""

from __future__ import annotations

import copy
import io
from typing import Any, NamedTuple

import pytest
import torch
from pytorchcv.models.resnet_cifar import resnet20_cifar10
from torch import Tensor, nn

import nfm
from nfm import NFMNetwork, insert

SMALL: Any = {"key_size": 4, "value_size": 3, "num_heads": 2, "top_k": 3}


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Classifier(nn.Module):
    """Somebody's network, with a head behind the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(3, 4, 1), Block(4, 6, 2)
        self.third = Block(6, 6, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        result: Tensor = self.head(self.third(self.second(self.first(x))).mean((2, 3)))
        return result * scale


def blocks() -> list[nn.Module]:
    return [Block(3, 4, 1), Block(4, 6, 2), Block(6, 6, 2)]


def awake(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)


def without_gradient(module: nn.Module) -> list[str]:
    """Parameters that got none, or one that is not finite."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.isfinite().all())
    ]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(1))


# --- a list of modules


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("share", [False, True])
def test_with_gamma_0_it_is_the_plain_network(passes: int, share: bool, x: Tensor) -> None:
    layers = blocks()
    plain = nn.Sequential(*copy.deepcopy(layers)).eval()
    network = NFMNetwork(layers, [4, 6, 6], passes=passes, share=share, **SMALL).eval()
    assert torch.equal(network(x), plain(x))
    awake(network)
    assert not torch.equal(network(x), plain(x))


def test_it_is_algorithm_1_step_by_step(x: Tensor) -> None:
    network = NFMNetwork(blocks(), [4, 6, 6], passes=2, **SMALL).eval()
    awake(network)
    memory: nfm.Memory = ()
    for one_pass, stack in zip(network.nfms, network.stacks, strict=True):
        assert isinstance(stack, nn.ModuleList)
        hidden = x
        for place, module in enumerate(stack):
            hidden = module(hidden)
            unit: Any = one_pass.nfms[place]
            # all earlier ones of all passes, and itself
            memory = (*memory, nfm.MemoryEntry(unit.key(hidden), unit.value(hidden)))
            if one_pass.is_last or place < 2:  # at the end of pass 1 nobody would look
                read = unit.attention(unit.query(hidden), memory).read
                hidden = hidden + unit.gamma * unit.out(read)
    assert len(memory) == 6
    torch.testing.assert_close(network(x), hidden)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("share", [False, True])
def test_every_parameter_gets_a_gradient(passes: int, share: bool, x: Tensor) -> None:
    network = NFMNetwork(blocks(), [4, 6, 6], passes=passes, share=share, **SMALL)
    awake(network)
    network(x).square().sum().backward()
    assert without_gradient(network) == []


def test_passes_have_their_own_parameters_or_share_them() -> None:
    sizes = {
        (passes, share): sum(
            p.numel()
            for p in NFMNetwork(
                blocks(), [4, 6, 6], passes=passes, share=share, **SMALL
            ).parameters()
        )
        for passes in (1, 2, 3)
        for share in (False, True)
    }
    assert sizes[2, True] == sizes[3, True] == sizes[1, True] == sizes[1, False]
    assert sizes[3, False] - sizes[2, False] == sizes[2, False] - sizes[1, False]


def test_reading_and_writing_per_pass(x: Tensor) -> None:
    options: Any = {"passes": 2, "read": (False, True), **SMALL}
    network = NFMNetwork(blocks(), [4, 6, 6], **options).eval()
    first, second = network.nfms
    assert [m.reads for m in first.nfms] == [False] * 3
    assert [m.reads for m in second.nfms] == [True] * 3
    awake(network)
    with nfm.trace(network) as record:
        network(x)
    assert [len(reading.sources) for reading in record.readings] == [5, 6, 7]
    options = {"passes": 2, "write": (True, False), **SMALL}
    with nfm.trace(network := NFMNetwork(blocks(), [4, 6, 6], **options)) as record:
        network(x)
    assert [len(reading.sources) for reading in record.readings] == [2, 3, 4, 4, 4]


def test_later_passes_see_the_whole_first_pass(x: Tensor) -> None:
    """Top-down: what the last module of pass 1 wrote changes the first module of pass 2."""
    network = NFMNetwork(blocks(), [4, 6, 6], passes=2, **{**SMALL, "top_k": None}).eval()
    awake(network)
    before = network(x)
    stack = network.stacks[0]
    assert isinstance(stack, nn.ModuleList)
    for parameter in stack[-1].parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(network(x), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes must be at least 1; got 0"),
        ({"read": (True,)}, r"read must have one value for each of 2 passes; got \(True,\)"),
        ({"write": (True,) * 3}, "write must have one value for each of 2 passes"),
        ({"top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^NFM: {message}"):
        NFMNetwork(blocks(), [4, 6, 6], **options)
    with pytest.raises(ValueError, match=f"^NFM: {message}"):
        insert(Classifier(), at=["first"], example=torch.zeros(1, 3, 8, 8), **options)


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="one value for each of 3 modules; got 2"):
        NFMNetwork(blocks(), [4, 6])


# --- somebody's network


@pytest.mark.parametrize("share", [False, True])
def test_insert_changes_nothing_at_first_and_all_learns_later(share: bool, x: Tensor) -> None:
    model = Classifier().eval()
    expected = model(x)
    network = insert(model, at=["third", "first"], example=x, passes=3, share=share, **SMALL).eval()
    assert network.at == ("first", "third")  # as they are called
    assert torch.equal(network(x), expected)
    awake(network)
    assert not torch.equal(network(x), expected)
    network.train()(x).square().sum().backward()
    assert without_gradient(network) == []


def test_the_model_can_still_be_called_alone(x: Tensor) -> None:
    model = Classifier().eval()
    expected = model(x)
    network = insert(model, at=["second"], example=x, **SMALL).eval()
    awake(network)
    assert not torch.equal(network(x), expected)
    assert torch.equal(model(x), expected)


def test_arguments_are_passed_on(x: Tensor) -> None:
    network = insert(Classifier(), at=["second"], example=(x, 2.0), **SMALL).eval()
    torch.testing.assert_close(network(x, scale=3.0), 3 * network(x))
    insert(Classifier(), at=["second"], example={"x": x, "scale": 0.5}, **SMALL)


def test_equals_a_network_of_the_same_modules(x: Tensor) -> None:
    """Insertion and NFMNetwork are the same computation."""
    layers = blocks()
    names = ["0", "1", "2"]
    inserted = insert(nn.Sequential(*copy.deepcopy(layers)), at=names, example=x, **SMALL).eval()
    network = NFMNetwork(layers, [4, 6, 6], **SMALL).eval()
    network.nfms.load_state_dict(inserted.nfms.state_dict())
    for module in (inserted, network):
        awake(module)
    torch.testing.assert_close(inserted(x), network(x), rtol=0, atol=0)


def test_copies_and_files_are_networks_of_their_own(x: Tensor) -> None:
    network = insert(Classifier(), at=["first", "second"], example=x, **SMALL).eval()
    awake(network)
    expected = network(x)
    twin = copy.deepcopy(network)
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    other = insert(Classifier(), at=["first", "second"], example=x, **SMALL).eval()
    other.load_state_dict(network.state_dict())
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    for same in (twin, loaded, other):
        assert torch.equal(same(x), expected)


def test_an_error_inside_leaves_nothing_behind(x: Tensor) -> None:
    model = Classifier().eval()
    network = insert(model, at=["first", "second"], example=x, **SMALL).eval()
    awake(network)
    expected, alone = network(x), model(x)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 4, 8, 8))
    assert torch.equal(network(x), expected)
    assert torch.equal(model(x), alone)


def test_the_dry_run_changes_nothing(x: Tensor) -> None:
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    model.requires_grad_(False)
    insert(model, at=["first"], example=x, passes=1, **SMALL)
    assert model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Pair(NamedTuple):
    map: Tensor
    other: str


class Tupled(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return Pair(y, "kept") if self.kind is Pair else self.kind((y, "kept"))


@pytest.mark.parametrize("kind", [tuple, list, Pair])
def test_maps_inside_tuples_and_lists(kind: type, x: Tensor) -> None:
    network = insert(nn.Sequential(Tupled(kind)), at=["0"], example=x, **SMALL)
    out: Any = network(x)
    assert out[1] == "kept"
    assert out[0].shape == (2, 4, 9, 7)
    assert type(out) is kind


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([], "at must name one or more submodules"),
        (["first", "first"], "each once; got"),
        (["frist"], "there is no submodule 'frist'"),
        (["head"], r"submodule 'head' must return a map .*got \(2, 5\)"),
        (["unused"], "submodule 'unused' must be called once in a pass; it was called 0 times"),
        (["twice"], "submodule 'twice' must be called once in a pass; it was called 2 times"),
    ],
)
def test_places_that_cannot_be_are_refused(at: list[str], message: str, x: Tensor) -> None:
    class Odd(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(self.twice(self.twice(x)), scale)

    with pytest.raises(ValueError, match=f"^insert: .*{message}"):
        insert(Odd(), at=at, example=x)


@pytest.fixture(scope="module")
def foreign() -> nfm.NFMInserted:
    torch.manual_seed(0)
    names = [f"features.stage{i}" for i in (1, 2, 3)]
    return insert(resnet20_cifar10(), at=names, example=torch.zeros(1, 3, 32, 32), **SMALL)


def test_a_resnet_nobody_here_wrote_trains(foreign: nfm.NFMInserted) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    labels = torch.arange(16) % 4
    optimizer = torch.optim.SGD(foreign.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(foreign(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert all(unit.gamma != 0 for unit in foreign.modules() if getattr(unit, "reads", False))
    assert without_gradient(foreign) == []
    assert losses[-1] < 0.5 * losses[0]


# --- what a trace shows


def test_trace_names_readers_and_sources(x: Tensor) -> None:
    network = NFMNetwork(blocks(), [4, 6, 6], passes=2, **SMALL).eval()
    with nfm.trace(network) as record:
        network(x)
        network(x)
    assert len(record.readings) == 2 * 5
    first, last = record.readings[0], record.readings[4]
    assert first.reader == "nfms.sets.0.0"
    assert first.sources == ("nfms.sets.0.0", "null")
    assert last.reader == "nfms.sets.1.2"
    assert last.sources == (*(f"nfms.sets.{k}.{i}" for k in (0, 1) for i in range(3)), "null")
    for one, again in zip(record.readings[:5], record.readings[5:], strict=True):
        assert one.sources == again.sources
        assert torch.equal(one.weights, again.weights)
        assert one.weights.shape == (2, 2, len(one.sources))
        torch.testing.assert_close(one.weights.sum(2), torch.ones(2, 2))
    network(x)
    assert len(record.readings) == 10  # closed


def test_trace_adds_up_the_windows_of_a_larger_map() -> None:
    network = NFMNetwork([nn.Identity(), nn.MaxPool2d(2)], [3, 3], passes=1, **SMALL)
    second: Any = next(iter(network.nfms)).nfms[1]
    nn.init.zeros_(second.query.weight)  # all slots are alike
    nn.init.zeros_(second.query.bias)
    second.attention.top_k = None
    with nfm.trace(network) as record:
        network(torch.randn(1, 3, 4, 4))
    # 2 x 2 points of the first map, one of its own, one null slot
    torch.testing.assert_close(record.readings[1].weights[0, 0], torch.tensor([4.0, 1.0, 1.0]) / 6)


def test_random_attention_ignores_the_input(x: Tensor) -> None:
    network = NFMNetwork(blocks(), [4, 6, 6], passes=2, **SMALL).eval()
    awake(network)
    expected = network(x)
    results = []
    with nfm.random_attention(network):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(network(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], expected)
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize("share", [False, True])
def test_plot_has_a_row_per_reader_and_a_column_per_source(share: bool, x: Tensor) -> None:
    network = NFMNetwork(blocks(), [4, 6, 6], passes=2, share=share, **SMALL).eval()
    with nfm.trace(network) as record:
        network(x)
    figure = nfm.plot_attention(record, places=["a", "b", "c"])
    panel = figure.axes[0]
    labels = [tick.get_text() for tick in panel.get_xticklabels()]
    assert labels == ["1.a", "1.b", "1.c", "2.a", "2.b", "2.c", "null"]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["1.a", "1.b", "2.a", "2.b", "2.c"]
    with pytest.raises(ValueError, match=r"^plot_attention: the trace is empty"):
        nfm.plot_attention(nfm.Trace())
