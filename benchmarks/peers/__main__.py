"""Ouzel beside its peers: the same model, images, decode and cores. See benchmarks/peers/README.md.

Run `environments` once, then any of the figures. Every figure is a ratio within a round; whoever is compared takes
turns, and the order moves on each round.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.peers import environments, figures
from benchmarks.peers.peers import PEERS
from benchmarks.peers.report import Report
from benchmarks.peers.work import Pair, PeerError
from consumer.adapters.cpu_flags import BF16, cpu_flags
from tests.kafka_broker import KafkaUnavailable

FIGURES: dict[str, Callable[[argparse.Namespace], Report]] = {
    "check": figures.check,
    "tune": figures.tune,
    "throughput": figures.throughput,
    "photographs": figures.photographs,
    "latency": figures.latency,
    "promises": figures.promises,
}


def main() -> None:
    """Parse, run, and show."""
    arguments = _parser().parse_args()
    errors = Console(stderr=True)
    # Whoever ends this ends the servers that it started, too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        if arguments.command == "environments":
            for name in arguments.names or environments.names():
                errors.print(f"environment {name}")
                environments.make(name, resolve=arguments.resolve)
            return
        arguments.pair = _pair(arguments)
        report = FIGURES[arguments.command](arguments)
    except (PeerError, KafkaUnavailable) as error:
        errors.print(f"{arguments.command}: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    _show(report, arguments)
    if not report.good:
        raise SystemExit(1)


def _pair(arguments: argparse.Namespace) -> Pair:
    if arguments.precision == "bf16" and not BF16 & set(cpu_flags()):
        raise PeerError("this CPU has neither avx512_bf16 nor amx_bf16, and would only run slower")
    if arguments.precision != "f32" and arguments.runtime != "openvino":
        raise PeerError(f"{arguments.precision} is compared on OpenVINO only")
    return Pair(arguments.runtime, arguments.precision)


def _show(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.markdown:
        sys.stdout.write(report.markdown())
    elif sys.stdout.isatty() or arguments.json:
        Console(width=None if sys.stdout.isatty() else 150).print(report.table())
    else:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = commands.add_parser("environments", help="make a virtual environment for each peer, below build/peers/")
    made.add_argument("names", nargs="*", help="only these")
    made.add_argument("--resolve", action="store_true", help="resolve anew from the .in files, and write the pins")
    helps = {
        "check": "that all servers give the same first label for the same images",
        "tune": "search each peer's best settings, and write them to settings.json",
        "throughput": "images/s and CPU-ms an image, Ouzel over each peer",
        "photographs": "five photographs through Kafka over the plain script's time for them",
        "latency": "p99 at 70 %% of Ouzel's images/s, Ouzel and LitServe at the same rate",
        "promises": "kill -9 in the midst, and bad messages: what Ouzel and MLServer's Kafka mode lose",
    }
    for name, text in helps.items():
        each = commands.add_parser(name, help=text)
        each.add_argument("--runtime", choices=["openvino", "tensorflow"], default="openvino", help="of both sides")
        each.add_argument("--precision", choices=["f32", "bf16", "int8"], default="f32", help="of both sides")
        each.add_argument("--peers", nargs="+", choices=list(PEERS), default=None, help="only these (default: all)")
        each.add_argument("--rounds", type=int, default=3 if name != "photographs" else 20, help="turns of each")
        each.add_argument("--images", type=int, default=0, help="images in a measurement")
        each.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")
        each.add_argument("--markdown", action="store_true", help="print the table for the documents")
        if name == "latency":
            each.add_argument("--rate", type=float, default=0.0, help="images/s (default: measure, and take 70 %%)")
    return parser


if __name__ == "__main__":
    main()
