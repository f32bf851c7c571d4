"""Compares the golden pages, which pin the wording of the output, with what the product prints."""

import difflib
import shutil
from pathlib import Path

import pytest

from tests.golden_pages import DATABASE, GOLDEN, PAGES, render


@pytest.mark.parametrize("page", PAGES)
def test_the_product_prints_the_golden_page(
    page: str, tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / DATABASE)
    golden = (GOLDEN / f"{page}.txt").read_text("utf-8").splitlines()
    printed = render(page, tmp_path).splitlines()
    lines = difflib.unified_diff(
        golden, printed, f"tests/golden/{page}.txt", "printed", lineterm=""
    )
    if difference := "\n".join(lines):
        pytest.fail(f"{difference}\n\nTo accept it: python -m tests.golden_pages", pytrace=False)
