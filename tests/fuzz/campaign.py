"""`make fuzz`: damaged messages through parser and decoder, to a count.

    python -m tests.fuzz.campaign --count 1000000

A child does the work, so that a crash or a stall ends the child and not the count: its culprit is written out, and a
new child goes on behind it. Everything follows from the seeds, so a count that was stopped goes on where it was, and
`--seed N --count 1` does one again. Exits 1 where anything was found.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz import corpus
from tests.fuzz.mutate import mutated
from tests.fuzz.worker import STALL_CPU_S, STATE

CHUNK = 20_000
"""Seeds of one child; what is resumed from."""
HUNG_S = 120.0
"""Wall time without CPU time after which a child is given up, too."""
_LOOK_S = 0.1


@dataclass
class Tally:
    """What has been done; kept in a file between runs."""

    next_seed: int = 0
    count: int = 0
    seconds: float = 0.0
    crashes: int = 0
    stalls: int = 0
    memory: int = 0
    exceptions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def found(self) -> int:
        """How many culprits there are."""
        return self.crashes + self.stalls + self.memory + self.exceptions

    def line(self) -> str:
        """For people."""
        rate = self.count / self.seconds if self.seconds else 0.0
        became = ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common())
        return (
            f"{self.count} messages, {self.crashes} crashes, {self.stalls} stalls, {self.memory} of too much memory, "
            f"{self.exceptions} undeclared exceptions, {rate:.0f} messages/s ({became})"
        )


class Campaign:
    """Children one after the other, until `count` messages have been tried."""

    def __init__(self, folder: Path, tally: Tally, count: int, *, give_up_s: float) -> None:
        self._folder = folder
        self.tally = tally
        self._count = count
        self._give_up_s = give_up_s
        self._bodies: list[bytes] = []

    def run(self, progress: Progress) -> None:
        """Raises nothing for what is found: it is in the tally and in the folder."""
        task = progress.add_task("fuzz", total=self._count, completed=self.tally.count)
        while self.tally.count < self._count:
            self._child(min(CHUNK, self._count - self.tally.count), progress, task)
            self.save()

    def save(self) -> None:
        """So that the next run goes on here."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "tally.json").write_text(json.dumps(vars(self.tally), indent=1) + "\n")

    def _child(self, number: int, progress: Progress, task: object) -> None:
        tally, first, began_s = self.tally, self.tally.next_seed, time.monotonic()
        with (
            tempfile.NamedTemporaryFile() as state,
            tempfile.TemporaryFile("w+") as said,
            tempfile.TemporaryFile("w+") as stderr,
        ):
            state.write(STATE.pack(first, 0))
            state.flush()
            command = [sys.executable, "-m", "tests.fuzz.worker", state.name, str(first), str(first + number)]
            child = subprocess.Popen(command, stdout=said, stderr=stderr)
            stalled = self._watch(child, Path(state.name), first, progress, task)
            stderr.seek(0)
            complaint = stderr.read()[-20_000:]
            seed, done = STATE.unpack(Path(state.name).read_bytes())
            said.seek(0)
            for line in said:
                self._note(json.loads(line))
        tally.seconds += time.monotonic() - began_s
        if child.returncode != 0:
            kind = "stalls" if stalled else "crashes"
            setattr(tally, kind, getattr(tally, kind) + 1)
            self._keep(kind.removesuffix("s"), seed, f"exit status {child.returncode}\n{complaint}")
            tally.outcomes[kind] += 1
            done += 1
        tally.count += done
        tally.next_seed = first + done
        progress.update(task, completed=tally.count)  # type: ignore[arg-type]

    def _watch(
        self, child: "subprocess.Popen[bytes]", state: Path, first: int, progress: Progress, task: object
    ) -> bool:
        """Until the child has ended; True where it was ended for a stall. CPU time counts: the machine may be busy."""
        process, seen, cpu_s, since_s = psutil.Process(child.pid), -1, 0.0, time.monotonic()
        while child.poll() is None:
            time.sleep(_LOOK_S)
            seed, done = STATE.unpack(state.read_bytes())
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            now_cpu_s = times.user + times.system
            if seed != seen or seed == first:  # the first one's includes the start
                seen, cpu_s, since_s = seed, now_cpu_s, time.monotonic()
                progress.update(task, completed=self.tally.count + done)  # type: ignore[arg-type]
            elif now_cpu_s - cpu_s > self._give_up_s or time.monotonic() - since_s > HUNG_S:
                child.kill()
                child.wait()
                return True
        return False

    def _note(self, line: dict[str, object]) -> None:
        kind = str(line["kind"])
        if kind == "done":
            outcomes = line["outcomes"]
            assert isinstance(outcomes, dict)
            self.tally.outcomes.update(outcomes)
            return
        name = {"exception": "exceptions", "stall": "stalls"}.get(kind, kind)
        setattr(self.tally, name, getattr(self.tally, name) + 1)
        self._keep(kind, int(str(line["seed"])), f"{line['sample']}\n{line['text']}")

    def _keep(self, kind: str, seed: int, text: str) -> None:
        """The culprit, and what is known of it."""
        self._bodies = self._bodies or [body for _name, body in [*corpus.images(), *corpus.messages()]]
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{kind}-{seed}.bin").write_bytes(mutated(seed, self._bodies)[1])
        (self._folder / f"{kind}-{seed}.txt").write_text(text)


def load(folder: Path) -> Tally:
    """The tally of an earlier run; a new one where there is none."""
    path = folder / "tally.json"
    if not path.exists():
        return Tally()
    found = json.loads(path.read_text())
    return Tally(**found | {"outcomes": Counter(found["outcomes"])})


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="messages in all, earlier runs' included")
    parser.add_argument("--seed", type=int, help="begin anew at this seed")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for the tally and the culprits")
    give_up = "seconds of CPU on one message after which its child is ended"
    parser.add_argument("--give-up-s", type=float, default=5 * STALL_CPU_S, help=give_up)
    options = parser.parse_args()
    tally = load(options.folder) if options.seed is None else Tally(next_seed=options.seed)
    campaign = Campaign(options.folder, tally, options.count, give_up_s=options.give_up_s)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        campaign.run(progress)
    sys.stdout.write(tally.line() + "\n")
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
