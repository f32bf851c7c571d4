"""The key reference of docs/sweep-file.md: it is current, complete, and follows the schema."""

import copy
import re
from pathlib import Path

import pytest

from speech.config import TrialConfig
from sweeps.config import reference
from sweeps.config.config import Block, SweepConfig
from sweeps.config.schema import build_schema

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/sweep-file.md"
SCHEMA = build_schema()
MARKED = f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n"


def rows(text: str) -> dict[str, dict[str, list[str]]]:
    """Returns heading -> key -> the other cells of its row."""
    tables = {}
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        lines = [
            re.split(r"(?<!\\) \| ", line[2:-2])
            for line in section.splitlines()
            if line.startswith("| `")
        ]
        tables[section.partition("\n")[0]] = {cells[0].strip("`"): cells[1:] for cells in lines}
    return tables


def test_the_page_is_current() -> None:
    page = PAGE.read_text("utf-8")
    message = "run: python -m sweeps.config.reference docs/sweep-file.md"
    assert reference.replace_reference(page, SCHEMA) == page, message


def test_every_key_of_the_models_has_a_row() -> None:
    tables = rows(reference.format_reference(SCHEMA))
    assert set(tables["Keys of a sweep file"]) == set(SweepConfig.model_fields)
    assert set(tables["Keys of a block"]) == set(Block.model_fields)
    assert set(tables["Keys of `parameters`"]) == set(TrialConfig.model_fields)
    for name, field in TrialConfig.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            assert set(tables[f"Keys of `{name}`"]) == set(field.annotation.model_fields)


def test_a_row_has_legal_values_default_and_meaning() -> None:
    tables = rows(reference.format_reference(SCHEMA))
    properties = SCHEMA["$defs"]["Loader"]["properties"]
    assert tables["Keys of `loader`"]["num_workers"] == [
        "integer from 0 to 1,024",
        "`0`",
        properties["num_workers"]["description"],
    ]
    assert tables["Keys of `loader`"]["start_method"][0] == "`fork`, `forkserver`, `spawn`"
    assert tables["Keys of `loader`"]["shm_size"][:2] == [
        "integer from 65,536 or text such as `64M`, `2G`",
        "absent",
    ]
    assert tables["Keys of `sgdr`"]["lr"][0] == "number above 0, up to 100"
    assert tables["Keys of a sweep file"]["name"][1] == "required"
    assert all(
        len(cells) == 3 and all(cells) for table in tables.values() for cells in table.values()
    )


def test_links_lead_to_tables_of_the_reference() -> None:
    text = reference.format_reference(SCHEMA)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in rows(text)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) - anchors == {"points-that-do-not-run"}


def test_a_changed_schema_changes_the_page() -> None:
    changed = copy.deepcopy(SCHEMA)
    changed["properties"]["repeats"] |= {"maximum": 7, "default": 3, "description": "planted"}
    before, after = (reference.replace_reference(MARKED, schema) for schema in (SCHEMA, changed))
    assert set(after.splitlines()) - set(before.splitlines()) == {
        "| `repeats` | integer from 1 to 7 | `3` | planted |"
    }


def test_text_outside_the_markers_stays(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(MARKED)
    reference.main([str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{reference.BEGIN}\n\n### Keys of a sweep file\n")
    assert text.endswith(f"\n{reference.END}\nafter\n")
    assert "old" not in text.partition("after")[0].splitlines()


@pytest.mark.parametrize(
    "text", ["", f"{reference.BEGIN}\n", f"{reference.END}\n{reference.BEGIN}\n", MARKED * 2]
)
def test_a_page_without_both_markers_stays_as_it_is(text, tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit, match="once each and in this order"):
        reference.main([str(page)])
    assert page.read_text() == text


def test_meanings_cannot_break_the_table() -> None:
    changed = copy.deepcopy(SCHEMA)
    changed["properties"]["repeats"]["description"] = (
        "a | b, <word>, _edge_ and\nin_side `x_ | <y>`"
    )
    row = next(
        line
        for line in reference.format_reference(changed).splitlines()
        if line.startswith("| `repeats`")
    )
    assert row.endswith(r"| a \| b, \<word>, \_edge\_ and in_side `x_ \| <y>` |")
