"""The figures: what takes turns with what, and which ratio is taken of it."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from rich.console import Console

from benchmarks.harness import PARTITIONS, Follower
from benchmarks.peers import environments, measure
from benchmarks.peers.measure import First, Measured
from benchmarks.peers.peers import PEERS, SETTINGS, Peer
from benchmarks.peers.processes import busy_s, peer_environment
from benchmarks.peers.ratios import Spread, judged, percentile, ratios, short, spread
from benchmarks.peers.report import Report
from benchmarks.peers.work import Pair, PeerError, Work
from consumer import __version__
from consumer.cpu import quota_cores
from tests.kafka_broker import KafkaBroker

_SERVERS = Path(__file__).resolve().parent / "servers"
_SEED = 7
BARE = "bare"
_THROUGHPUT_TARGETS = {"openvino": (1.5, 0.65), "tensorflow": (1.2, 0.85)}
"""images/s and CPU-ms an image, Ouzel over MLServer's Kafka mode."""
_PHOTOGRAPHS_TARGET = 0.45
OUZEL, OUZEL_RAW, OUZEL_SIMD = "ouzel", "ouzel-raw", "ouzel-simd"
_OWN = {
    OUZEL: ("Kafka", "inline", {}),
    OUZEL_RAW: ("Kafka, JPEGs as they are", "raw", {}),
    OUZEL_SIMD: ("Kafka, JPEGs as they are, decode.resizer simd", "raw", {"OUZEL_DECODE__RESIZER": "simd"}),
}
"""Ouzel's own rows: what is said of it, the form of a message, and settings that are no default."""
_SCORES_APART = {"f32": 2e-3, "bf16": 5e-2, "int8": 2e-1}
"""How far the scores of a pair may be from the plain script's, which computes in float32."""

_terminal = Console(stderr=True)


def say(text: str) -> None:
    """A line for whoever waits."""
    _terminal.print(text, markup=False, highlight=False)


def chosen_peers(arguments: argparse.Namespace) -> list[Peer]:
    """Those asked for, all of them by default. Raises PeerError where an environment is missing."""
    peers = [PEERS[name] for name in arguments.peers or PEERS]
    for name in {"driver", "script", *(peer.environment for peer in peers)}:
        environments.python_of(name)
    return peers


def titles(peers: Sequence[Peer]) -> dict[str, str]:
    """With versions, as the tables show them."""
    own = {name: f"Ouzel {__version__}, {says}" for name, (says, _form, _settings) in _OWN.items()}
    for peer in peers:
        name, _, door = peer.title.partition(", ")
        pins = environments.versions(peer.environment, peer.packages)
        more = [f"{package} {version}" for package, version in list(pins.items())[1:]]
        own[peer.name] = f"{name} {next(iter(pins.values()))}, {' with '.join([door, *more])}"
    return own


def runtime_versions(peers: Sequence[Peer], pair: Pair) -> str:
    """Of the runtime and the decoder, which must be one version everywhere."""
    package = {"openvino": "openvino", "tensorflow": "tensorflow-cpu"}[pair.runtime]
    from importlib.metadata import version

    ours = {name: version(name) for name in (package, "pillow", "numpy")}
    for peer in peers:
        theirs = environments.versions(peer.environment, tuple(ours))
        if {name: theirs.get(name) for name in (package, "pillow")} != {
            name: ours[name] for name in (package, "pillow")
        }:
            raise PeerError(f"{peer.title} has {theirs}, and this environment {ours}: make them equal")
    return ", ".join(f"{name} {number}" for name, number in ours.items())


# --- the same labels ------------------------------------------------------------------------------------------------


def check(arguments: argparse.Namespace) -> Report:
    """The first label of the same images by everyone."""
    peers, work = chosen_peers(arguments), Work()
    with KafkaBroker() as node:
        found = firsts(node, work, arguments.pair, peers)
    same = alike(found, arguments.pair)
    names = {"script": "the plain script", **titles(peers)}
    return Report(
        title=f"The first class of each image, {arguments.pair}, model {work.model}",
        columns=["", *(path.stem[:16] for path in work.photographs)],
        rows=[[names[name], *(f"{index}, {score:.3f}" for index, score in each)] for name, each in found.items()],
        notes=["all the same, and their scores" if same else "NOT the same: nothing here may be compared"],
        found={"firsts": found, "same": same},
        good=same,
    )


