"""``rims bench nfm``: what it measures and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Rims, assert_one_line
from nfm.attention import MemoryEntry
from nfm.bench import memory
from nfm.bench.contenders import CASES, NAMES, Case, Settings, contenders, written_plainly
from nfm.module import SlotAttention

TINY = ("bench", "nfm", "--planes", "1", "--batch", "1", "--rounds", "3", "--threads", "1")
SETTINGS = Settings(planes=1, batch=1, rounds=3, seconds_per_case=0.0, device="cpu", threads=1)


def test_writes_rows_and_tables(rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    def peaks(case: Case, settings: Settings) -> list[float]:
        return [1.5] * len(NAMES[case.subject])

    monkeypatch.setattr(memory, "measure", peaks)
    Path("out").mkdir()
    result = rims(*TINY, "--seconds-per-case", "0", "--out", "out")
    assert result.code == 0
    plain: Any = json.loads(Path("out", "nfm.json").read_text())
    assert plain["machine"]["command"].startswith("rims bench nfm --planes 1")
    assert set(plain["machine"]["source"]) == {"rims", "nfm"}
    assert [(row["subject"], row["pass"]) for row in plain["rows"]] == list(CASES)
    for row in plain["rows"]:
        first, *others = row["contenders"]
        assert [c["name"] for c in row["contenders"]] == list(NAMES[row["subject"]])
        assert first["ratio"] == 1
        assert all(c["ratio_low"] <= c["ratio"] <= c["ratio_high"] for c in others)
        assert len(row["rounds_ms"]) == 3
    assert Path("out", "nfm.md").read_text() == result.out
    assert "| NFM, attention written plainly |" in result.out


def test_contenders_with_nfm_compute_the_same() -> None:
    without, ours, plainly = (c.work() for c in contenders(Case("network", "inference"), SETTINGS))
    torch.testing.assert_close(ours, plainly)
    assert without.isfinite()
    plain, fast = (c.work() for c in contenders(Case("attention", "training"), SETTINGS))
    torch.testing.assert_close(plain, fast)


def test_plain_attention_ends_with_the_context() -> None:
    attention = SlotAttention(1, 1, "softmax", "nearest", True)
    entry = MemoryEntry(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    with written_plainly():
        inside = attention(torch.ones(1, 1, 2), (entry,))
    outside = attention(torch.ones(1, 1, 2), (entry,))
    assert torch.equal(inside.read, outside.read)


@pytest.mark.parametrize("option", ["--planes", "--batch", "--rounds"])
def test_numbers_out_of_range_are_refused(rims: Rims, option: str) -> None:
    result = rims("bench", "nfm", option, "0")
    assert result.code == 2
    assert_one_line(result)


def test_settings_are_checked_without_the_command() -> None:
    with pytest.raises(ValueError, match="planes"):
        Settings(**{**SETTINGS.to_dict(), "planes": 0})
    with pytest.raises(ValueError, match="seconds_per_case"):
        Settings(**{**SETTINGS.to_dict(), "seconds_per_case": float("nan")})
