"""The page as a browser and a screen reader meet it."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

from shrinkage.report import Headline, Page, gather, page

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class _Outline(HTMLParser):
    """Collects tags and attributes; fails on a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _rows(epochs: int, sparse: bool) -> list[dict[str, Any]]:
    return [
        {
            "accuracy": 90 + epoch * 5 / epochs,
            "val_accuracy": None,
            "sparsity": 0.9 * (epoch > epochs // 2) if sparse else None,
            "wanted": min(0.9, epoch / epochs) if sparse else None,
            "phase": ("holding" if epoch > epochs // 2 else "shrinking") if sparse else None,
        }
        for epoch in range(1, epochs + 1)
    ]


def _page(**changes: Any) -> Page:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(80, 60), nn.Linear(60, 10))
    with torch.no_grad():
        for layer in (net[0], net[1]):
            layer.weight[layer.weight.abs() < layer.weight.abs().quantile(0.9)] = 0  # type: ignore[union-attr,operator,index]
    names = ["0.weight", "1.weight"]
    sizes = {name: dict(net.named_parameters())[name].detach().abs() for name in names}
    lam = {name: size.pow(1 / 3) + 0.1 for name, size in sizes.items()}
    content: dict[str, Any] = {
        "title": "net <b> on digits & co",
        "method": "HALO",
        "headlines": [Headline("Test accuracy", "95.00 %", "dense 96.00 %, −1.00 points")],
        "rows": _rows(20, sparse=True),
        "dense_rows": _rows(20, sparse=False),
        "figures": gather(net, names, sizes, lam, [torch.randn(200, 80)]),
        "dense_figures": gather(
            nn.Sequential(nn.Linear(80, 60), nn.Linear(60, 10)), names, {}, {}, [torch.randn(200, 80)]
        ),
        "size": "|w|",
        "footprint": (["Layer", "Bytes"], [["0", "1,000"], ["total", "1,000"]]),
        "command": "shrinkage train --model 'a<b'",
        "facts": {"Settings": {"lr": "0.1"}, "Versions": {"torch": "2"}},
    }
    return Page(**{**content, **changes})


def _outline(html: str) -> _Outline:
    outline = _Outline()
    outline.feed(html)
    outline.close()
    assert outline.open == []
    return outline


def test_the_page_is_well_formed_and_complete() -> None:
    html = page(_page())
    outline = _outline(html)
    assert html.startswith("<!doctype html>")
    assert outline.tags.count("svg") == 6
    for text in (
        "net <b> on digits & co", "Test accuracy", "95.00 %", "Accuracy", "Sparsity", "λ against |w|",
        "Weights that are left", "Zeros in each layer", "0.weight", "Footprint", "1,000",
        "Directions that layers use", "of 60 directions", "10⁻⁶",
        "shrinkage train --model 'a<b'", "Settings", "Versions", "epoch", "accuracy, %", "zeros, %",
    ):  # fmt: skip
        assert text in outline.text, text


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    html = page(_page())
    outline = _outline(html)
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in outline.attributes}
    assert "http" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) == {"#clip-accuracy", "#clip-sparsity"}


def test_every_drawing_has_a_text_alternative() -> None:
    drawings = re.findall(r"<svg.*?</svg>", page(_page()), re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        assert re.match(r'<svg [^>]*role="img"[^>]*><title>[^<]+</title><desc>[^<]+</desc>', drawing)


def test_light_dark_and_narrow_are_provided_for() -> None:
    html = page(_page())
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport" content="width=device-width' in html
    assert 'class="scroll"' in html
    colours = r"(?:fill|stroke)=\"(?!none)[#a-z]"
    assert not re.search(colours, html), "a colour that does not follow the theme"


def test_the_page_stays_small_in_a_long_training_of_a_large_network() -> None:
    net = nn.Linear(500, 400)
    wide = [torch.randn(1000, 500)]
    sizes = {"weight": net.weight.detach().abs()}
    figures = gather(net, ["weight"], sizes, {"weight": sizes["weight"] + 1}, wide)
    html = page(
        _page(figures=figures, dense_figures=figures, rows=_rows(300, sparse=True), dense_rows=_rows(300, sparse=False))
    )
    assert len(html.encode()) < 400_000


@pytest.mark.parametrize("epochs", [1, 2])
def test_short_trainings(epochs: int) -> None:
    html = page(_page(rows=_rows(epochs, sparse=True), dense_rows=[]))
    _outline(html)
    assert "nan" not in html


def test_what_is_not_there_is_not_drawn() -> None:
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.zero_()
    blank = gather(net, ["weight"], {}, {}, [torch.randn(9, 4)])
    html = page(_page(figures=blank, dense_figures=None, rows=_rows(3, sparse=False), command=""))
    outline = _outline(html)
    assert outline.tags.count("svg") == 1
    assert "Command" not in outline.text
    assert "Directions" not in outline.text
