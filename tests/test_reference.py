"""Tests that the key reference of docs/sweep-file.md is current and complete."""

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


def titles(text: str) -> list[str]:
    """Returns the headings of the tables."""
    return re.findall(r"^### (.*)$", text, flags=re.MULTILINE)


def data(cell: str) -> list[str]:
    """Returns the numbers and the code spans of a cell, in order."""
    return re.findall(r"`[^`]*`|\d[\d,.]*\d|\d", cell)


def rows(text: str) -> dict[str, dict[str, list[str]]]:
    """Returns the group that a heading names -> key -> the other cells of its row."""
    tables = {}
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        lines = [
            re.split(r"(?<!\\) \| ", line[2:-2])
            for line in section.splitlines()
            if line.startswith("| `")
        ]
        group = section.partition("\n")[0].rpartition(" of ")[2].strip("`")
        tables[group] = {cells[0].strip("`"): cells[1:] for cells in lines}
    return tables


def test_the_page_is_current() -> None:
    page = PAGE.read_text("utf-8")
    message = "run: python -m sweeps.config.reference docs/sweep-file.md"
    assert reference.replace_reference(page, SCHEMA) == page, message


def test_every_key_of_the_models_has_a_row() -> None:
    tables = rows(reference.format_reference(SCHEMA))
    assert set(tables["a sweep file"]) == set(SweepConfig.model_fields)
    assert set(tables["a block"]) == set(Block.model_fields)
    assert set(tables["parameters"]) == set(TrialConfig.model_fields)
    for name, field in TrialConfig.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            assert set(tables[name]) == set(field.annotation.model_fields)


def test_a_row_has_legal_values_default_and_meaning() -> None:
    tables = rows(reference.format_reference(SCHEMA))
    properties = SCHEMA["$defs"]["Loader"]["properties"]
    loader, (rate, *_) = tables["loader"], tables["sgdr"]["lr"]
    count, *others = loader["num_workers"]
    assert (count.split()[0], data(count)) == ("integer", ["0", "1,024"])
    assert others == ["`0`", properties["num_workers"]["description"]]
    assert loader["start_method"][0] == "`fork`, `forkserver`, `spawn`"
    size, default, _ = loader["shm_size"]
    assert (size.split()[0], data(size)) == ("integer", ["65,536", "`64M`", "`2G`"])
    assert default == "absent"
    assert (rate.split()[0], data(rate)) == ("number", ["0", "100"])
    assert "above 0" in rate, "an exclusive bound"
    assert tables["a sweep file"]["name"][1] == "required"
    assert all(
        len(cells) == 3 and all(cells) for table in tables.values() for cells in table.values()
    )


def test_links_lead_to_tables_of_the_reference() -> None:
    text = reference.format_reference(SCHEMA)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles(text)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) - anchors == {"points-that-do-not-run"}


def test_a_changed_schema_changes_the_page() -> None:
    changed = copy.deepcopy(SCHEMA)
    changed["properties"]["repeats"] |= {"maximum": 7, "default": 3, "description": "planted"}
    before, after = (reference.replace_reference(MARKED, schema) for schema in (SCHEMA, changed))
    (row,) = set(after.splitlines()) - set(before.splitlines())
    assert data(row) == ["`repeats`", "1", "7", "`3`"]
    assert row.endswith("| planted |")


def test_text_outside_the_markers_stays(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(MARKED)
    reference.main([str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{reference.BEGIN}\n\n### ")
    assert text.endswith(f"\n{reference.END}\nafter\n")
    assert "old" not in text.partition("after")[0].splitlines()


@pytest.mark.parametrize(
    "text", ["", f"{reference.BEGIN}\n", f"{reference.END}\n{reference.BEGIN}\n", MARKED * 2]
)
def test_a_page_without_both_markers_stays_as_it_is(text, tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit) as left:
        reference.main([str(page)])
    first, *markers = str(left.value).splitlines()
    assert first.startswith(f"{page}: ")
    assert markers == [reference.BEGIN, reference.END]
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
