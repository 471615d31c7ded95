"""Edits of a run's settings, and checkpoints of another run in its folder, never pass unsaid."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agents.config import PPOConfig
from agents.judging.compare import plan
from agents.judging.evaluations import EVALUATION_NAME, cached_results, evaluate_run
from agents.learning.checkpoint import agent_store, load_checkpoint
from agents.learning.run_settings import require_unedited
from agents.learning.train import Trainer
from agents.sweep.run import run_once
from command_line import Rims, assert_one_line, snapshot
from compare_cases import CORES, EPISODES, SEEDS, TASKS, change_checkpoint, make_config
from conftest import TOY
from experiment_cases import line, stop_at
from experiments.fit import fit
from experiments.results import RESULTS_NAME, read_results
from lab.comparing import survey
from lab.disk.folder import CONFIG_NAME

MORE = ("--total-steps", "600")


def edit(run: Path, name: str, value: str) -> None:
    path = run / CONFIG_NAME
    text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", path.read_text(), flags=re.M)
    assert count == 1
    path.write_text(text)


@pytest.fixture
def run(toy_run: Path, tmp_path: Path, rims: Rims) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "here" / "run"))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like the toy one with another seed and step size. Only to be read."""
    folder = tmp_path_factory.mktemp("other") / "run"
    settings = {"env": "MiniGrid-Empty-5x5-v0", "total_steps": 256, "seed": 1, **TOY}
    Trainer(PPOConfig(**settings, learning_rate=0.01), folder).run()  # type: ignore[arg-type]
    return folder


def put_in(run: Path, other: Path) -> None:
    """Take the checkpoints of another run for this one's."""
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")


# Runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("learning_rate", "0.5"), ("seed", "7"), ("k", "1")])
def test_edited_setting_is_named_and_nothing_written(
    run: Path, rims: Rims, name: str, value: str
) -> None:
    edit(run, name, value)
    before = snapshot(run)
    answer = assert_one_line(rims("resume", "run", *MORE))
    assert f"config.toml' says {name}={value}; its checkpoint was made with {name}=" in answer
    assert snapshot(run) == before


def test_an_edited_setting_that_the_run_does_not_use_is_none(tmp_path: Path) -> None:
    """So a run goes on that was killed after its first checkpoint with other such settings."""
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="gru", k=2)
    (tmp_path / CONFIG_NAME).write_text(config.to_toml())
    require_unedited(tmp_path, replace(config, k=3, num_rims=8))
    with pytest.raises(ValueError, match="says num_rims=4, core='gru'"):
        require_unedited(tmp_path, replace(config, core="rim_gru", k=2, num_rims=8))


def test_checkpoints_of_another_run_are_named(run: Path, other_run: Path, rims: Rims) -> None:
    put_in(run, other_run)
    before = snapshot(run)
    answer = assert_one_line(rims("resume", "run", *MORE))
    assert "says seed=0, learning_rate=0.001; its checkpoint was made with seed=1," in answer
    assert snapshot(run) == before


def test_agent_of_an_edited_run_is_used_with_a_notice(run: Path, rims: Rims) -> None:
    quiet = rims("evaluate", "run", "--episodes", "2", "--json")
    assert "Notice" not in quiet.err
    edit(run, "learning_rate", "0.5")
    result = rims("evaluate", "run", "--episodes", "2", "--json")
    assert result.code == 0
    assert json.loads(result.out) == json.loads(quiet.out)
    (notice,) = [text for text in result.err.splitlines() if text.startswith("Notice")]
    assert "learning_rate=0.5" in notice
    assert notice.endswith("the checkpoint counts.")
    result = rims("record", "run", "--out", "x.gif", "--max-steps", "1")
    assert (result.code, notice in result.err) == (0, True)


@pytest.mark.parametrize(("name", "value"), [("total_steps", "9999"), ("threads", "2")])
def test_what_resume_may_change_is_noticed_and_goes_on(
    run: Path, rims: Rims, name: str, value: str
) -> None:
    edit(run, name, value)
    given = name == "total_steps"  # then what the file says of it does not matter
    result = rims("resume", "run", *MORE)
    assert result.code == 0
    assert (f"says {name}={value}" in result.err) != given
    assert load_checkpoint(run).config.threads == 1


