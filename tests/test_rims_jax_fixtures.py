"""The published arrays of RIM layers in JAX, values and gradients, to 1e-9 in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixtures import Arrays, files, read, weights
from jax_cases import assert_near, chunks_of, quick_jit, x64  # noqa: F401  (fixture)
from rims.jax import RIM_GRU, RIM_LSTM, RIMGRUCell, RIMLSTMCell, from_authors, step
from rims.jax.weights import _AUTHORS
from selection import short

ALL = files("rims_*.npz") + files("rims2_*.npz")

#: Of every kind one: the plain loop, which other tests compare with the fast way on more cases.
PLAIN = [*files("rims_*_i8_*.npz"), *files("rims2_*blocked1*.npz")]


def published_layer(arrays: Arrays, *, fast: bool) -> Any:
    kind: Any = {"lstm": RIM_LSTM, "gru": RIM_GRU}[str(arrays["meta.cell"])]
    names = ("hidden_size", "num_mechanisms", "num_active")
    sizes = [np.atleast_1d(arrays[f"meta.{name}"]).tolist() for name in names]
    flags = [name for name in ("use_inactive", "blocked_grad") if f"meta.{name}" in arrays]
    options: dict[str, Any] = {name: bool(arrays[f"meta.{name}"]) for name in flags}
    options |= {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0), "fast": fast}
    layer = kind(int(arrays["meta.input_size"]), *sizes, len(sizes[0]), **options)
    for i, cell in enumerate(layer.cells):
        prefix = f"layer{i}." if len(layer.cells) > 1 else ""
        own = {n.removeprefix(prefix): a for n, a in weights(arrays).items() if prefix in n}
        cell.load(from_authors(cell.spec, own))
    return layer


def split(layer: nnx.Module) -> Any:
    """Untyped: its static type is a tuple of unknown length."""
    return nnx.split(layer, nnx.Param, ...)


def assert_published(path: Path, *, fast: bool) -> None:
    arrays = read(path)
    layer = published_layer(arrays, fast=fast)
    stacked, is_lstm = path.stem.startswith("rims2_"), isinstance(layer, RIM_LSTM)
    marks = [f".layer{i}" for i in range(layer.num_layers)] if stacked else [""]
    letters = "hc" if is_lstm else "h"
    graph, params, rest = split(layer)

    def loss(params: Any, inputs: Any, starts: Any) -> Any:
        parts = tuple(
            tuple(starts[n + m] for m in marks) if stacked else starts[n] for n in letters
        )
        model = nnx.merge(graph, params, rest)
        output, last = model(inputs, parts if is_lstm else parts[0])
        return (output * arrays["cotangent"]).sum(), (output, last)

    starts = {n + m: jnp.asarray(arrays[f"{n}0{m}"])[None] for n in letters for m in marks}
    given = (params, jnp.asarray(arrays["inputs"]), starts)
    run = quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, (output, last)), (grads, d_inputs, d_starts) = run(*given)

    assert_near(output, arrays["outputs"])
    assert_near(value, arrays["loss"])
    assert_near(d_inputs, arrays["grad.inputs"])
    ends = dict(zip(letters, last if is_lstm else (last,), strict=True))
    for name, start in d_starts.items():
        letter, mark = name[0], name[1:]
        assert_near(start[0], arrays[f"grad.{letter}0{mark}"])
        assert_near(
            ends[letter][marks.index(mark)].reshape(start[0].shape), arrays[f"{letter}_T{mark}"]
        )
    for i, mark in enumerate(marks):
        prefix = f"{mark.removeprefix('.')}." if mark else ""
        assert assert_gradients(grads["cells"][i], arrays, prefix) == 14


def assert_gradients(grads: Any, arrays: Arrays, prefix: str) -> int:
    compared = 0
    for published, name in _AUTHORS.items():
        got = np.asarray(grads[name][...])
        full = f"grad.{prefix}{published}"
        expected = arrays[full] if full in arrays else arrays[f"grad_stride4.{prefix}{published}"]
        got = got if full in arrays else got[..., ::4]
        # Gradients of the two large files are stored in float32.
        tolerance = 1e-6 if expected.dtype == np.float32 else 1e-9
        assert_near(got.reshape(expected.shape), expected, tolerance=tolerance)
        compared += 1
    return compared


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", short(ALL, *range(0, len(ALL), 4)))
def test_the_fast_way_reproduces_published_arrays(path: Path) -> None:
    with chunks_of(9):  # several chunks, of which the last is not full
        assert_published(path, fast=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", short(PLAIN, -1))
@pytest.mark.long
def test_the_plain_loop_reproduces_published_arrays(path: Path) -> None:
    assert_published(path, fast=False)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", short(files("rims_*_i8_*.npz"), 0))
def test_one_step_reproduces_published_arrays(path: Path) -> None:
    arrays = read(path)
    is_lstm = str(arrays["meta.cell"]) == "lstm"
    names = ("input_size", "hidden_size", "num_mechanisms", "num_active")
    kind: Any = RIMLSTMCell if is_lstm else RIMGRUCell
    spec = kind(*(int(arrays[f"meta.{n}"]) for n in names), rngs=nnx.Rngs(0)).spec
    p = from_authors(spec, weights(arrays))
    state = tuple(jnp.asarray(arrays[f"{n}0"]) for n in ("hc" if is_lstm else "h"))
    did = quick_jit(step)(p, jnp.asarray(arrays["inputs"])[0], state)
    assert_near(did.state[0], arrays["outputs"][0])
    assert_near(did.active, arrays["active_mask"][0])
    assert_near(did.input_attention, arrays["input_attention_probs"][0])
    if "step0.communication_probs" in arrays:
        assert_near(did.communication, arrays["step0.communication_probs"])
