"""The speed of training as a Markdown table and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from agents.throughput.ours import Round
from agents.throughput.run import (
    SB3,
    SB3_ADAPTED,
    SB3_NAMES,
    SB3_OWN_POLICY,
    Contest,
    Measured,
    ratios,
    spread,
)
from envs import resolve_backend
from lab.reporting.tables import markdown_table
from lab.words import plural

_TEXT = """\
# Speed of training

    {command}

{processor}, {cores} cores, {threads} of torch, device cpu; {system}, {versions};
commit {commit}, {date}.

Environment steps per second of training, collecting and updating together, on {task}:
{num_envs} environments by {rollout_steps_per_env} steps, {minibatches} minibatches by {epochs}
epochs, hidden size {hidden_size}. Contenders run alternately, round by round, each in a fresh
process that trains from the start. Its first update is not counted, the next {updates} are. Median
of {rounds} and, in brackets, quartiles; the last two columns are seconds per update, medians too.
Our environments: {backend}."""

_SB3_TEXT = """\
sb3-contrib is its RecurrentPPO with MlpLstmPolicy and the same settings: minibatches of {batch}
steps, one LSTM for actor and critic (shared_lstm=True, enable_critic_lstm=False, the nearest to
ours), heads without hidden layers (net_arch=[]). Its environments are gymnasium's in a DummyVecEnv
with minigrid's ImgObsWrapper. Its LSTM reads the 147 numbers of the view as they are, where ours
has them one-hot and a linear layer of {encoder_size} features before the core. Ratios are to it,
taken in every round. "{adapted}" is the same on the environments
that our agents train on, through an adapter that is good for timing only. "{own_policy}"
is what a user gets who sets nothing of the policy: MlpLstmPolicy as it comes, with an LSTM of 256
features for the actor and one for the critic, and two hidden layers of 64 after each; the rest as
in the first."""


def to_markdown(contest: Contest, measured: Measured, machine: dict[str, Any]) -> str:
    """The whole report; of contenders that have run at least once."""
    config = contest.config
    done = {name: rounds for name, rounds in measured.items() if rounds}
    counts = sorted({len(rounds) for rounds in done.values()})
    values = {
        **dataclasses.asdict(config),
        **machine,
        "versions": ", ".join(f"{name} {v}" for name, v in machine["versions"].items()),
        "threads": plural(config.threads, "thread"),
        "task": config.task.id,
        "updates": contest.updates,
        "rounds": f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} rounds",
        "backend": resolve_backend(config.task, config.backend),
        "batch": config.num_envs * config.rollout_steps_per_env // config.minibatches,
        "adapted": SB3_ADAPTED,
        "own_policy": SB3_OWN_POLICY,
    }
    parts = [_TEXT.format(**values)]
    if any(name in SB3_NAMES for name in done):
        parts.append(_SB3_TEXT.format(**values))
    return "\n\n".join([*parts, _table(contest, done)]) + "\n"


def to_dict(contest: Contest, measured: Measured, machine: dict[str, Any]) -> dict[str, Any]:
    """Plain values for JSON, with the figures beside the rounds they come from."""
    return {
        "machine": machine,
        "backend": resolve_backend(contest.config.task, contest.config.backend),
        "config": dataclasses.asdict(contest.config),
        "updates": contest.updates,
        "rounds": contest.rounds,
        "contenders": {
            name: {
                "env_steps_per_second": spread([r.per_second for r in rounds])._asdict(),
                "ratio": spread(shares)._asdict()
                if (shares := ratios(measured, name)) and name != SB3
                else None,
                "rounds": [r._asdict() for r in rounds],
            }
            for name, rounds in measured.items()
            if rounds
        },
    }


def progress_line(contest: Contest, name: str, newest: Round, measured: Measured) -> str:
    """One round of one contender in one line."""
    number = len(measured[name])
    seconds = newest.collecting + newest.updating
    return f"[{number}/{contest.rounds}] {name}: {newest.per_second:,.0f} steps/s, {seconds:.1f} s"


def _table(contest: Contest, done: Measured) -> str:
    with_ratio = SB3 in done
    head = [
        "contender",
        "steps/s",
        *(["ratio"] if with_ratio else []),
        "collecting, s",
        "updating, s",
    ]
    lines = []
    for name, rounds in done.items():
        speed = spread([r.per_second for r in rounds])
        cells = [name, f"{speed.median:,.0f} [{speed.low:,.0f}, {speed.high:,.0f}]"]
        if with_ratio:
            ratio = spread(ratios(done, name) or [float("nan")])
            text = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            cells.append("1" if name == SB3 else text)
        for seconds in ([r.collecting for r in rounds], [r.updating for r in rounds]):
            cells.append(f"{spread(seconds).median / contest.updates:.3f}")
        lines.append(cells)
    return markdown_table(head, lines, right=True)
