"""The bucket stores against a real S3 server, and behind a proxy that misbehaves as networks and stores do."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consumer.adapters.stores.clouds import Endpoint, S3Access, azure_store, gcs_store, s3_store
from consumer.adapters.stores.object_store import ObjectStore
from consumer.errors import ImageNotFound, ImageTooLarge, SettingsError, StoreBusy, StoreUnavailable
from consumer.messages import StoredImage
from tests.processes import wait_until
from tests.s3_server import (
    ACCESS_KEY,
    REGION,
    SECRET_KEY,
    Fault,
    FaultyProxy,
    S3Server,
    certificates,
    running_server,
)

KEYS = S3Access(access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)
MAX_BYTES = 1_000_000


def store(
    url: str,
    *,
    buckets: tuple[str, ...] = ("photos", "photos-*"),
    access: S3Access = KEYS,
    region: str = REGION,
    ca_file: str = "",
    proxy_url: str = "",
    path_style: bool = True,
    max_concurrency: int = 8,
    read_timeout_ms: int = 5_000,
) -> ObjectStore:
    endpoint = Endpoint(url, ca_file=ca_file, proxy_url=proxy_url, read_timeout_ms=read_timeout_ms)
    return s3_store(
        buckets,
        endpoint=endpoint,
        region=region,
        path_style=path_style,
        access=access,
        max_concurrency=max_concurrency,
    )


@pytest.fixture(scope="module")
def server() -> S3Server:
    running = running_server()
    running.make_bucket("photos", versions=True)
    running.put("photos", "a.jpg", b"an image")
    return running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


def body(store: ObjectStore, uri: str) -> bytes:
    return store.fetch(uri, max_bytes=MAX_BYTES, deadline_s=30).body


# --- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a b+c%?#&=/é", "a%20b+c%25%3F%23&=/%C3%A9"),
        ("a b+c%?#&=/é 2", "a%20b%2Bc%25%3F%23%26%3D%2F%C3%A9%202"),
        ("日本/鳥.jpg", "日本/鳥.jpg"),
        ("per%2Fcent", "per%252Fcent"),
        ("a\\b'()*!~@:;,$", "a%5Cb'()*!~@:;,$"),
        ('star{}|^`<>"[]', "star%7B%7D%7C%5E%60%3C%3E%22%5B%5D"),
        ("e\u0301 and \u00e9", "e%CC%81%20and%20%C3%A9"),  # not made the same letter
    ],
)
def test_odd_keys_are_fetched_as_they_are(server: S3Server, key: str, path: str) -> None:
    server.put("photos", key, key.encode())
    assert body(store(server.url), f"s3://photos/{path}") == key.encode()


def test_the_version_that_is_asked_for_is_fetched_and_the_one_that_came_is_told(server: S3Server) -> None:
    older, newer = (server.put("photos", "versions", content) for content in (b"older", b"newer"))
    ours = store(server.url)
    found = {
        uri: ours.fetch(f"s3://photos/versions{uri}", max_bytes=99, deadline_s=30)
        for uri in ("", f"?versionId={older}", f"?versionId={newer}")
    }
    assert [each.body for each in found.values()] == [b"newer", b"older", b"newer"]
    assert [each.version.version_id for each in found.values()] == [newer, older, newer]
    # An ETag of S3 is the MD5 of what was put in one piece.
    assert found[f"?versionId={older}"].version.etag == hashlib.md5(b"older", usedforsecurity=False).hexdigest()


def test_what_was_deleted_is_not_found_while_its_older_version_is(server: S3Server) -> None:
    version = server.put("photos", "deleted", b"was here")
    marker = server.client().delete_object(Bucket="photos", Key="deleted")["VersionId"]
    ours = store(server.url)
    for gone in ("", f"?versionId={marker}", "?versionId=never-was"):
        with pytest.raises(ImageNotFound):
            body(ours, f"s3://photos/deleted{gone}")
    assert body(ours, f"s3://photos/deleted?versionId={version}") == b"was here"


def test_a_large_object_is_refused_by_its_headers_and_not_read(server: S3Server, proxy: FaultyProxy) -> None:
    size = 64 * 1024 * 1024
    server.put("photos", "large", bytes(size))
    with pytest.raises(ImageTooLarge, match=r"stores\.max_image_bytes"):
        body(store(proxy.url), "s3://photos/large")
    assert proxy.body_bytes_sent < size / 4  # what buffers on the way held


# --- whose fault it is ----------------------------------------------------------------------------------------------


def test_a_bucket_that_the_settings_name_and_that_is_absent_is_an_outage(server: S3Server) -> None:
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        body(store(server.url, buckets=("absent",)), "s3://absent/a")


def test_a_bucket_that_only_a_wild_card_allows_may_be_a_senders_invention(server: S3Server) -> None:
    with pytest.raises(ImageNotFound, match="NoSuchBucket"):
        body(store(server.url), "s3://photos-invented/a")


def test_wrong_keys_and_missing_rights_are_an_outage_that_says_what_to_do_and_no_secret(server: S3Server) -> None:
    iam = server.client("iam")
    iam.create_user(UserName="reader")
    iam.create_user(UserName="stranger")
    read = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [read]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    keys = {user: iam.create_access_key(UserName=user)["AccessKey"] for user in ("reader", "stranger")}
    reader, stranger = (
        S3Access(access_key_id=key["AccessKeyId"], secret_access_key=key["SecretAccessKey"]) for key in keys.values()
    )
    forged = S3Access(access_key_id=reader.access_key_id, secret_access_key="not-that-secret")
    with server.rights_enforced():
        assert body(store(server.url, access=reader), "s3://photos/a.jpg") == b"an image"
        for access, code, remedy in (
            (KEYS, "InvalidAccessKeyId", "access key"),
            (forged, "SignatureDoesNotMatch", "secret key"),
            (stranger, "AccessDenied", "grant s3:GetObject"),
        ):
            with pytest.raises(StoreUnavailable, match=f"{code}.*{remedy}") as caught:
                body(store(server.url, access=access), "s3://photos/a.jpg")
            assert access.access_key_id not in str(caught.value)
            assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect"])
def test_another_region_is_an_outage_that_names_the_setting(proxy: FaultyProxy, status: str) -> None:
    # S3 says the right region in a header and names no Location that one could follow.
    proxy.answers(status, b"<Error><Code>PermanentRedirect</Code></Error>")
    with pytest.raises(StoreUnavailable, match=r"stores\.s3\.region"):
        body(store(proxy.url), "s3://photos/a.jpg")


def test_a_signature_for_another_region_is_an_outage_that_names_the_setting(proxy: FaultyProxy) -> None:
    proxy.answers("400 Bad Request", b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu</Region></Error>")
    with pytest.raises(StoreUnavailable, match=r"stores\.s3\.region"):
        body(store(proxy.url, region="us-east-1"), "s3://photos/a.jpg")
    assert b"/us-east-1/s3/aws4_request" in proxy.heads[0]


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        ("403 Forbidden", "InvalidObjectState", ImageNotFound),  # archived: no waiting mends it
        ("405 Method Not Allowed", "MethodNotAllowed", ImageNotFound),  # AWS's answer for a delete marker
        ("400 Bad Request", "InvalidArgument", ImageNotFound),  # ... and for a version id of another make
        ("404 Not Found", "", ImageNotFound),
        ("403 Forbidden", "RequestTimeTooSkewed", StoreUnavailable),
        ("400 Bad Request", "ExpiredToken", StoreUnavailable),
        ("400 Bad Request", "KMS.DisabledException", StoreUnavailable),
        ("429 Too Many Requests", "", StoreUnavailable),
        ("418 I'm a teapot", "", StoreUnavailable),
    ],
)
def test_each_answer_of_the_store_has_its_error(
    proxy: FaultyProxy, status: str, code: str, error: type[Exception]
) -> None:
    proxy.answers(status, f"<Error><Code>{code}</Code></Error>".encode() if code else b"")
    with pytest.raises(error):
        body(store(proxy.url), "s3://photos/a.jpg")


# --- a store that misbehaves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("slow-down", "503 SlowDown"),
        ("error-500", "500 InternalError"),
        ("reset", "broke"),
        ("reset-body", "broke"),
        ("cut-body", "broke"),
    ],
)
def test_a_failing_store_is_unavailable_is_asked_once_and_serves_afterwards(
    proxy: FaultyProxy, fault: Fault, said: str
) -> None:
    ours = store(proxy.url)
    proxy.fault = fault
    with pytest.raises(StoreUnavailable, match=said):
        body(ours, "s3://photos/a.jpg")
    assert len(proxy.heads) == 1  # trying again is the retry stage's
    proxy.fault = "none"
    assert body(ours, "s3://photos/a.jpg") == b"an image"


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_at_the_deadline_a_fetch_is_broken_off_and_its_connection_closed(proxy: FaultyProxy, fault: Fault) -> None:
    proxy.fault = fault
    with pytest.raises(StoreUnavailable, match="deadline"):
        # A read time-out that is no help: the deadline is what ends it.
        store(proxy.url, read_timeout_ms=600_000).fetch("s3://photos/a.jpg", max_bytes=99, deadline_s=0.5)
    assert proxy.hung_up.wait(30)


def test_who_finds_no_slot_has_failed_at_nothing(server: S3Server) -> None:
    with FaultyProxy(server.port) as proxy, ThreadPoolExecutor(2) as pool:
        proxy.fault = "stall"
        ours = store(proxy.url, max_concurrency=1, read_timeout_ms=600_000)

        def fetch(deadline_s: float) -> StoredImage:
            return ours.fetch("s3://photos/a.jpg", max_bytes=99, deadline_s=deadline_s)

        def fetch_once_there_is_room() -> StoredImage:
            while True:
                try:
                    return fetch(60)
                except StoreBusy:
                    continue

        first = pool.submit(fetch, 60)
        wait_until(lambda: len(proxy.heads) == 1, timeout_s=30, what="the first to hold the slot")
        with pytest.raises(StoreBusy, match="no slot of its bucket"):  # its deadline holds for the wait
            fetch(0.2)
        second = pool.submit(fetch_once_there_is_room)

        def one_more_finds_no_room() -> bool:
            try:
                fetch(0.01)
            except StoreBusy as error:
                return "as many wait for its bucket as may" in str(error)
            return False

        wait_until(one_more_finds_no_room, timeout_s=30, what="the second to wait")
        assert len(proxy.heads) == 1  # nothing more was asked of the store
        proxy.fault = "none"  # for whoever connects from now on
        server.make_bucket("photos-elsewhere")
        server.put("photos-elsewhere", "a.jpg", b"an image")
        assert body(ours, "s3://photos-elsewhere/a.jpg") == b"an image"  # another bucket has slots of its own
        proxy.fault = "stall"
        proxy.let_go()
        for each in (first, second):
            with pytest.raises(StoreUnavailable) as caught:
                each.result(30)
            assert not isinstance(caught.value, StoreBusy)


def test_where_nobody_listens_the_store_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="refused"):
        body(store("http://127.0.0.1:1"), "s3://photos/a.jpg")


# --- how it is asked ------------------------------------------------------------------------------------------------


def test_nobody_asks_without_a_signature(server: S3Server, proxy: FaultyProxy) -> None:
    server.put("photos", "public", b"for all")
    server.client().put_object_acl(Bucket="photos", Key="public", ACL="public-read")
    ours = store(proxy.url, access=S3Access(anonymous=True))
    assert body(ours, "s3://photos/public") == b"for all"
    with pytest.raises(StoreUnavailable, match="403"):
        body(ours, "s3://photos/a.jpg")
    assert b"authorization" not in proxy.heads[0].lower()


def test_who_pays_says_so_and_signs_it(proxy: FaultyProxy) -> None:
    access = S3Access(access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, requester_pays=True)
    assert body(store(proxy.url, access=access), "s3://photos/a.jpg") == b"an image"
    head = proxy.heads[0].lower()
    assert b"x-amz-request-payer: requester" in head
    signed = next(line for line in head.split(b"\r\n") if line.startswith(b"authorization:"))
    assert b"x-amz-request-payer" in signed


def test_the_bucket_is_in_the_path_or_in_the_host_as_set(proxy: FaultyProxy) -> None:
    proxy.answers("500 Internal Server Error", b"")
    for path_style in (True, False):
        # Through a proxy, so that no name has to be resolved.
        ours = store("http://store.test", path_style=path_style, proxy_url=proxy.url)
        with pytest.raises(StoreUnavailable, match="500"):
            body(ours, "s3://photos/a.jpg")
    assert [head.split(b" ")[1] for head in proxy.heads] == [
        b"http://store.test/photos/a.jpg",
        b"http://photos.store.test/a.jpg",
    ]


def test_the_environments_proxy_is_not_taken_and_ours_is(
    server: S3Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert body(store(server.url), "s3://photos/a.jpg") == b"an image"
    proxy.answers("502 Bad Gateway", b"")
    with pytest.raises(StoreUnavailable, match="502"):
        body(store(server.url, proxy_url=proxy.url), "s3://photos/a.jpg")
    assert proxy.heads[0].startswith(f"GET {server.url}/photos/a.jpg ".encode())


def test_tls_is_verified_and_a_ca_of_ones_own_is_trusted(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    with S3Server(tls=files) as server:
        server.make_bucket("photos")
        server.put("photos", "a.jpg", b"an image")
        assert body(store(server.url, ca_file=str(files.authority)), "s3://photos/a.jpg") == b"an image"
        with pytest.raises(StoreUnavailable, match="certificate"):
            body(store(server.url), "s3://photos/a.jpg")


# --- AWS's chain of credentials -------------------------------------------------------------------------------------


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without any; its folder."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


def access_key_in(head: bytes) -> bytes:
    return head.split(b"Credential=", 1)[1].split(b"/", 1)[0]


def test_without_any_credentials_the_store_is_unavailable_and_taken_up_once_there_are_some(
    no_credentials: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = store(proxy.url, access=S3Access())
    with pytest.raises(StoreUnavailable, match="no AWS credentials"):
        body(ours, "s3://photos/a.jpg")
    assert proxy.heads == []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert body(ours, "s3://photos/a.jpg") == b"an image"
    assert access_key_in(proxy.heads[0]) == b"FROMENVIRONMENT"


def test_a_profile_is_read_from_the_shared_files_and_its_region_too(
    no_credentials: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = no_credentials / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = OFDEFAULT\naws_secret_access_key = x\n"
        "[birds]\naws_access_key_id = OFBIRDS\naws_secret_access_key = x\n"
    )
    (folder / "config").write_text("[profile birds]\nregion = ap-south-1\n")
    for access in (S3Access(), S3Access(profile="birds")):
        body(store(proxy.url, access=access, region=""), "s3://photos/a.jpg")
    monkeypatch.setenv("AWS_PROFILE", "birds")
    body(store(proxy.url, access=S3Access(), region=""), "s3://photos/a.jpg")
    assert [access_key_in(head) for head in proxy.heads] == [b"OFDEFAULT", b"OFBIRDS", b"OFBIRDS"]
    assert b"/ap-south-1/s3/" in proxy.heads[1]


def test_a_container_role_is_asked_once_and_its_session_token_sent(
    no_credentials: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = {"AccessKeyId": "OFROLE", "SecretAccessKey": "x", "Token": "OFSESSION"}
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    with FaultyProxy(0) as agent:
        agent.answers("200 OK", json.dumps({**role, "Expiration": expires}).encode())
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/role")
        ours = store(proxy.url, access=S3Access())
        for _ in range(3):
            assert body(ours, "s3://photos/a.jpg") == b"an image"
        assert [head.split(b" ")[1] for head in agent.heads] == [b"/role"]
    assert {access_key_in(head) for head in proxy.heads} == {b"OFROLE"}
    assert all(b"x-amz-security-token: ofsession" in head.lower() for head in proxy.heads)


def test_credentials_that_the_store_refuses_are_looked_up_anew(
    no_credentials: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OLD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    ours = store(proxy.url, access=S3Access())
    proxy.answers("400 Bad Request", b"<Error><Code>ExpiredToken</Code></Error>")
    with pytest.raises(StoreUnavailable, match="ExpiredToken"):
        body(ours, "s3://photos/a.jpg")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NEW")
    proxy.fault = "none"
    body(ours, "s3://photos/a.jpg")
    assert [access_key_in(head) for head in proxy.heads] == [b"OLD", b"NEW"]


def test_what_can_make_no_client_is_an_error_at_start(no_credentials: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ProfileNotFound"):
        store("http://127.0.0.1:1", access=S3Access(profile="absent"), region="")
    with pytest.raises(SettingsError, match="No such file"):
        store("https://127.0.0.1:1", ca_file=str(tmp_path / "absent.pem"))
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match=r"stores\.s3"):
        store("https://127.0.0.1:1", ca_file=str(tmp_path / "no.pem"))


# --- the other clouds -----------------------------------------------------------------------------------------------


def test_google_and_azure_are_asked_in_their_own_way(proxy: FaultyProxy) -> None:
    """Shapes: Google's XML API, and Azure's Get Blob."""
    proxy.answers("200 OK", b"an image", b'ETag: "0x8D"\r\nLast-Modified: Sat, 31 Jan 2026 09:00:00 GMT\r\n')
    gcs = gcs_store(["photos"], endpoint=Endpoint(proxy.url), anonymous=True, max_concurrency=4)
    azure = azure_store(["photos"], endpoint=Endpoint(proxy.url), account="birds", anonymous=True, max_concurrency=4)
    stored = gcs.fetch("gs://photos/a%20b.jpg?generation=17", max_bytes=99, deadline_s=30)
    assert (stored.body, stored.version.etag) == (b"an image", "0x8D")
    assert body(azure, "az://photos/a%20b.jpg?versionId=2026-01-31T09:00:00.0Z") == b"an image"
    lines = [head.split(b"\r\n")[0].split(b" ")[1] for head in proxy.heads]
    assert lines[0].replace(b"%2E", b".") == b"/photos/a%20b.jpg?generation=17"
    assert lines[1].partition(b"?")[0].endswith(b"/photos/a%20b.jpg")
    assert lines[1].endswith(b"?versionid=2026-01-31T09%3A00%3A00.0Z")
    for code, ours, uri in (("NoSuchKey", gcs, "gs://photos/a"), ("BlobNotFound", azure, "az://photos/a")):
        proxy.answers("404 Not Found", f"<Error><Code>{code}</Code></Error>".encode())
        with pytest.raises(ImageNotFound):
            body(ours, uri)
