"""`ouzel send s3://...` and `--inventory`: a real S3 server, a real broker."""

import csv
import gzip
import hashlib
import io
import os
import select
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote_plus

import orjson
import pytest

from consumer.adapters.stores.buckets import BucketRules
from consumer.commands._bookmark import default_path
from tests.conftest import Topics as ReplicaTopics
from tests.integration.command_line import Answer, Topics, ouzel_here
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique
from tests.replica import Replica
from tests.s3_server import ACCESS_KEY, PAGE_KEYS, REGION, SECRET_KEY, FaultyProxy, S3Server, running_server

pytestmark = pytest.mark.kafka

ODD_KEYS = [
    "a/space in it.jpg",
    "a/plus+and%41percent.jpg",
    "a/question?mark#hash.jpg",
    "a/ünï/写真.jpg",
    "a/star*.jpg",
    "a/amper&<less.JPG",
    'a/quote"\\.jpeg',
    "a/tilde~colon:at@equals=.png",
]
UNFETCHABLE = ["b//two.jpg", "b/../up.jpg", "b/tab\t.jpg"]


@pytest.fixture(scope="module")
def s3() -> S3Server:
    return running_server()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    name = unique("photos")
    s3.make_bucket(name)
    return name


LONG_KEYS = [f"{number:03d}.jpg" for number in range(2 * PAGE_KEYS + 1)]


@pytest.fixture(scope="module")
def long_bucket(s3: S3Server) -> str:
    """`LONG_KEYS` are in it: three pages of a listing, the last of one key."""
    name = unique("photos")
    s3.make_bucket(name)
    put(s3, name, LONG_KEYS)
    return name


@pytest.fixture
def sending(kafka: Cluster, s3: S3Server, tmp_path: Path) -> Topics:
    """Topics, and how to reach the store; the state folder is the test's own."""
    variables = {
        "OUZEL_STORES__S3__ENDPOINT_URL": s3.url,
        "OUZEL_STORES__S3__REGION": REGION,
        "OUZEL_STORES__S3__ACCESS_KEY_ID": ACCESS_KEY,
        "OUZEL_STORES__S3__SECRET_ACCESS_KEY": SECRET_KEY,
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    found = Topics(kafka.bootstrap_servers, unique("cli"), variables)
    kafka.create_topic(found.images, partitions=3)
    return found


def put(s3: S3Server, bucket: str, keys: Sequence[str]) -> None:
    client = s3.client()
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=b"x")


def keys_sent(topics: Topics, bucket: str) -> list[str]:
    """The keys that the references mean, by the rules that the service's store goes by."""
    rules = BucketRules("s3", [bucket], setting="", version_parameter="versionId")
    references = [orjson.loads(message.value() or b"") for message in topics.read_all(topics.images)]
    return [rules.address(reference["uri"]).key for reference in references]


