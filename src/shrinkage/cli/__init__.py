"""The command ``shrinkage``."""

import sys


def main() -> None:
    """Run the command line; says what to install where only the core is."""
    try:
        from shrinkage.cli.app import app
    except ImportError as error:
        sys.exit(f'the command line needs more packages ({error}): pip install "shrinkage[train]"')
    app(prog_name="shrinkage")
