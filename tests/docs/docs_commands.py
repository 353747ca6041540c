"""Checks shell commands without running them: verbs, options, files and names that they mention must exist."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise

import yaml
from docs_pages import ROOT

from sluice_cli.main import VERBS
from sluice_core.api.base import GROUP
from sluice_core.api.crd import KINDS
from sluice_core.rollout.requests import Verb

STARTED = ("dev", "demo", "mock-openai")
"""Verbs that go on until they are stopped: their arguments are checked, and they are not run here."""

ELSEWHERE = ("kubectl", "helm", "kind", "docker", "make", "pytest", "python", "pip", "git", "cd")
"""Commands that need a cluster, or do what other tests do."""

HARMLESS = ("curl", "sleep", "export", "sed", "tr", "grep", "jq", "cat", "echo")

_IN_TREE = re.compile(r"^(charts|crds|docs|examples|hack|tests|bench)(/|$)")
_KEYS = {"inject", "when-unconfigured", *(verb.value for verb in Verb)}


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a script, assignments before it left out."""
    joined = re.sub(r"(\\|\|)\n\s*", lambda found: "| " if found[1] == "|" else "", script)
    for line in re.sub(r"\$\([^()]*\)", "SUBSTITUTED", joined, flags=re.DOTALL).splitlines():
        command: list[str] = []
        for word in [*_words(line), ";"]:
            if word and set(word) <= set("|&;"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"^\w+=", word):
                command.append(word)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def mistakes(words: list[str]) -> list[str]:
    """Return what is wrong with one command, as sentences."""
    name = words[0].rpartition("/")[2]
    if name == "sluice" or words[:2] == ["kubectl", "sluice"]:
        return _sluice(words[1:] if name == "sluice" else words[2:])
    if name not in (*ELSEWHERE, *HARMLESS) and not _IN_TREE.match(words[0]):
        return [f"{words[0]}: a command that nobody checks"]
    found = [f"{word}: no such file" for word in words if _IN_TREE.match(word) and not (ROOT / word).exists()]
    if name == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        found += [f"make {word}: no such target" for word in words[1:] if word not in targets]
    if name == "kubectl":
        found += [problem for word in words for problem in _name(word)]
    if name == "helm":
        found += [problem for flag, word in pairwise(words) for problem in _value(flag, word)]
    return found


def _sluice(words: list[str]) -> list[str]:
    if not words or words[0] not in VERBS:
        return [f"sluice {' '.join(words)}: no such verb"]
    parser = argparse.ArgumentParser(prog=f"sluice {words[0]}")
    parser.set_defaults(verb=words[0])
    importlib.import_module(VERBS[words[0]][0]).add_arguments(parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(words[1:])
    except SystemExit:
        return [said.getvalue().splitlines()[-1]]
    return [f"{word}: no such file" for word in words if _IN_TREE.match(word) and not (ROOT / word).exists()]


def _name(word: str) -> list[str]:
    if word.endswith(f".{GROUP}") and word not in {kind.crd_name for kind in KINDS}:
        return [f"{word}: no such definition"]
    if word.startswith(f"{GROUP}/"):
        key = re.split(r"[=-]", word.removeprefix(f"{GROUP}/"))[0]
        known = {each.split("-")[0] for each in _KEYS} | {"sidecar"}
        return [] if key in known else [f"{word}: no such label or annotation"]
    return []


def _value(flag: str, setting: str) -> list[str]:
    if flag not in ("--set", "--set-string", "--set-json"):
        return []
    values = yaml.safe_load((ROOT / "charts/sluice/values.yaml").read_text())
    for part in setting.partition("=")[0].split("."):
        name = part.partition("[")[0]
        if not isinstance(values, dict) or (values and name not in values):
            return [f"--set {setting}: no such value"]
        values = values.get(name)
    return []
