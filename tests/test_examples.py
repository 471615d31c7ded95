"""Every file of examples/ runs at toy size and does what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _examples_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name: str, *, needs: str = "") -> Any:
    """The module of one example; skips the test where the library it shows is not installed."""
    if needs:
        reason = f"examples/{name}.py shows {needs}, which is not installed"
        pytest.importorskip(needs, reason=reason)
    return importlib.import_module(name)


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals()}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_plain_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    losses = load("plain_pytorch").main(updates=80)
    assert set(losses) == {"nn.LSTM", "RIM_LSTM"}
    for one in losses.values():
        assert one[-1] < 0.5 * one[0]
    assert f"{losses['RIM_LSTM'][-1]:.3f}" in capsys.readouterr().out


def test_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    losses = load("language_model").main(epochs=6)
    assert losses[-1] < 0.8 * losses[0]
    assert f"{losses[-1]:.3f}" in capsys.readouterr().out


def test_sb3_contrib_ppo() -> None:
    from rims import RIM_LSTM

    example = load("sb3_contrib_ppo", needs="sb3_contrib")
    model, loaded = example.main(total_steps=256)
    for policy in (model.policy, loaded.policy):
        assert isinstance(policy.lstm_actor, RIM_LSTM)
        assert isinstance(policy.lstm_critic, RIM_LSTM)
        trained = {p for group in policy.optimizer.param_groups for p in group["params"]}
        assert trained == set(policy.parameters())
    (actions, state), (loaded_actions, loaded_state) = example.act(model), example.act(loaded)
    assert loaded_actions == actions
    assert np.array_equal(loaded_state, state)
    for name in ("lstm_actor", "lstm_critic"):
        getattr(loaded.policy, name).reset_parameters()
    assert not np.array_equal(example.act(loaded)[1], state)  # equality was not trivial


@pytest.mark.long
def test_jax_copying(capsys: pytest.CaptureFixture[str]) -> None:
    losses, right = load("jax_copying", needs="optax").main(updates=300)
    assert losses[-1] < 0.5 * losses[0]
    assert right > 0.5  # by chance a quarter
    assert f"{losses[-1]:.3f}" in capsys.readouterr().out


# TorchRL and Lightning use deprecated parts of themselves and of torch; not ours to mend.
@pytest.mark.filterwarnings("ignore:Creating .* inherits from WeightUpdaterBase:DeprecationWarning")
def test_torchrl_lstm_module() -> None:
    results = load("torchrl_lstm_module", needs="torchrl").main(batches=2, updates=5)
    assert results["resets"] > 0
    for name in ("stepped", "split_lstm", "split_gru"):
        assert results[name] < 1e-5  # other batch shapes round differently
    assert results["last"] < results["first"]


@pytest.mark.filterwarnings("ignore:Creating .* inherits from WeightUpdaterBase:DeprecationWarning")
def test_torchrl_scan_backend_refuses_mechanisms() -> None:
    """It computes an LSTM from the layer's weights, so it must not find any."""
    example = load("torchrl_lstm_module", needs="torchrl")
    layer = example.RIM_LSTM(4, 24, 4, 3, batch_first=True)
    memory = example.modules.LSTMModule(
        lstm=layer, in_key="observation", out_key="features", recurrent_backend="scan"
    )
    assert not hasattr(layer, "_all_weights")
    with pytest.raises(AttributeError, match="_all_weights"):
        example.split_difference(memory)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning")
def test_lightning_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("lightning_module", needs="lightning")
    monkeypatch.chdir(tmp_path)
    first, last = example.main(epochs=4)
    assert last < 0.5 * first
    assert not list(tmp_path.iterdir())  # no logs, no checkpoints
