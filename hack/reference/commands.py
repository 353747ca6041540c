"""The page of the command line: every verb and option, from the argument parsers themselves."""

from __future__ import annotations

import argparse
import importlib

from reference.markdown import code, table
from reference.markdown import page as whole_page
from sluice_cli.main import VERBS


def page() -> str:
    """Return the page."""
    return whole_page(
        "Command line",
        "`sluice VERB`, also installed as `kubectl sluice VERB`. Exit status: 0 done, 1 the answer is no (a manifest "
        "is wrong, no such record), 2 it could not be done.",
        *(part for verb in VERBS for part in _verb(verb)),
    )


def _verb(verb: str) -> tuple[str, ...]:
    module, summary = VERBS[verb]
    parser = argparse.ArgumentParser(prog=f"sluice {verb}")
    parser.set_defaults(verb=verb)
    importlib.import_module(module).add_arguments(parser)
    rows = [_row(action) for action in parser._actions if action.dest != "help"]  # noqa: SLF001  argparse has no other way
    told = [part.replace("%%", "%") for part in (parser.description, parser.epilog) if part]
    options = [table(("Argument", "Default", "Meaning"), rows)] if rows else []
    return (f"## sluice {verb}", f"{summary[0].upper()}{summary[1:]}.", *options, *told)


def _row(action: argparse.Action) -> tuple[str, str, str]:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        metavar = "|".join(map(str, action.choices))
    if not action.option_strings:
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        return code(f"[{name}]" if action.nargs == "?" else name), "", _help(action)
    names = ", ".join(action.option_strings)
    written = names if action.nargs == 0 else f"{names} [{metavar}]" if action.nargs == "?" else f"{names} {metavar}"
    shown = action.default not in (None, False, []) and action.nargs != "?"
    return code(written), code(action.default) if shown else "required" if action.required else "", _help(action)


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace(" (default: %(default)s)", "").replace("%%", "%")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