def firsts(node: KafkaBroker, work: Work, pair: Pair, peers: Sequence[Peer]) -> dict[str, list[First]]:
    """By name; of the plain script, of Ouzel, and of each peer."""
    found: dict[str, list[First]] = {}
    with small_files(work) as paths, script(work) as run:
        found["script"] = [(index, score) for index, score in run(paths)["first"]]
    with measure.ouzel(node, work, pair) as streaming:
        found[OUZEL] = measure.kafka_firsts(node, streaming)
    for peer in peers:
        say(f"{peer.title}: the first labels")
        if peer.door == "kafka":
            with measure.mlserver_kafka(node, work, pair, peer.best(pair)) as streaming:
                found[peer.name] = measure.kafka_firsts(node, streaming)
        else:
            found[peer.name] = measure.http_firsts(peer, work, pair)
    return found


def alike(found: Mapping[str, Sequence[First]], pair: Pair) -> bool:
    """Whether the first classes are the same, and their scores within what the precision explains.

    The plain script computes in float32 always.
    """
    apart = _SCORES_APART[pair.precision]
    reference = found["script"]
    return all(
        index == wanted and abs(score - expected) <= apart
        for each in found.values()
        for (index, score), (wanted, expected) in zip(each, reference, strict=True)
    )


@contextmanager
def small_files(work: Work) -> Iterator[list[Path]]:
    """The 0.3 MP JPEGs as files."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="small-") as folder:
        paths = [Path(folder) / path.name for path in work.photographs]
        for path, body in zip(paths, work.small, strict=True):
            path.write_bytes(body)
        yield paths


@contextmanager
def script(work: Work) -> Iterator[Callable[[Sequence[Path]], dict[str, Any]]]:
    """The plain script, its model loaded: TensorFlow's signature, one image after the other."""
    settings = {**work.peer_settings(Pair("tensorflow")), "threads": 1, "lanes": 1}
    command = [str(environments.python_of("script")), str(_SERVERS / "script.py")]
    with conversation(command, settings) as ask:
        yield lambda paths: ask([str(path) for path in paths])