def states(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state").rglob("*.json"))


def test_a_bucket_is_sent_as_references_that_mean_its_keys(
    sending: Topics, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, [*ODD_KEYS, "a/notes.txt", "a/folder/", "other/not-asked-for.jpg"])
    answer = sending.ouzel("send", "--top-k", "3", "--metadata", "from=backlog", f"s3://{bucket}/a/")
    assert answer.code == 0, answer.stderr
    assert sorted(keys_sent(sending, bucket)) == sorted(ODD_KEYS)
    for message in sending.read_all(sending.images):
        reference = orjson.loads(message.value() or b"")
        assert message.key() == reference["image_id"].encode()
        assert reference["image_id"].removeprefix(f"{bucket}/") in ODD_KEYS
        assert (reference["top_k"], reference["metadata"]) == (3, {"from": "backlog"})
    assert len(answer.rows) == len(ODD_KEYS)
    assert states(tmp_path) == []  # it is through: the next one begins anew


def test_what_is_sent_of_a_bucket_is_labelled(
    kafka: Cluster, sending: Topics, s3: S3Server, bucket: str, photographs: list[Path]
) -> None:
    """Every key that a bucket may have, as it is listed, is one that the service's store finds."""
    client = s3.client()
    for number, key in enumerate(ODD_KEYS):
        client.put_object(Bucket=bucket, Key=key, Body=photographs[number].read_bytes())
    kafka.create_topics(dict.fromkeys((sending.predictions, sending.letters)), partitions=3)
    names = ReplicaTopics(sending.images, sending.predictions, sending.letters, sending.group, partitions=3)
    allowed = {**sending.variables, "OUZEL_STORES__S3__BUCKETS": f'["{bucket}"]'}
    assert sending.ouzel("send", f"s3://{bucket}/").code == 0
    with Replica(kafka, names, settings=allowed) as replica:
        replica.start()
        replica.wait_for(lambda: len(sending.read_all(sending.predictions)) == len(ODD_KEYS), 60, "the labels")
    labelled = {orjson.loads(message.value() or b"")["image_id"] for message in sending.read_all(sending.predictions)}
    assert labelled == {f"{bucket}/{key}" for key in ODD_KEYS}
    assert sending.read_all(sending.letters) == []


def test_more_than_a_page_of_keys(sending: Topics, long_bucket: str) -> None:
    answer = sending.ouzel("send", f"s3://{long_bucket}", timeout_s=120)
    assert answer.code == 0, answer.stderr
    assert sorted(keys_sent(sending, long_bucket)) == LONG_KEYS


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--suffix", ".png,gif"], ["b.png", "c.GIF"]),
        (["--all"], ["a.jpg", "b.png", "c.GIF", "d.raw"]),
        ([], ["a.jpg", "b.png", "c.GIF"]),
    ],
)
def test_suffixes_say_what_is_an_image(
    sending: Topics, s3: S3Server, bucket: str, arguments: list[str], wanted: list[str]
) -> None:
    put(s3, bucket, ["a.jpg", "b.png", "c.GIF", "d.raw"])
    assert sending.ouzel("send", *arguments, f"s3://{bucket}/").code == 0
    assert sorted(keys_sent(sending, bucket)) == wanted


def test_the_beginning_of_a_key_is_listed_with_a_star_and_a_key_alone_is_one_image(
    sending: Topics, s3: S3Server, bucket: str
) -> None:
    put(s3, bucket, ["2026/img-1.jpg", "2026/img-2.jpg", "2026/scan-1.jpg"])
    assert sending.ouzel("send", f"s3://{bucket}/2026/img-*").code == 0
    assert sorted(keys_sent(sending, bucket)) == ["2026/img-1.jpg", "2026/img-2.jpg"]
    assert sending.ouzel("send", f"s3://{bucket}/2026/scan-1.jpg").code == 0
    assert len(keys_sent(sending, bucket)) == 3


def test_keys_that_the_service_could_not_fetch_are_told_and_the_others_sent(
    sending: Topics, s3: S3Server, bucket: str
) -> None:
    put(s3, bucket, [*UNFETCHABLE, "b/good.jpg"])
    answer = sending.ouzel("send", f"s3://{bucket}/b/")
    assert answer.code == 1
    assert keys_sent(sending, bucket) == ["b/good.jpg"]
    assert answer.stderr.count("not sent:") == len(UNFETCHABLE)


def test_an_empty_prefix_is_no_error(sending: Topics, bucket: str) -> None:
    answer = sending.ouzel("send", f"s3://{bucket}/nothing/here/")
    assert answer.code == 0
    assert "sent 0 images" in answer.stderr


def test_a_bucket_that_is_not_there_is_told_with_what_to_do(sending: Topics) -> None:
    answer = sending.ouzel("send", "s3://no-such-bucket-anywhere/")
    assert answer.code == 16
    assert "NoSuchBucket" in answer.stderr
    assert "fix:" in answer.stderr
    assert SECRET_KEY not in answer.stderr


