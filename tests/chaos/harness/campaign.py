"""Many runs, one after the other, until so many faults have been done. A tally in a file lets it go on later."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from rich.progress import Progress

from tests.chaos.harness.cluster import Brokers
from tests.chaos.harness.episode import Result, run_episode
from tests.chaos.harness.plan import Guarantee, Platform, draw_plan

FAULTS_A_RUN = (40, 80)
_BROKERS_LAST_RUNS = 10
"""A cluster is made anew after so many runs, so that what they left behind does not slow the later ones."""
_GIVE_UP = 3
_SLOW_S = 20.0
"""With one fault at a time a recovery past this is worth a look: the history stays."""


@dataclass(slots=True)
class Tally:
    """What has been done for one guarantee and one seed; kept in a file between runs."""

    guarantee: str
    seed: int
    replicas: tuple[int, int]
    partitions: tuple[int, int]
    apart_s: float = 0.0
    """Rest after each fault, with one at a time; 0: several at once."""
    platform: tuple[Platform, ...] = ()
    """What of the machine its faults used; see `plan.Plan`."""
    episodes: int = 0
    seconds: float = 0.0
    inputs: int = 0
    lost: int = 0
    duplicates: int = 0
    phantoms: int = 0
    uncommitted: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    """By kind."""
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    """By kind."""
    exits: dict[str, int] = field(default_factory=dict)
    good_letters: dict[str, int] = field(default_factory=dict)
    broken: list[dict[str, Any]] = field(default_factory=list)
    """Of each run that broke a promise: its seed, folder, violations and stories."""

    @property
    def done(self) -> int:
        """How many faults."""
        return sum(self.faults.values())

    def add(self, result: Result) -> None:
        """One more run."""
        self.episodes += 1
        self.seconds = round(self.seconds + result.seconds, 1)
        self.inputs += result.inputs
        self.lost += result.lost
        self.duplicates += result.duplicates
        self.phantoms += result.phantoms
        self.uncommitted += result.uncommitted
        self.faults = dict(Counter(self.faults) + Counter(kind for kind, _ in result.faults))
        times = defaultdict(list, self.recoveries_s)
        for kind, recovery_s in result.faults:
            if recovery_s is not None:
                times[kind].append(recovery_s)
        self.recoveries_s = dict(times)
        self.exits = dict(Counter(self.exits) + Counter(result.exits))
        self.good_letters = dict(Counter(self.good_letters) + Counter(result.good_letters))
        if not result.kept:
            self.broken.append(
                {
                    "seed": result.seed,
                    "folder": result.folder,
                    "violations": list(result.violations[:20]),
                    "stories": list(result.stories),
                }
            )


def load_tally(path: Path) -> Tally:
    """What an earlier run left."""
    found = json.loads(path.read_text())
    pairs = {name: tuple(found[name]) for name in ("replicas", "partitions", "platform") if name in found}
    return Tally(**found | pairs)


def tally_path(folder: Path, guarantee: str, seed: int, *, apart_s: float = 0.0) -> Path:
    """Where a campaign keeps its tally."""
    return folder / f"{guarantee}-{seed}{'-apart' if apart_s else ''}" / "tally.json"


class Campaign:
    """Runs of one guarantee and seed in `folder/GUARANTEE-SEED`, or `-apart` where there is one fault at a time."""

    def __init__(
        self,
        guarantee: Guarantee,
        seed: int,
        *,
        replicas: tuple[int, int],
        partitions: tuple[int, int],
        folder: Path,
        photographs: Sequence[Path],
        apart_s: float = 0.0,
        platform: tuple[Platform, ...] = (),
    ) -> None:
        self._guarantee = guarantee
        self._path = tally_path(folder, guarantee, seed, apart_s=apart_s)
        self._folder = self._path.parent
        self._photographs = photographs
        self.tally = Tally(guarantee, seed, replicas, partitions, apart_s, platform)
        if self._path.exists():
            found = load_tally(self._path)
            if (found.replicas, found.partitions, found.apart_s) != (replicas, partitions, apart_s):
                raise SystemExit(
                    f"{self._path} is of other sizes ({found.replicas}, {found.partitions}): another --folder"
                )
            if found.platform != platform:
                begun = ",".join(found.platform) or "none"
                raise SystemExit(f"{self._path} is of another platform: --platform {begun} goes on with it")
            self.tally = found

    def run(self, faults: int, progress: Progress, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Until so many faults are done in all, earlier runs' included. A broken promise does not end it.

        Raises:
            RuntimeError: several runs one after the other could not be finished.
        """
        task = progress.add_task(f"{self._guarantee}", total=faults, completed=min(self.tally.done, faults))
        given_up = 0
        while self.tally.done < faults:
            with Brokers(self.tally.platform) as brokers:
                for _ in range(_BROKERS_LAST_RUNS):
                    if self.tally.done >= faults:
                        break
                    if not self._one(brokers, faults - self.tally.done, progress, task, say):
                        given_up += 1
                        break  # whatever state the brokers are in
                    given_up = 0
            if given_up >= _GIVE_UP:
                raise RuntimeError(f"{given_up} runs could not be finished, the last of them: {self.tally.broken[-1]}")

    def _one(self, brokers: Brokers, left: int, progress: Progress, task: Any, say: Callable[[str], None]) -> bool:
        """One run. False where it could not be finished: that counts as broken, and its faults are not counted."""
        tally = self.tally
        number = tally.episodes
        seed = random.Random(f"campaign {tally.seed} {number}").randrange(1_000_000_000)
        how_many = min(random.Random(f"faults {seed}").randint(*FAULTS_A_RUN), left)
        plan = draw_plan(
            self._guarantee,
            seed,
            how_many,
            replicas=tally.replicas,
            partitions=tally.partitions,
            apart_s=tally.apart_s,
            platform=tally.platform,
        )
        about = f"run {number} (seed {seed}, {plan.replicas} replicas, {plan.partitions} partitions)"
        progress.update(task, description=f"{self._guarantee}: {about}")
        folder = self._folder / f"run-{number:04d}"
        try:
            result = run_episode(plan, brokers, folder, self._photographs)
        except (AssertionError, TimeoutError, RuntimeError, KafkaException) as error:
            tally.episodes += 1
            tally.broken.append(
                {"seed": seed, "folder": str(folder), "violations": [f"could not be finished: {error}"], "stories": []}
            )
            self._save()
            say(f"{about} could not be finished: {error}")
            return False
        tally.add(result)
        self._save()
        progress.update(task, completed=tally.done)
        for text in result.stories:
            say(text)
        slow = tally.apart_s and any((recovery_s or 0.0) > _SLOW_S for _, recovery_s in result.faults)
        if result.kept and not slow:
            _lighten(folder, logs=not result.exits)
        return True

    def _save(self) -> None:
        self._path.write_text(json.dumps(asdict(self.tally), indent=1) + "\n")


def _lighten(folder: Path, *, logs: bool) -> None:
    """Of a run that kept every promise its plan and its result stay; and its logs, where a replica ended by itself."""
    for path in folder.iterdir():
        if path.name not in {"plan.json", "result.json"} and (logs or path.suffix != ".log"):
            path.unlink()