@contextmanager
def conversation(command: Sequence[str], settings: Mapping[str, Any]) -> Iterator[Callable[[Any], dict[str, Any]]]:
    """A process that answers a line of JSON with another, from when it has said that it is ready."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=peer_environment(settings),
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to_it, from_it = process.stdin, process.stdout

    def answer() -> dict[str, Any]:
        line = from_it.readline()
        if not line:
            raise PeerError(f"{Path(command[-1]).stem} ended with {process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(question: Any) -> dict[str, Any]:
        to_it.write(json.dumps(question) + "\n")
        to_it.flush()
        return answer()

    try:
        answer()
        yield ask
    finally:
        to_it.close()
        process.kill()
        process.wait()
        from_it.close()


# --- images/s and CPU-ms --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """Where measurements are made."""

    node: KafkaBroker
    work: Work
    pair: Pair


def one_throughput(stage: Stage, name: str, images: int, chosen: Mapping[str, Any] | None = None) -> Measured:
    """One measurement of one of them, from a fresh start."""
    node, work, pair = stage.node, stage.work, stage.pair
    if name == BARE:
        return bare(stage, images)
    if name in _OWN:
        _says, form, more = _OWN[name]
        with measure.ouzel(node, work, pair, form=form, more=more) as streaming:
            return measure.kafka_throughput(node, streaming, images)
    peer = PEERS[name]
    settings = peer.best(pair) if chosen is None else chosen
    if peer.door == "kafka":
        with measure.mlserver_kafka(node, work, pair, settings) as streaming:
            return measure.kafka_throughput(node, streaming, images)
    return measure.http_throughput(peer, work, pair, settings, images)


def throughput(arguments: argparse.Namespace) -> Report:
    """Round by round: a fresh start of each, the order moving on."""
    peers, work, pair = chosen_peers(arguments), Work(), arguments.pair
    versions = runtime_versions(peers, pair)
    images = arguments.images or 1_500
    names = [*_OWN, *(peer.name for peer in peers), BARE]
    shown = {**titles(peers), BARE: "decode and inference, no server"}
    rounds: dict[str, list[Measured]] = {name: [] for name in names}
    with KafkaBroker() as node:
        found = firsts(node, work, pair, peers)
        if not alike(found, pair):
            raise PeerError(f"not the same labels, nothing to compare: {found}")
        for number in range(arguments.rounds):
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                measured = one_throughput(Stage(node, work, pair), name, images)
                rounds[name].append(measured)
                say(_line(f"round {number + 1}, {shown[name]}", measured))
    rows, ratio_of = [], {}
    for name in names:
        rate = spread([each.images_per_s for each in rounds[name]])
        cpu = spread([each.cpu_ms for each in rounds[name]])
        over = ratios([each.images_per_s for each in rounds[OUZEL]], [each.images_per_s for each in rounds[name]])
        less = ratios([each.cpu_ms for each in rounds[OUZEL]], [each.cpu_ms for each in rounds[name]])
        ratio_of[name] = (over, less)
        more = statistics.median(1000 * each.driver_cpu_s / each.images for each in rounds[name])
        held = "-" if name == BARE else short(statistics.median(each.resident_mib for each in rounds[name]))
        beside = ["1", "1"] if name == OUZEL else [str(over), str(less)]
        rows.append([shown[name], str(rate), str(cpu), *beside, short(more), held])
    notes = [
        f"{pair}, {versions}; model {work.model}; {images} JPEGs of 640x480 a measurement, {arguments.rounds} rounds",
        "median (least to most); Ouzel's over each, within the round. driver: CPU of the HTTP client, or of the broker",
        *(f"{shown[peer.name]}: {_words(peer.best(pair))}" for peer in peers),
        *_verdicts(ratio_of, rounds, pair),
        _ceiling(rounds),
        _others([each for several in rounds.values() for each in several]),
    ]
    return Report(
        title="Ouzel beside its peers",
        columns=[
            "",
            "images/s",
            "CPU-ms an image",
            "Ouzel's images/s over it",
            "Ouzel's CPU-ms over it",
            "driver CPU-ms",
            "MiB",
        ],
        rows=rows,
        notes=notes,
        found={
            "pair": str(pair),
            "versions": versions,
            "model": work.model,
            "settings": {peer.name: peer.best(pair) for peer in peers},
            "titles": shown,
            "rounds": {name: [each.as_json() for each in several] for name, several in rounds.items()},
            "ratios": {
                name: {"images_per_s": over.as_json(), "cpu_ms": less.as_json()}
                for name, (over, less) in ratio_of.items()
                if name != OUZEL
            },
        },
    )


def _verdicts(
    found: Mapping[str, tuple[Spread, Spread]], rounds: Mapping[str, Sequence[Measured]], pair: Pair
) -> list[str]:
    if "mlserver-kafka" not in found:
        return []
    over, less = found["mlserver-kafka"]
    most, least = _THROUGHPUT_TARGETS[pair.runtime]
    left = {name: [each.images_per_s_of_what_was_left for each in rounds[name]] for name in (OUZEL, "mlserver-kafka")}
    fair = ratios(left[OUZEL], left["mlserver-kafka"])
    return [
        f"with the share of the cores that others left taken into account {fair}",
        f"images/s over MLServer's Kafka mode {over}, target >= {most}: {judged(over, most, at_least=True)}",
        f"CPU-ms over MLServer's Kafka mode {less}, target <= {least}: {judged(less, least, at_least=False)}",
    ]


def _ceiling(rounds: Mapping[str, Sequence[Measured]]) -> str:
    """What no consumer with this decode and this inference gets below."""
    if "mlserver-kafka" not in rounds:
        return ""
    bare_ms = [each.cpu_ms for each in rounds[BARE]]
    least = ratios(bare_ms, [each.cpu_ms for each in rounds["mlserver-kafka"]])
    own = ratios(bare_ms, [each.cpu_ms for each in rounds[OUZEL]])
    return f"decode and inference alone: {least} of MLServer's CPU-ms over Kafka, {own} of Ouzel's; the rest is theirs"


def bare(stage: Stage, images: int) -> Measured:
    """The same decode and inference with no server around them."""
    settings = {**stage.work.peer_settings(stage.pair), **PEERS["litserve"].start(stage.pair), "lanes": 1}
    command = [str(environments.python_of("litserve")), str(_SERVERS / "bare.py")]
    with small_files(stage.work) as paths, conversation(command, settings) as ask:
        plan = {"bodies": [str(path) for path in paths]}
        ask({**plan, "count": measure.WARM})
        busy, cores = busy_s(), quota_cores()
        found = ask({**plan, "count": images})
        others = (busy_s() - busy - found["cpu_s"]) / (found["wall_s"] * cores)
    return Measured(images, found["wall_s"], found["cpu_s"], 0.0, 0.0, max(0.0, others))


def _others(found: Sequence[Measured]) -> str:
    shares = spread([100 * each.others_share for each in found])
    return f"cores that others on this machine used meanwhile: {shares} %" + (
        "; not quiet, the ratios of CPU-ms say more than those of images/s" if shares.median > 10 else ""
    )


def _line(what: str, measured: Measured) -> str:
    errors = f", errors {measured.errors}" if measured.errors else ""
    return (
        f"{what}: {measured.images_per_s:.0f} images/s, {measured.cpu_ms:.2f} CPU-ms an image, "
        f"{measured.resident_mib:.0f} MiB, others {100 * measured.others_share:.0f} %{errors}"
    )


def _words(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in chosen.items())


# --- best settings --------------------------------------------------------------------------------------------------


def tune(arguments: argparse.Namespace) -> Report:
    """One axis after the other, each value in so many turns as there are rounds; the winner has the most images/s."""
    peers, work, pair = chosen_peers(arguments), Work(), arguments.pair
    images = arguments.images or 600
    rows, found = [], {}
    with KafkaBroker() as node:
        for peer in peers:
            best, tried = _search(Stage(node, work, pair), peer, images, arguments.rounds)
            found[peer.name] = {"best": best, "tried": tried}
            rows += [
                [peer.title, _words(each["settings"]), short(each["images_per_s"]), short(each["cpu_ms"])]
                + (["<"] if each["settings"] == best else [""])
                for each in tried
            ]
            _write_best(pair, peer, found[peer.name])
    return Report(
        title=f"Settings searched, {pair}",
        columns=["", "settings", "images/s", "CPU-ms an image", "best"],
        rows=rows,
        notes=[
            f"{images} images each, the median of {arguments.rounds}; one axis after the other",
            "images/s over the share of the cores that others on this machine left",
        ],
        found={"pair": str(pair), "searched": found},
    )


def _search(stage: Stage, peer: Peer, images: int, rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    best: dict[str, Any] = peer.start(stage.pair)
    tried: list[dict[str, Any]] = []
    for several_values in peer.stages(stage.pair):
        settings = [{**best, **each} for each in several_values]
        turns: list[list[Measured]] = [[] for _ in settings]
        for _ in range(rounds):
            for number, each in enumerate(settings):
                try:
                    turns[number].append(one_throughput(stage, peer.name, images, each))
                except PeerError as error:
                    say(f"{peer.title}, {_words(each)}: {str(error).splitlines()[0]} {str(error).splitlines()[-1]}")
                else:
                    say(_line(f"{peer.title}, {_words(each)}", turns[number][-1]))
        stage_found: list[dict[str, Any]] = [
            {
                "settings": each,
                "images_per_s": round(statistics.median(one.images_per_s_of_what_was_left for one in several), 1),
                "cpu_ms": round(statistics.median(one.cpu_ms for one in several), 3),
            }
            for each, several in zip(settings, turns, strict=True)
            if several
        ]
        if not stage_found:
            raise PeerError(f"{peer.title}: none of {len(settings)} settings ran")
        tried += stage_found
        best = max(stage_found, key=lambda each: float(each["images_per_s"]))["settings"]
    return best, tried


def _write_best(pair: Pair, peer: Peer, found: Mapping[str, Any]) -> None:
    known = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    known.setdefault(str(pair), {})[peer.name] = found
    SETTINGS.write_text(json.dumps(known, indent=1) + "\n")


# --- five photographs -----------------------------------------------------------------------------------------------


def photographs(arguments: argparse.Namespace) -> Report:
    """First produce to last event on a warm replica, over the plain script's time for the five, in turns."""
    chosen_peers(arguments)
    work, pair = Work(), arguments.pair
    values = [path.read_bytes() for path in work.photographs]
    ours, theirs, floors, shared = [], [], [], []
    with script(work) as run, KafkaBroker() as node, measure.ouzel(node, work, pair, form="raw") as streaming:
        producer = Producer(node.client_properties(linger_ms=0, message_max_bytes=2**24))
        follower = Follower(node, streaming.topics["output"])
        infer_ms = _one_inference_ms(work, pair)
        for number in range(arguments.rounds + 3):
            scripted = run(work.photographs)
            started_s = time.monotonic()
            for path, value in zip(work.photographs, values, strict=True):
                producer.produce(streaming.topics["input"], value=value, key=path.stem.encode())
            producer.poll(0)
            service_s = follower.until(follower.seen + len(values)) - started_s
            producer.flush(10)
            if number >= 3:  # the first warm connections and caches
                ours.append(1000 * service_s)
                theirs.append(1000 * scripted["wall_s"])
                floors.append(max(scripted["decode_ms"]) + infer_ms)
                work_ms = sum(scripted["decode_ms"]) + len(values) * infer_ms
                shared.append(max(floors[-1], work_ms / quota_cores()))
                say(f"round {number - 2}: script {theirs[-1]:.0f} ms, Ouzel {ours[-1]:.0f} ms")
        follower.close()
    ratio = ratios(ours, theirs)
    verdict = judged(ratio, _PHOTOGRAPHS_TARGET, at_least=False)
    named = {"Ouzel, first produce to last event, ms": ours, "the plain script, ms": theirs, "the floor, ms": floors}
    named |= {"the same work over all cores, ms": shared}
    return Report(
        title=f"{len(values)} photographs, Ouzel on {pair} over the plain script on TensorFlow's signature",
        columns=["", "median (least to most)", ""],
        rows=[
            *([name, str(spread(each)), ""] for name, each in named.items()),
            ["Ouzel over the script", str(ratio), verdict],
            ["the floor over the script", str(ratios(floors, theirs)), ""],
            ["the same work over all cores, over the script", str(ratios(shared, theirs)), ""],
            ["the least of Ouzel over the least of the script", short(min(ours) / min(theirs)), ""],
        ],
        notes=[
            f"target <= {_PHOTOGRAPHS_TARGET}, for the five of birds; {len(ours)} turns",
            "loading of both excluded; full decode by both",
            f"the floor is the slowest of the five decodes and one inference ({infer_ms:.1f} ms, {pair}), nothing else",
            "the same work over all cores: the script's five decodes and five such inferences, shared evenly",
        ],
        found={
            "pair": str(pair),
            "ratio": ratio.as_json(),
            "floor_over_script": ratios(floors, theirs).as_json(),
            "ms": {"ouzel": ours, "script": theirs, "floor": floors, "over_all_cores": shared},
            "target": _PHOTOGRAPHS_TARGET,
        },
    )