def test_a_dry_run_lists_and_notes_nothing(sending: Topics, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, ["a.jpg", "b.jpg", "c.jpg"])
    answer = sending.ouzel("send", "--dry-run", "--limit", "2", f"s3://{bucket}/")
    assert answer.code == 0
    assert [row["image_id"] for row in answer.rows] == [f"{bucket}/a.jpg", f"{bucket}/b.jpg"]
    assert keys_sent(sending, bucket) == []
    assert states(tmp_path) == []


def test_a_limit_is_gone_on_after_by_the_next_send(sending: Topics, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(5)]
    put(s3, bucket, keys)
    for sent in (2, 4, 5):
        answer = sending.ouzel("send", "--limit", "2", f"s3://{bucket}/")
        assert answer.code == 0, answer.stderr
        assert sorted(keys_sent(sending, bucket)) == keys[:sent]
    assert states(tmp_path) == []
    assert sending.ouzel("send", "--limit", "2", f"s3://{bucket}/").code == 0
    assert Counter(keys_sent(sending, bucket)) == Counter(keys) + Counter(keys[:2])  # begun anew
    assert sending.ouzel("send", "--limit", "1", "--no-resume", f"s3://{bucket}/").code == 0
    assert Counter(keys_sent(sending, bucket))["0.jpg"] == 3


def test_after_a_kill_it_goes_on_and_misses_none(sending: Topics, long_bucket: str, tmp_path: Path) -> None:
    state = tmp_path / "place.json"
    killed = sending.start_ouzel("send", "--rate", "50", "--state", str(state), f"s3://{long_bucket}/")
    try:
        assert killed.stdout is not None
        while not (state.exists() and orjson.loads(state.read_bytes())["after"]):
            assert select.select([killed.stdout], [], [], 30)[0], "nothing is sent"
            assert os.read(killed.stdout.fileno(), 65_536)
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.communicate()
    before = keys_sent(sending, long_bucket)
    after = orjson.loads(state.read_bytes())["after"]
    assert 0 < len(before) < len(LONG_KEYS)
    assert after in before
    answer = sending.ouzel("send", "--state", str(state), f"s3://{long_bucket}/")
    assert answer.code == 0, answer.stderr
    assert f"going on after {after}" in answer.stderr
    assert len(answer.rows) == len([key for key in LONG_KEYS if key > after])  # and none that was noted again
    assert set(keys_sent(sending, long_bucket)) == set(LONG_KEYS)
    assert not state.exists()


def test_the_place_of_another_send_is_not_gone_on_with(
    sending: Topics, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, ["a.jpg", "b.jpg"])
    state = ["--state", str(tmp_path / "place.json"), "--limit", "1"]
    assert sending.ouzel("send", *state, f"s3://{bucket}/").code == 0
    answer = sending.ouzel("send", *state, "--suffix", ".png", f"s3://{bucket}/")
    assert answer.code == 1
    assert "the place of another send" in answer.stderr
    assert len(keys_sent(sending, bucket)) == 1


def test_a_store_that_fails_midway_ends_it_with_its_place_noted(
    sending: Topics, s3: S3Server, long_bucket: str, tmp_path: Path
) -> None:
    arguments = ("send", "--rate", "40", "--state", str(tmp_path / "place.json"), f"s3://{long_bucket}/")
    with FaultyProxy(s3.port) as proxy:
        behind = replace(sending, variables={**sending.variables, "OUZEL_STORES__S3__ENDPOINT_URL": proxy.url})
        command = behind.start_ouzel(*arguments)
        try:
            assert command.stdout is not None
            first = command.stdout.readline()  # so the first page was listed, and no other
            proxy.fault = "error-500"
            rest, said = command.communicate(timeout=120)
        finally:
            command.kill()
    assert command.returncode == 16, said
    assert b"the store answers InternalError" in said
    assert len((first + rest).splitlines()) == PAGE_KEYS
    assert orjson.loads((tmp_path / "place.json").read_bytes())["after"] == LONG_KEYS[PAGE_KEYS - 1]
    again = sending.ouzel("send", "--state", str(tmp_path / "place.json"), f"s3://{long_bucket}/")
    assert again.code == 1  # another endpoint is another source
    assert "the place of another send" in again.stderr


