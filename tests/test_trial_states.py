"""The words for outcomes and states: their groups, and that each one is explained."""

import ast
import inspect

from sweeps import trial_states
from sweeps.trial_states import SETTLED, status_group


def test_every_state_and_outcome_has_a_group() -> None:
    assert {status_group(outcome) for outcome in SETTLED} == {"settled"}
    assert [status_group(state) for state in ("disturbed", "running", "not measured", "data_error")] == [
        "disturbed", "running", "not measured", "failed",
    ]  # fmt: skip


def test_every_member_is_explained_in_a_sentence() -> None:
    for group in ast.parse(inspect.getsource(trial_states)).body:
        if isinstance(group, ast.ClassDef):
            for member, text in zip(group.body[1::2], group.body[2::2], strict=True):
                assert isinstance(member, ast.Assign)
                assert isinstance(text, ast.Expr)
                assert isinstance(text.value, ast.Constant)
                assert str(text.value.value).endswith(".")
