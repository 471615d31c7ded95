"""docs/robustness.md: each of its cases names tests that exist."""

from __future__ import annotations

from test_agents_traps import existing_tests, section, table


def test_every_case_names_tests_that_exist() -> None:
    rows = table(section("robustness.md", "Twenty-four cases"))
    assert [row[0] for row in rows] == [str(number) for number in range(1, 25)]
    for number, _, guards in rows:
        existing_tests(guards, f"case {number}")