def test_a_store_that_is_not_there_is_told_with_what_to_do(sending: Topics) -> None:
    nowhere = {"OUZEL_STORES__S3__ENDPOINT_URL": "http://127.0.0.1:9"}
    answer = sending.ouzel("send", "s3://photos/", more=nowhere, timeout_s=120)
    assert answer.code == 16
    assert "does not answer" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s3://photos/", "more.jpg"], "stands alone"),
        (["--versions", "s3://photos/"], "--versions is about an --inventory"),
        (["--inventory", "manifest.json", "photo.jpg"], "stands alone"),
        (["s3://photos/%ff/"], "percent-encoded UTF-8"),
        ([], "name files, folders"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(arguments: list[str], said: str) -> None:
    answer = ouzel_here("send", *arguments)
    assert answer.code == 2
    assert said in words(answer)


def test_wrong_usage_ends_a_process_as_it_does_here() -> None:
    answer = nobody().ouzel("send", "s3://photos/", "more.jpg")
    assert answer.code == 2
    assert "stands alone" in words(answer)


def words(answer: Answer) -> str:
    """What stderr says, without the frame around it."""
    return " ".join(answer.stderr.replace("│", " ").split())


def nobody() -> Topics:
    """A broker that is not there."""
    return Topics("127.0.0.1:9", unique("cli"))


def test_a_default_place_is_another_for_another_source() -> None:
    folder = Path("state")
    assert default_path(folder, {"source": "a"}) != default_path(folder, {"source": "b"})
    assert default_path(folder, {"a": "1", "b": "2"}) == default_path(folder, {"b": "2", "a": "1"})


# --- inventories ----------------------------------------------------------------------------------------------------

Versions = list[tuple[str, str, bool, bool]]
"""(key, version id, is latest, is delete marker)"""

ROWS: Versions = [
    *((key, f"v-{number}", True, False) for number, key in enumerate(ODD_KEYS)),
    ("old.jpg", "v-old", False, False),
    ("old.jpg", "v-new", True, False),
    ("deleted.jpg", "v-marker", True, True),
    ("notes.txt", "v-n", True, False),
]


def as_csv(bucket: str, rows: Versions) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for key, version, latest, marker in rows:
        writer.writerow([bucket, quote_plus(key), version, str(latest).lower(), str(marker).lower(), "1"])
    return gzip.compress(text.getvalue().encode())


def as_parquet(bucket: str, rows: Versions) -> bytes:
    from arro3.core import Array, DataType, Table
    from arro3.io import write_parquet

    keys, versions, latest, markers = zip(*rows, strict=True)
    table = Table.from_pydict(
        {
            "bucket": Array([bucket] * len(rows), DataType.utf8()),
            "key": Array(list(keys), DataType.utf8()),
            "version_id": Array(list(versions), DataType.utf8()),
            "is_latest": Array(list(latest), DataType.bool()),
            "is_delete_marker": Array(list(markers), DataType.bool()),
        }
    )
    file = io.BytesIO()
    write_parquet(table, file)
    return file.getvalue()


def manifest(bucket: str, form: str, files: dict[str, bytes]) -> bytes:
    return orjson.dumps(
        {
            "sourceBucket": bucket,
            "destinationBucket": f"arn:aws:s3:::{bucket}",
            "version": "2016-11-30",
            "creationTimestamp": "1514944800000",
            "fileFormat": form,
            "fileSchema": "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size"
            if form == "CSV"
            else "message s3.inventory {  required binary bucket (UTF8);  required binary key (UTF8);}",
            "files": [
                {
                    "key": name,
                    "size": len(data),
                    "MD5checksum": hashlib.md5(data, usedforsecurity=False).hexdigest(),
                }
                for name, data in files.items()
            ],
        }
    )


@pytest.fixture(params=["CSV", "Parquet"])
def inventory(request: pytest.FixtureRequest, s3: S3Server, bucket: str) -> str:
    """`s3://` of the manifest of an inventory in two files."""
    form = request.param
    write = as_csv if form == "CSV" else as_parquet
    files = {
        f"inventories/all/data/part-{number}.{form.lower()}": write(bucket, rows)
        for number, rows in enumerate((ROWS[:5], ROWS[5:]))
    }
    client = s3.client()
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=name, Body=data)
    key = "inventories/all/2026-01-01T00-00Z/manifest.json"
    client.put_object(Bucket=bucket, Key=key, Body=manifest(bucket, form, files))
    return f"s3://{bucket}/{key}"


