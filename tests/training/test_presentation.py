from typing import Any

import pytest

from shrinkage.training.presentation import _bytes, _count, _saving


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (14_235, "14.2 kB"), (999_600, "1 MB"), (1_860_000, "1.86 MB")],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert _bytes(count) == text


def test_savings_say_how_much_less() -> None:
    assert _saving(69_000_000, 5_111_222, _count) == "dense 69 million, 13.5× less"
    assert _saving(100, 100, _count) == "dense 100"


def test_the_report_of_a_run_holds_its_figures(finished: Any) -> None:
    folder, summary, _ = finished
    html = folder.report.read_text()
    for text in (
        f"{summary.accuracy:.2f} %",
        f"dense {summary.dense_accuracy:.2f} %",
        f"{summary.zeros:,} of {summary.weights:,} weights",
        f"{summary.macs:,}",
        "shrinkage train &lt;&amp;&gt;",
        "λ against |w|",
        "1.weight",
        *summary.versions.values(),
    ):
        assert text in html, text
    assert "http" not in html
