"""`python -m benchmarks.growth CURVE`: measure, note, draw. `redraw`, `tables`, `planner`: without measuring."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.growth import planner, tables
from benchmarks.growth.curve import Curve, Found, document, say
from benchmarks.growth.curves import CURVES
from benchmarks.growth.draw import draw
from benchmarks.harness import ROOT
from consumer.errors import OuzelError

DOCS = ROOT / "docs"
QUICK = ROOT / "build" / "growth"
_ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 with why, and after a soak in which an image was lost, doubled or refused."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    out: Path = options.out or (QUICK if getattr(options, "quick", False) else DOCS)
    try:
        if options.do == "redraw":
            for curve in CURVES.values():
                if figures_path(out, curve).exists():
                    redraw(curve, out)
        elif options.do == "tables":
            tables.write(out, CURVES)
        elif options.do == "planner":
            sys.stdout.write(planner.page(json.loads(options.bench.read_text()), planner.asked(options)) + "\n")
        else:
            return _curve(CURVES[options.do], options, words, out)
    except (OuzelError, ValueError) as error:
        remedy = getattr(error, "remedy", "")
        say(f"{error}{f'; {remedy}' if remedy else ''}")
        return 1
    return 0


def _curve(curve: Curve, options: argparse.Namespace, words: Sequence[str], out: Path) -> int:
    if not options.redraw:
        options.rounds = options.rounds or (1 if options.quick else _ROUNDS)
        found = document(curve, curve.measure(options), words)
        path = figures_path(out, curve)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        say(f"figures: {path}")
    return 0 if redraw(curve, out).get("counted", {}).get("nothing_lost", True) else 1


def figures_path(out: Path, curve: Curve) -> Path:
    """Where a curve's points are."""
    return out / "figures" / f"growth-{curve.name}.json"


def picture_path(out: Path, curve: Curve) -> Path:
    """Where its picture is."""
    return out / "images" / f"growth-{curve.name}.svg"


def redraw(curve: Curve, out: Path) -> Found:
    """The picture from the points, which it returns."""
    path = picture_path(out, curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    found: Found = json.loads(figures_path(out, curve).read_text())
    draw(curve, found, path)
    say(f"picture: {path}")
    for row in curve.table(found):
        say(" | ".join(row))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(quick=False)
    whats = parser.add_subparsers(dest="do", required=True, metavar="WHAT")
    for curve in CURVES.values():
        one = whats.add_parser(curve.name, help=curve.says)
        one.add_argument(
            "--out", type=Path, help="folder; docs, or build/growth with --quick: figures/ and images/ in it"
        )
        one.add_argument("--quick", action="store_true", help="under a minute: few points, one round, coarse figures")
        one.add_argument("--redraw", action="store_true", help="only the picture, from the figures that are there")
        one.add_argument("--rounds", type=int, help=f"in which points take turns; {_ROUNDS}")
        one.add_argument("--sizes", nargs="+", type=float, help="the points on the x axis, where there are such")
        one.add_argument("--images", type=int, help="of a backlog, where it is not the x axis")
        one.add_argument("--seconds", type=float, default=10.0, help="of each backlog (image-size)")
        one.add_argument("--series", choices=["null", "model"], help="only this one (backlog)")
        one.add_argument("--minutes", type=float, help="of a soak; 60")
        one.add_argument("--rate", type=float, help="images/s of a soak; half of what the service does on a backlog")
    for name, says in (
        ("redraw", "all pictures, from the figures that are there"),
        ("tables", "all tables of the docs"),
    ):
        one = whats.add_parser(name, help=says)
        one.add_argument("--out", type=Path, help="folder; docs")
    one = whats.add_parser("planner", help="replicas, partitions, network and cost by load, from a bench's JSON")
    one.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    planner.add_options(one)
    return parser


if __name__ == "__main__":
    sys.exit(main())