def test_an_inventory_is_sent_by_its_latest_versions(sending: Topics, bucket: str, inventory: str) -> None:
    answer = sending.ouzel("send", "--inventory", inventory)
    assert answer.code == 0, answer.stderr
    assert sorted(keys_sent(sending, bucket)) == sorted([*ODD_KEYS, "old.jpg"])


def test_every_version_is_sent_where_asked_for(sending: Topics, bucket: str, inventory: str) -> None:
    assert sending.ouzel("send", "--inventory", inventory, "--versions").code == 0
    uris = [orjson.loads(message.value() or b"")["uri"] for message in sending.read_all(sending.images)]
    assert f"s3://{bucket}/old.jpg?versionId=v-old" in uris
    assert f"s3://{bucket}/old.jpg?versionId=v-new" in uris
    assert len(uris) == len(ODD_KEYS) + 2


def test_an_inventory_is_gone_on_with_across_its_files(sending: Topics, bucket: str, inventory: str) -> None:
    def send(*arguments: str) -> Answer:
        return sending.ouzel("send", "--inventory", inventory, *arguments)

    for sent in (3, 6):
        assert send("--limit", "3").code == 0
        assert len(keys_sent(sending, bucket)) == sent
    assert send().code == 0
    assert sorted(keys_sent(sending, bucket)) == sorted([*ODD_KEYS, "old.jpg"])  # none twice


def test_an_inventory_may_lie_in_a_folder(sending: Topics, bucket: str, tmp_path: Path) -> None:
    data = as_csv(bucket, ROWS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part.csv.gz").write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(manifest(bucket, "CSV", {"inventories/all/data/part.csv.gz": data}))
    nowhere = {"OUZEL_STORES__S3__ENDPOINT_URL": "http://127.0.0.1:9"}
    answer = sending.ouzel("send", "--inventory", str(tmp_path / "manifest.json"), more=nowhere)
    assert answer.code == 0, answer.stderr
    assert sorted(keys_sent(sending, bucket)) == sorted([*ODD_KEYS, "old.jpg"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"not json", "not a manifest"),
        (b"[]", "not a manifest"),
        (b'{"fileFormat":"ORC","fileSchema":"","destinationBucket":"b","files":[]}', "its format is ORC"),
        (b'{"fileFormat":"CSV","fileSchema":"Key","destinationBucket":"b","files":[]}', "no Bucket and Key"),
    ],
)
def test_what_is_no_inventory_is_told(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    answer = ouzel_here("send", "--inventory", str(tmp_path / "manifest.json"))
    assert answer.code == 16
    assert said in answer.stderr


def test_what_is_no_inventory_ends_a_process_as_it_does_here(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"not json")
    answer = nobody().ouzel("send", "--inventory", str(tmp_path / "manifest.json"))
    assert answer.code == 16
    assert "not a manifest" in answer.stderr


def test_a_file_that_is_not_the_manifests_is_refused(sending: Topics, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "part.csv.gz").write_bytes(as_csv(bucket, ROWS))
    (tmp_path / "manifest.json").write_bytes(manifest(bucket, "CSV", {"data/part.csv.gz": b"another"}))
    answer = sending.ouzel("send", "--inventory", str(tmp_path / "manifest.json"))
    assert answer.code == 16
    assert "not the file that the manifest means" in answer.stderr
    assert keys_sent(sending, bucket) == []
