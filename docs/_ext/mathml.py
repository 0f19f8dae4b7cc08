"""Formulas as MathML, which browsers draw by themselves: nothing is fetched, and no script runs.

The translation from TeX is docutils' own. What it cannot translate stops the build.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx


def translate(tex: str, *, as_block: bool) -> str:
    """MathML, with bars set close to what they enclose and not like an operator between two terms.

    Braces stay as high as the line, and a minus behind an opening one belongs to the number.
    Norms and absolute values become one term, so that an exponent is that of the whole and not of the bar before it.
    """
    whole = re.sub(r"\\l([Vv])ert\b(.*?)\\r\1ert\b", r"{\\l\1ert\2\\r\1ert}", tex)
    mathml: str = tex2mathml(whole, as_block=as_block)
    mathml = mathml.replace('<mo stretchy="false">|</mo>', '<mo stretchy="false" lspace="0" rspace="0">|</mo>')
    mathml = re.sub(r"<mo>([{}])</mo>", r'<mo stretchy="false">\1</mo>', mathml)
    return re.sub(r"(<mo[^>]*>[({]</mo>\s*)<mo>−</mo>", r'\1<mo form="prefix">−</mo>', mathml)


def inline(writer: Any, node: nodes.math) -> None:
    """A formula in a line of text."""
    writer.body.append(translate(node.astext(), as_block=False))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """A formula that stands by itself; several lines are aligned at their ampersands."""
    tex = node.astext()
    if "\\\\" in tex and "\\begin" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    writer.body.append(f'<div class="math-block">{translate(tex, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
