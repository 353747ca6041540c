"""The `sluice mock-openai` command."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from sluice_cli.mock.faults import Fault, parse_faults
from sluice_cli.mock.limiter import ModelLimit
from sluice_cli.mock.server import MockOpenAI

_LIMIT_NAMES = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "rpd": "requests_per_day",
    "project-tpm": "project_tokens_per_minute",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Serve a mock OpenAI API. The first line printed is the base URL. Faults can also be ordered while it runs:"
        " PUT, POST or DELETE /mock/faults, or the request header x-mock-fault."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="YAML or JSON file with a list of faults")
    parser.add_argument(
        "--limits",
        action="append",
        default=[],
        metavar="MODEL:rpm=N,tpm=N",
        help="limits of the models that a glob matches; of rpm, tpm, rpd, project-tpm; may be repeated",
    )
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="NAME=SECRET",
        help="a valid key and the name it is booked under; may be repeated (default: any sk-...)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: %(default)s)")
    parser.add_argument("--stable", action="store_true", help="give equal requests equal ids and times")


def parse_limit(written: str) -> ModelLimit:
    """Read `MODEL:rpm=N,tpm=N`; `ValueError` when it is none."""
    model, colon, rest = written.rpartition(":")
    if not colon or not model:
        raise ValueError(f"not a limit (MODEL:rpm=N,tpm=N): {written!r}")
    fields: dict[str, int] = {}
    for part in rest.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in _LIMIT_NAMES or not value.strip().isdigit():
            raise ValueError(f"not a limit (MODEL:rpm=N,tpm=N): {written!r}")
        fields[_LIMIT_NAMES[name.strip()]] = int(value)
    return msgspec.convert({"model": model, **fields}, type=ModelLimit)


def parse_key(written: str) -> tuple[str, str]:
    """Read `NAME=SECRET`; `ValueError`, which does not repeat it, when it is none."""
    name, _, secret = written.partition("=")
    if not name or not secret:
        raise ValueError("not a key (NAME=SECRET)")
    return name, secret


def read_faults(path: Path) -> list[Fault]:
    """Read a file of faults; `ValueError` or `OSError` when that cannot be."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return parse_faults(msgspec.json.decode(text))
    import yaml

    try:
        return parse_faults(yaml.safe_load(text) or [])
    except yaml.YAMLError as exc:
        raise ValueError(f"{path}: {exc}") from exc


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    try:
        mock = MockOpenAI(
            host=args.host,
            port=args.port,
            faults=read_faults(args.faults) if args.faults is not None else (),
            limits=[parse_limit(written) for written in args.limits],
            keys=dict(parse_key(written) for written in args.key) if args.key else None,
            seed=args.seed,
            stable=args.stable,
        )
        uvloop.run(_serve(mock))
    except (OSError, ValueError, msgspec.MsgspecError) as exc:
        print(f"sluice mock-openai: {exc}", file=sys.stderr)
        return 2
    return 0


async def _serve(mock: MockOpenAI) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with mock:
        print(mock.base_url, flush=True)
        await stopped.wait()