def test_comparison_names_what_differs(root: Path) -> None:
    edit(root / "none-seed0", "gamma", "0.5")
    with pytest.raises(ValueError, match=r"config.toml' says gamma=0\.5; its checkpoint was made"):
        plan(make_config(), CORES, SEEDS, root)
    complete, (flag,) = survey(plan(make_config(), CORES, SEEDS, root, as_found=True))
    assert len(complete) == 4
    assert (flag.kind, flag.of) == ("different", "none seed 0")
    assert flag.what.endswith("the checkpoint counts.")


def test_trial_of_a_sweep_is_not_another_agent(tmp_path: Path) -> None:
    folder = tmp_path / "trial-000-seed0"
    Trainer(make_config(core="none", gamma=0.5), folder).run()
    run_once(make_config(core="none"), folder, TASKS[:1], 2)
    assert load_checkpoint(folder).config.gamma == 0.99
    assert load_checkpoint(tmp_path / f"{folder.name}.interrupted-1").config.gamma == 0.5


# Kept evaluations -------------------------------------------------------------------------------


def kept(root: Path) -> dict[str, object]:
    return dict(json.loads((root / "none-seed0" / EVALUATION_NAME).read_text()))


def test_evaluation_of_another_agent_is_not_taken(root: Path) -> None:
    """As many steps, and all else alike but the weights."""
    (run,) = plan(make_config(), ["none"], [0], root)
    assert cached_results(run, TASKS, EPISODES, "sample") is not None
    weights = load_checkpoint(run.folder).policy
    weights["actor.bias"] += 1
    change_checkpoint(run.folder, policy=weights)
    assert cached_results(run, TASKS, EPISODES, "sample") is None
    evaluate_run(run, TASKS, EPISODES, "sample")
    assert cached_results(run, TASKS, EPISODES, "sample") is not None


@pytest.mark.parametrize("lost", ["sha256", "versions", "seal", "seed", "device"])
def test_evaluation_that_does_not_say_what_it_measured_is_not_taken(root: Path, lost: str) -> None:
    (run,) = plan(make_config(), ["none"], [0], root)
    content = kept(root)
    assert content["key"]["sha256"] == agent_store(run.folder).load().sha256  # type: ignore[index]
    del content["key"][lost]  # type: ignore[attr-defined]
    (run.folder / EVALUATION_NAME).write_text(json.dumps(content))
    assert cached_results(run, TASKS, EPISODES, "sample") is None


def test_evaluation_by_other_versions_is_not_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = plan(make_config(), ["none"], [0], root)
    monkeypatch.setattr("agents.judging.evaluations.versions", lambda: {"torch": "1.0"})
    assert cached_results(run, TASKS, EPISODES, "sample") is None


@pytest.mark.parametrize("value", [None, "high", [0.5]])
def test_evaluation_without_its_numbers_is_made_again(root: Path, value: object) -> None:
    (run,) = plan(make_config(), ["none"], [0], root)
    content = kept(root)
    content["tasks"][TASKS[0].id]["success_rate"]["mean"] = value  # type: ignore[index]
    (run.folder / EVALUATION_NAME).write_text(json.dumps(content))
    assert cached_results(run, TASKS, EPISODES, "sample") is None


# Experiments ------------------------------------------------------------------------------------


def test_experiment_with_edited_settings_is_refused(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    stopped = line()
    stopped.before_step = stop_at(7, stop)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, tmp_path)
    edit(tmp_path, "learning_rate", "0.5")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"says learning_rate=0\.5; its checkpoint was made with"):
        fit(line(learning_rate=0.5), tmp_path)
    assert snapshot(tmp_path) == before


def test_results_of_another_run_are_judged_again(tmp_path: Path) -> None:
    results = fit(line(), tmp_path / "run")
    fit(line(seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / RESULTS_NAME, tmp_path / "run" / RESULTS_NAME)
    again = line()
    assert fit(again, tmp_path / "run") == results
    assert again.taken == 0  # nothing was trained again
    assert read_results(tmp_path / "run") == results


def test_results_of_an_earlier_version_are_judged_again(tmp_path: Path) -> None:
    results = fit(line(), tmp_path)
    plain = json.loads((tmp_path / RESULTS_NAME).read_text())
    (tmp_path / RESULTS_NAME).write_text(json.dumps({**plain, "checkpoint": None, "steps": 1}))
    assert fit(line(), tmp_path) == results


def test_results_without_a_checkpoint_are_kept(tmp_path: Path) -> None:
    """Whoever removes checkpoints to make room does not train again."""
    results = fit(line(), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    again = line()
    assert fit(again, tmp_path) == results
    assert again.taken == 0
