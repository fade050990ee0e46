"""What people open in a spreadsheet runs nothing, and is read back as it was."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from goods.files import ROOT
from goods.sheets import read_sheet, write_sheet

FORMULAS = [
    "=1+1",
    "=HYPERLINK(\"http://x\", \"y\")",
    "@SUM(A1)",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "-20 % off",
    "  =1+1",
    "\t=1+1",
    "\uff1d1+1",
    "'=1+1",
]  # fmt: skip
PLAIN = ["Tea", "-5", "+49.5", "-1e-3", "'tis", "a=b", "", "007"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(tmp_path, text):
    write_sheet(tmp_path / "a.csv", pd.DataFrame({"title": [text]}))
    written = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)["title"][0]
    assert written == f"'{text}"
    assert read_sheet(tmp_path / "a.csv", dtype=str)["title"][0] == text


def test_numbers_and_words_stay(tmp_path):
    write_sheet(tmp_path / "a.csv", pd.DataFrame({"title": PLAIN, "n": range(-4, 4)}))
    written = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    assert written["title"].tolist() == PLAIN
    assert written["n"].tolist() == [str(n) for n in range(-4, 4)]
    assert read_sheet(tmp_path / "a.csv", dtype=str, keep_default_na=False)["title"].tolist() == PLAIN


def test_columns_that_are_joined_by_stay_exact(tmp_path):
    write_sheet(tmp_path / "a.csv", pd.DataFrame({"id": ["-a"], "title": ["-a"]}), exact=["id"])
    assert (tmp_path / "a.csv").read_text() == "id,title\n-a,'-a\n"


def test_every_table_for_people_is_written_so():
    """The others are hashed, or for Kaggle, which takes ids as they are."""
    writing = {path.relative_to(ROOT / "goods").as_posix() for path in (ROOT / "goods").rglob("*.py")
               if re.search(r"(?<!as_sheet\(frame\))\.to_csv\(", path.read_text())}  # fmt: skip
    assert writing == {"sheets.py", "ensemble/submission.py", "data/tables.py", "training/rows.py"}