def _one_inference_ms(work: Work, pair: Pair) -> float:
    """The median of 30 single inferences as Ouzel does them."""
    code = (
        "import time, statistics, numpy as np\n"
        "from consumer import bootstrap_model\n"
        "from consumer.settings import load\n"
        "model = bootstrap_model.load_model(load())\n"
        "model.runtime.warm_up([1])\n"
        "pixels = np.zeros((1, *model.package.spec.input.size, 3), np.uint8)\n"
        "times = []\n"
        "for _ in range(30):\n"
        "    before = time.perf_counter(); model.runtime.infer(pixels); times.append(time.perf_counter() - before)\n"
        "print(1000 * statistics.median(times))\n"
    )
    environment = peer_environment({}) | work.ouzel_environment(pair) | {"OUZEL_LOG__LEVEL": "ERROR"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if answer.returncode:
        raise PeerError(f"no single inference: {answer.stderr[-2000:]}")
    return float(answer.stdout.split()[-1])


# --- latency --------------------------------------------------------------------------------------------------------


def latency(arguments: argparse.Namespace) -> Report:
    """Open loop, the same arrivals for both, a fresh start of each in each round."""
    if arguments.peers is None:
        arguments.peers = ["litserve"]
    peers, work, pair = chosen_peers(arguments), Work(), arguments.pair
    shown = titles(peers)
    if any(peer.door == "kafka" for peer in peers):
        raise PeerError("latency compares with peers over HTTP")
    found: dict[str, list[dict[str, Any]]] = {OUZEL: [], **{peer.name: [] for peer in peers}}
    with KafkaBroker() as node:
        rate = arguments.rate or 0.7 * one_throughput(Stage(node, work, pair), OUZEL, 1_500).images_per_s
        images = arguments.images or int(rate * 20)
        for number in range(arguments.rounds):
            names = list(found)
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                plan = {"rate": rate, "count": images, "seed": _SEED + number}
                one = _one_latency(node, work, pair, name, plan)
                found[name].append(one)
                say(
                    f"round {number + 1}, {shown[name]}: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms, "
                    f"{one['answered_per_s']:.0f} of {rate:.0f} images/s answered, driver late {one['late_ms']:.0f} ms"
                )
    rows = []
    for name, several in found.items():
        column = {part: spread([each[part] for each in several]) for part in several[0] if part != "errors"}
        over = ratios([each["p99_ms"] for each in found[OUZEL]], [each["p99_ms"] for each in several])
        verdict = "" if name == OUZEL else judged(over, 1, at_least=False)
        cells = [str(column[part]) for part in ("p50_ms", "p95_ms", "p99_ms", "answered_per_s")]
        rows.append([shown[name], *cells, "1" if name == OUZEL else str(over), verdict])
    return Report(
        title=f"Latency at {rate:.0f} images/s, open loop, {pair}, in ms",
        columns=["", "p50", "p95", "p99", "answered images/s", "Ouzel's p99 over it", ""],
        rows=rows,
        notes=[
            f"{images} JPEGs of 640x480 a measurement, {arguments.rounds} rounds",
            "the same exponential arrivals for all, and times from when each was to leave",
            "the rate is " + ("given" if arguments.rate else "70 % of Ouzel's images/s, measured before"),
            "Ouzel: batch.max_wait_ms = 10, from produce to event through the broker; the peer: from request to answer",
            *(f"{shown[peer.name]}: {_words({**peer.best(pair), 'wait_ms': 10})}" for peer in peers),
            "a server that answers fewer images/s than come cannot keep up: its p99 then only grows with the run",
        ],
        found={"pair": str(pair), "rate": rate, "images": images, "rounds": found},
    )


def _one_latency(node: KafkaBroker, work: Work, pair: Pair, name: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    warm = {**plan, "count": measure.WARM, "seed": _SEED - 1}
    if name == OUZEL:
        with measure.ouzel(node, work, pair, more={"OUZEL_BATCH__MAX_WAIT_MS": "10"}) as streaming:
            measure.drive_kafka(node, streaming.topics, streaming.messages, **warm)
            answer = measure.drive_kafka(node, streaming.topics, streaming.messages, **plan)
    else:
        peer = PEERS[name]
        with peer.running(work, pair, {**peer.best(pair), "wait_ms": 10}) as server:
            measure.drive_http(peer, server.url, work.small, **warm)
            answer = measure.drive_http(peer, server.url, work.small, **plan)
    times = answer["latencies_ms"]
    return {
        **{f"p{share}_ms": percentile(times, share / 100) for share in (50, 95, 99)},
        "answered_per_s": len(times) / answer["wall_s"],
        "late_ms": answer["late_ms"],
        "errors": answer["errors"],
    }


# --- what is promised -----------------------------------------------------------------------------------------------


def promises(arguments: argparse.Namespace) -> Report:
    """kill -9 with a third of the answers out, a new start, and a count; then messages that cannot be labelled."""
    from benchmarks.peers.crash import crashed

    arguments.peers = ["mlserver-kafka"]
    peers, work, pair = chosen_peers(arguments), Work(), arguments.pair
    shown = titles(peers)
    images = arguments.images or 600
    found: dict[str, list[dict[str, Any]]] = {OUZEL: [], "mlserver-kafka": []}
    with KafkaBroker() as node:
        for number in range(arguments.rounds):
            for name, several in found.items():
                several.append(crashed(node, work, pair, name, images))
                say(f"round {number + 1}, {shown[name]}: {several[-1]}")
    rows = []
    for name, several in found.items():
        cells = [str(spread([float(each[part]) for each in several])) for part in ("lost", "repeated")]
        bad = several[-1]["bad"]
        rows.append([shown[name], *cells, f"{bad['letters']} of {bad['sent']}", str(bad["answers"])])
    return Report(
        title="What a kill -9 and bad messages lose",
        columns=["", "images never answered", "answered twice", "bad messages on a dead-letter topic", "answered"],
        rows=rows,
        notes=[
            f"{images} images on {PARTITIONS} partitions, all written before; {arguments.rounds} rounds, {pair}",
            "killed with a third answered, then started again",
            "bad: no JSON, JSON of another shape, an image that is none, and a tombstone, which Ouzel counts and skips",
        ],
        found={"images": images, "rounds": found},
    )
