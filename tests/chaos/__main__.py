"""`make chaos`: random faults on a cluster of three brokers, until so many have been done.

    python -m tests.chaos --guarantee at_least_once --seed 1 --faults 1000
    python -m tests.chaos replay build/chaos/at_least_once-1/run-0003/plan.json
    python -m tests.chaos bugs

Everything that is drawn follows from the seed and the platform; what processes and networks make of it does not. A
campaign that was stopped goes on where it was. Exits 1 where a promise was broken, or a seeded bug was not caught.

Some faults ask for more than processes: network namespaces (replicas and brokers unplugged, brokers cut off from each
other) and small disks that can be filled, which root may make; and processes with a wall clock of their own, for which
there must be a C compiler. `--platform auto` takes what this machine has, and says what it leaves out.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.chaos.harness import platform, report
from tests.chaos.harness.campaign import Campaign, load_tally, tally_path
from tests.chaos.harness.cases import CASES
from tests.chaos.harness.cluster import Brokers
from tests.chaos.harness.episode import run_episode
from tests.chaos.harness.plan import PLATFORM, Guarantee, Platform, load_plan
from tests.photographs import write_small

_console = Console(stderr=True)


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("run", "replay", "bugs"), default="run")
    parser.add_argument("what", nargs="*", help="replay: a plan.json; bugs: names, all where there are none")
    parser.add_argument("--guarantee", choices=get_args(Guarantee), default="at_least_once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1000, help="in all, earlier runs' included")
    parser.add_argument("--replicas", type=_bounds, default=(1, 6), help="drawn for each run: 1-6")
    parser.add_argument("--partitions", type=_bounds, default=(1, 12), help="drawn for each run: 1-12")
    parser.add_argument("--apart-s", type=float, default=0.0, help="one fault at a time, and so long a rest after each")
    parser.add_argument(
        "--platform", default="auto", help=f"for faults that ask for it: auto, none, or some of {','.join(PLATFORM)}"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="for tallies, plans and histories")
    parser.add_argument("--json", action="store_true", help="figures for programs, on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="photographs-") as scratch:
        photographs = write_small(Path(scratch))
        if options.command == "replay":
            return _replay(Path(options.what[0]), photographs)
        if options.command == "bugs":
            return _bugs(options.what, options.folder / "bugs", photographs)
        return _run(options, photographs)


def _bounds(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    found = int(low), int(high or low)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text} is no range of numbers from 1 on")
    return found


def _run(options: argparse.Namespace, photographs: list[Path]) -> int:
    campaign = Campaign(
        options.guarantee,
        options.seed,
        replicas=options.replicas,
        partitions=options.partitions,
        folder=options.folder,
        photographs=photographs,
        apart_s=options.apart_s,
        platform=_platform(options),
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console) as progress:
        campaign.run(options.faults, progress, say=lambda text: progress.console.print(text, markup=False))
    if options.json:
        sys.stdout.write(json.dumps(report.figures(campaign.tally), indent=1) + "\n")
    else:
        Console().print(report.table(campaign.tally))
    return 1 if campaign.tally.broken else 0


def _platform(options: argparse.Namespace) -> tuple[Platform, ...]:
    """A campaign goes on with what it began with."""
    earlier = tally_path(options.folder, options.guarantee, options.seed, apart_s=options.apart_s)
    if options.platform != "auto":
        return platform.chosen(options.platform)
    if earlier.exists():
        found = load_tally(earlier).platform
        platform.require(found, str(earlier))
        return found
    _console.print("\n".join(platform.told()), markup=False)
    return platform.possible()


def _replay(path: Path, photographs: list[Path]) -> int:
    """The same plan once more, in a folder beside it."""
    folder = path.parent.with_name(f"{path.parent.name}-again")
    plan = load_plan(path)
    platform.require(plan.platform, str(path))
    with Brokers(plan.platform) as brokers:
        shutil.rmtree(folder, ignore_errors=True)
        result = run_episode(plan, brokers, folder, photographs, say=_console.print)
    for text in result.stories:
        _console.print(text, markup=False)
    counts = replace(result, stories=(), faults=())
    sys.stdout.write(f"{counts}\n")
    return 0 if result.kept else 1


def _bugs(names: list[str], folder: Path, photographs: list[Path]) -> int:
    """Each seeded bug, by the smallest schedule that shows it, and that schedule without the bug."""
    missed = []
    with Brokers() as brokers:
        for case in CASES:
            if names and case.name not in names:
                continue
            for planted in (True, False):
                shutil.rmtree(folder / case.name, ignore_errors=True)
                result = run_episode(case.plan(planted=planted), brokers, folder / case.name, photographs)
                broken = ", ".join(result.promises) or "nothing"
                well = case.catches(result) if planted else result.kept
                what = "caught" if planted and well else "kept" if well else "MISSED" if planted else "FALSE ALARM"
                _console.print(
                    f"{case.name:32} {'planted' if planted else 'without':8} {what}: {broken} broken"
                    f" in {result.seconds:.0f} s",
                    markup=False,
                )
                if not well:
                    missed.append(case.name)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
