"""A stray quote never costs a product without a word; cells of several lines are left in peace."""

from __future__ import annotations

import pytest

from goods.data.table_files import read_cells

HEAD = "id,title,description\n"
PLAIN = [f"9{k:02},Thing {k},It is {k}\n" for k in range(8)]


def problems_of(tmp_path, rows: list[str], head: str = HEAD) -> tuple[list[str], int]:
    path = tmp_path / "test.csv"
    path.write_text(head + "".join(rows))
    problems: list[str] = []
    table = read_cells(path, problems)
    return [problem.removeprefix(str(path)) for problem in problems], 0 if table is None else len(table)


def changed(**rows: str) -> list[str]:
    """The plain rows with some of them, by number (r2), written otherwise."""
    return [rows.get(f"r{number}", row) for number, row in enumerate(PLAIN)]


SWALLOWED = {
    "two titles that begin with a quote": (
        changed(r1='901,"Big thing,It is 1\n', r4='904,"Small thing,It is 4\n'),
        3, "902, 903, 904",
    ),
    "rows side by side": (changed(r1='901,"Big thing,It is 1\n', r2='902,"Thing,It is 2\n'), 3, "902"),
    "closed by inches": (changed(r1='901,"Big thing,It is 1\n', r3='903,Pipe 5",It is 3\n'), 3, "902, 903"),
    "in the last column": (changed(r1='901,Thing,"It is 1\n', r3='903,Thing,"It is 3\n'), 3, "902, 903"),
    "to the end, closed there": (changed(r5='905,"Big,It is 5\n', r7='907,Thing,7"\n'), 7, "906, 907"),
}  # fmt: skip


@pytest.mark.parametrize("name", SWALLOWED)
def test_swallowed_rows_stop_with_the_line_and_the_ids(tmp_path, name):
    rows, line, ids = SWALLOWED[name]
    found, _ = problems_of(tmp_path, rows)
    assert len(found) == 1
    assert found[0].startswith((f": the quote that opens on line {line} swallows the lines after it; ",
                                ": 1 rows have more or fewer cells"))  # fmt: skip
    assert f"(ids {ids})" in found[0] or "to the end" in name


OPEN = {
    "a lone one": (changed(r5='905,"Big,It is 5\n'), 7),
    "in the last row": (changed(r7='907,"Big,It is 7'), 9),
    "after a cell of several lines": (changed(r2='902,"Two\nlines",It is 2\n', r5='905,Big,"It is 5\n'), 8),
    "after two strays": (changed(r0='900,"A,1\n', r1='901,"B,1\n', r6='906,"C,1\n'), 8),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_quote_that_is_never_closed_is_told_with_its_line(tmp_path, name):
    rows, line = OPEN[name]
    found, _ = problems_of(tmp_path, rows)
    assert found == [
        f" is not a CSV table: a quote opens on line {line} and is never closed; close it there, or double it "
        '("") where it belongs to the text'
    ]


FINE = {
    "a cell of two lines": changed(r2='902,"Two\nlines",It is 2\n'),
    "lines with commas": changed(r2='902,Thing,"soft, warm, light\nred, green, blue"\n'),
    "lines that begin with numbers": changed(r2='902,Thing,"Sizes\n38,39,40"\n'),
    "lines that begin with ids that are there": changed(r2='902,Thing,"Goes with\n901,Thing 1,blue"\n'),
    "a quote inside a cell of two lines": changed(r2='902,"Two\n5"" high, in all",It is 2\n'),
    "a quote in a cell": changed(r2='902,Pipe 5" high,"It is ""2"""\n'),
    "a quoted cell on one line, not closed at its end": changed(r2='902,"5" pipe,It is 2\n'),
    "line ends of Windows": [row.replace("\n", "\r\n") for row in changed(r2='902,"Two\nlines",It is 2\n')],
    "every description in two lines": [row.replace("It", '"It,\nit').strip() + '"\n' for row in PLAIN],
}


@pytest.mark.parametrize("name", FINE)
def test_cells_of_several_lines_stay_fine(tmp_path, name):
    assert problems_of(tmp_path, FINE[name]) == ([], 8)


def test_no_test_product_is_lost_without_a_word(goods):
    goods.write()
    path = goods.folder / "test.csv"
    lines = path.read_text().splitlines()
    lines[1], lines[3] = (line.replace("Thing", '"Thing') for line in (lines[1], lines[3]))
    path.write_text("\n".join(lines) + "\n")
    goods.refused(r"test\.csv: the quote that opens on line 2 .* \(ids 901, 902\)", write=False)
