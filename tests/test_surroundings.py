"""The product in drawn surroundings ends in its undisturbed result or in one clear error; `make
fuzz` draws six times as many."""

import os

import pytest

from tests.sampling import sample
from tests.surroundings import Stage
from tests.trees import can_isolate

CASES, SEED = 50, 1

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beside,
    pytest.mark.skipif(
        not (can_isolate() and os.geteuid() == 0),
        reason="makes namespaces and becomes other users, which needs root",
    ),
]


def test_each_case_ends_in_its_right_result_or_in_one_clear_error() -> None:
    findings, codes = [], set()
    with Stage() as stage:
        for number in (drawn := sample(range(CASES))):
            case, ending = stage.run(SEED, number)
            codes.add(ending.code)
            if verdict := stage.judge(case, ending):
                findings.append(
                    f"{number} {case.command}, {'; '.join(case.twists)}:"
                    f" {verdict}\n{ending.stdout[-500:]}{ending.stderr[-1000:]}"
                )
    assert not findings, "\n".join(findings)
    if len(drawn) == CASES:
        assert codes >= {0, 3}  # some must be refused, or nothing was drawn that could be
