import pytest

from shrinkage.core.tables import render


def test_numbers_are_right_aligned_and_names_left():
    text = render(["name", "n", "share"], [["a", 1_234_567, "95.0 %"], ["longer", 5, "7.5 %"]])
    assert text.splitlines() == [
        "name            n   share",
        "──────  ─────────  ──────",
        "a       1,234,567  95.0 %",
        "longer          5   7.5 %",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (True, "yes"),
        (-1234, "-1,234"),
        (0.123456, "0.1235"),
        (98.4312, "98.43"),
        (12345.6, "12,346"),
        (1e-8, "1e-08"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ("text", "text"),
    ],
)
def test_how_a_cell_is_written(value, shown):
    assert render(["x"], [[value]]).splitlines()[-1] == shown


def test_a_leading_column_of_digits_is_a_column_of_names():
    lines = render(["layer", "n"], [["0", 1], ["10", 1]]).splitlines()
    assert lines[2].startswith("0 ")


def test_a_column_with_missing_numbers_stays_right_aligned():
    assert render(["a", "n"], [["x", 1000], ["y", None], ["z", ""]]).splitlines()[3] == "y      –"


def test_empty_row_draws_a_rule_and_no_rows_leave_the_header():
    lines = render(["a", "b"], [["x", 1], [], ["y", 2]]).splitlines()
    assert lines[1] == lines[3] == "─  ─"
    assert render(["a", "bc"], []) == "a  bc\n─  ──"


def test_title_is_the_first_line():
    assert render(["a"], [[1]], title="Net").splitlines()[0] == "Net"


def test_no_line_ends_in_blanks():
    assert all(line == line.rstrip() for line in render(["aaaa", "bbbb"], [["x", "y"]]).splitlines())


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        render(["a", "b"], [["only"]])
