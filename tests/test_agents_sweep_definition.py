"""The file of a sweep: what is read from it, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.sweep.definition import Searched, parse_sweep, read_sweep
from command_line import ROOT
from envs import SUITES
from sweep_cases import BASE, document, make_sweep

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "table": ({**BASE, "serch": {}}, "unknown table 'serch'; did you mean 'search'?"),
    "key outside tables": ({**BASE, "trials": 3}, "unknown table 'trials'"),
    "no table": ({**BASE, "search": 3}, "search must be a table"),
    "no search": ({**BASE, "search": {}}, r"\[search\] names nothing"),
    "option": (document(sweep={"trails": 3}), "unknown key 'trails'; did you mean 'trials'?"),
    "no trials": (document(sweep={"trials": None}), "trials is missing"),
    "trials": (document(sweep={"trials": 0}), "trials must be a whole number from 1"),
    "trials of bool": (document(sweep={"trials": True}), "trials must be a whole number"),
    "seeds": (document(sweep={"seeds": 1.5}), "seeds must be a whole number"),
    "sampler": (document(sweep={"sampler": "tpa"}), "got 'tpa'; did you mean 'tpe'?"),
    "no sampler": (document(sweep={"sampler": "x"}), "one of 'tpe', 'random', 'grid'; got 'x'."),
    "objective": (document(sweep={"objective": "loss"}), "objective must be one of"),
    "setting": (document(settings={"num_env": 3}), "'num_env'; did you mean 'num_envs'?"),
    "setting's type": (
        document(settings={"hidden_size": "64"}),
        r"\[settings\] hidden_size must be of type int; got '64'",
    ),
    "setting's value": (document(settings={"gamma": 2.0}), r"\[settings\] gamma must be in"),
    "no task": (document(settings={"suite": None}), "give exactly one of them"),
    "suite": (document(settings={"suite": "emtpy"}), "did you mean 'empty'?"),
    "seed fixed": (document(settings={"seed": 3}), r"\[settings\] seed: give \[sweep\] seeds"),
    "seed searched": (document(search={"seed": {"low": 0, "high": 3}}), r"\[search\] seed"),
    "field": (document(search={"epoch": {"low": 1, "high": 2}}), "did you mean 'epochs'?"),
    "task searched": (
        document(search={"suite": {"choices": ["empty", "doorkey"]}}, settings={"suite": None}),
        "suite cannot be searched",
    ),
    "actions searched": (
        document(search={"actions": {"choices": ["left,right", "all"]}}),
        "actions cannot be searched",
    ),
    "both": (document(settings={"epochs": 2}), "epochs is both in"),
    "no range": (document(search={"epochs": 3}), "epochs must be {low = ..., high = ...} or"),
    "key of a range": (
        document(search={"epochs": {"low": 1, "hihg": 3}}),
        "epochs: unknown key 'hihg'; did you mean 'high'?",
    ),
    "no high": (document(search={"epochs": {"low": 1}}), "epochs has no high"),
    "range of names": (document(search={"core": {"low": 1, "high": 3}}), "core is not a number"),
    "range of switches": (
        document(search={"direction": {"low": 0, "high": 1}}),
        "direction is not a number",
    ),
    "fraction of a whole number": (
        document(search={"epochs": {"low": 1, "high": 2.5}}),
        "high must be a whole number; got 2.5",
    ),
    "low is text": (document(search={"gamma": {"low": "0", "high": 1}}), "low must be a number"),
    "low above high": (
        document(search={"epochs": {"low": 3, "high": 2}}),
        "low must be below high; got 3 and 2",
    ),
    "low equals high": (document(search={"epochs": {"low": 3, "high": 3}}), "must be below"),
    "NaN": (document(search={"gamma": {"low": math.nan, "high": 1.0}}), "must be below"),
    "log from 0": (
        document(search={"gamma": {"low": 0.0, "high": 1.0, "log": True}}),
        "low must be above 0",
    ),
    "log of text": (
        document(search={"gamma": {"low": 0.1, "high": 1.0, "log": "yes"}}),
        "log must be true or false",
    ),
    "no choices": (document(search={"core": {"choices": []}}), "at least one value"),
    "choices are text": (document(search={"core": {"choices": "lstm"}}), "must be a list"),
    "equal choices": (document(search={"core": {"choices": ["gru", "gru"]}}), "must differ"),
    "choices and range": (
        document(search={"epochs": {"choices": [1], "low": 1}}),
        "cannot have a range too",
    ),
    "choice's type": (
        document(search={"epochs": {"choices": [1, "2"]}}),
        r"allows epochs='2', but epochs must be of type int",
    ),
    "choice": (document(search={"core": {"choices": ["gru", "rnn"]}}), "allows core='rnn', but"),
    "bound": (
        document(search={"gamma": {"low": 0.9, "high": 1.5}}),
        r"allows gamma=1.5, but gamma must be in \[0, 1\]",
    ),
    "does not divide": (
        document(search={"minibatches": {"low": 1, "high": 4}}, settings={"minibatches": None}),
        "allows minibatches=3, but minibatches must divide the 8 environments",
    ),
    "neighbours do not divide": (
        document(
            search={"hidden_size": {"low": 64, "high": 128}, "core": {"choices": ["rim_gru"]}}
        ),
        "allows hidden_size=65, but hidden_size must be a multiple",
    ),
    "three that do not fit": (
        document(
            search={
                "core": {"choices": ["none", "rim_gru"]},
                "hidden_size": {"choices": [60, 64]},
                "num_rims": {"choices": [4, 5]},
            }
        ),
        "allows core='rim_gru', hidden_size=64, num_rims=5, but hidden_size must be",
    ),
    "without effect": (
        document(search={"core": None, "k": {"low": 1, "high": 4}}, settings={"core": "lstm"}),
        r"\[search\] k would change nothing: it needs a core with mechanisms; core is lstm",
    ),
    "without effect for any core": (
        document(search={"comm_reads": {"choices": ["candidate", "state"]}}),
        r"comm_reads would change nothing: it needs a core with mechanisms; core is none, gru",
    ),
    "without effect of another setting": (
        document(
            search={"comm_reads": {"choices": ["candidate", "state"]}, "core": None},
            settings={"core": "rim_gru", "k": 4},
        ),
        "comm_reads would change nothing: it needs --k below --num-rims",
    ),
    "unseen without a suite": (
        document(
            sweep={"objective": "unseen_success_rate"},
            settings={"suite": None, "env": "MiniGrid-Empty-5x5-v0"},
        ),
        "needs a suite",
    ),
    "grid of a range": (document(sweep={"sampler": "grid"}), "learning_rate: a grid needs"),
    "more than the grid": (
        document(
            sweep={"sampler": "grid", "trials": 9}, search={"learning_rate": {"choices": [0.1]}}
        ),
        "at most 8, the size of the grid",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    given, hint = REFUSED[name]
    with pytest.raises(ValueError, match=hint) as caught:
        parse_sweep(given)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[sweep")
    for missing_or_broken in (path, tmp_path / "none.toml"):
        with pytest.raises(ValueError, match=f"{missing_or_broken.name}.*cannot be read"):
            read_sweep(missing_or_broken)


def test_what_is_read() -> None:
    sweep = make_sweep(settings={"suite": "multiroom", "total_steps": None})
    assert sweep.settings["total_steps"] == SUITES["multiroom"].preset["total_steps"]
    config = sweep.config({"learning_rate": 0.1, "epochs": 2, "core": "gru"}, seed=7)
    assert (config.learning_rate, config.epochs, config.core, config.seed) == (0.1, 2, "gru", 7)
    assert make_sweep(search={"gamma": {"low": 0, "high": 1}}).search[-1].low == 0.0
    assert not make_sweep(search={"gamma": {"low": 0, "high": 1}}).search[-1].is_int
    searched = make_sweep(settings={"suite": "multiroom"}, search={"gamma": {"choices": [0.9]}})
    assert "gamma" not in searched.settings


def test_what_only_some_trials_use_may_be_searched() -> None:
    search = {
        "core": {"choices": ["lstm", "rim_lstm"]},
        "num_layers": {"choices": [1, 2]},
        "k": {"choices": [4, 2]},
        "use_inactive": {"choices": [False, True]},
        "blocked_grad": {"choices": [False, True]},  # used where all four have their second value
    }
    assert make_sweep(search=search).search[-1].name == "blocked_grad"


def test_suite_without_unseen_tasks_cannot_be_judged_on_them(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text('name = "mine"\ntrain = "MiniGrid-Empty-5x5-v0"\nunseen = []\n')
    settings = {"suite": str(suite)}
    make_sweep(settings=settings)
    with pytest.raises(ValueError, match=r"mine\.toml' has no unseen tasks") as caught:
        make_sweep(settings=settings, sweep={"objective": "unseen_success_rate"})
    assert "\n" not in str(caught.value)


def test_grid_points_are_the_product_in_order_without_listing_it() -> None:
    sweep = make_sweep(
        sweep={"sampler": "grid", "trials": None}, search={"learning_rate": {"choices": [0.1, 0.2]}}
    )
    product = itertools.product([0.1, 0.2], [1, 2, 3, 4], ["none", "gru"])
    points = [sweep.grid_point(number) for number in range(sweep.trials)]
    assert [tuple(point.values()) for point in points] == list(product)
    assert list(points[0]) == ["learning_rate", "epochs", "core"]
    many = Searched(name="gamma", choices=tuple(range(1000)))
    huge = replace(sweep, search=(many,) * 8)  # 10^24 points
    assert huge.grid_point(10**24 - 1) == {"gamma": 999}


def test_identity_holds_the_backends_that_will_run() -> None:
    settings = {"backend": "gymnasium"}
    alone = make_sweep(settings=settings).identity()["backends"]
    assert alone == {"MiniGrid-Empty-Random-5x5-v0": "gymnasium"}
    judged = make_sweep(settings=settings, sweep={"objective": "unseen_success_rate"})
    assert list(judged.identity()["backends"]) == [task.id for task in SUITES["empty"].tasks]


def test_example_is_a_sweep() -> None:
    sweep = read_sweep(ROOT / "examples" / "sweep.toml")
    assert (sweep.trials, sweep.seeds, len(sweep.search)) == (20, 2, 4)
