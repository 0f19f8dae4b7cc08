"""How the documentation is built: ``sphinx-build -W -b html docs docs/_build/html``, without network."""

import re
import sys
from pathlib import Path
from typing import Any

from shrinkage import __version__
from shrinkage.core.options import STEERED
from shrinkage.core.schedules import INTERVAL
from shrinkage.penalties.halo import ADAM, EVERY, HALOPull

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "shrinkage"
author = "The shrinkage developers"
copyright = "The shrinkage developers, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "generated"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
# Defaults that the text names, from the code that has them.
myst_substitutions = {
    "interval": str(INTERVAL),
    "every": str(EVERY),
    "start": f"{STEERED['start']:.0%}".replace("%", " %"),
    "end": f"{STEERED['end']:.0%}".replace("%", " %"),
    "power": f"{HALOPull().power:g}",
    "adam_power": f"{ADAM.power:g}",
    "decay": f"{HALOPull().decay:g}",
    "bias": f"{HALOPull().bias:g}",
    "smallest": f"{HALOPull().smallest:g}",
}

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_rtype = False

html_theme = "furo"
html_title = "shrinkage"
html_static_path = ["_static"]
html_extra_path = ["extra"]
html_css_files = ["math.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
exclude_patterns = ["_build", "_ext", "extra"]


def _bars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """In docstrings |w| is a size; reStructuredText would take it for a substitution."""
    for i, line in enumerate(lines):
        if "math::" not in line and not line.lstrip().startswith(">>>"):
            parts = re.split(r"(:math:`[^`]*`|``[^`]*``)", line)
            lines[i] = "".join(part if k % 2 else part.replace("|", r"\|") for k, part in enumerate(parts))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _bars)
