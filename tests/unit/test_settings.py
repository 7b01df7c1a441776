"""Where settings come from, and what is said when they are wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from consumer.errors import SettingsError
from consumer.settings import Settings, _secrets_in, load, load_with_sources, secret_values


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder and no OUZEL_ variables."""
    import os

    for name in list(os.environ):
        if name.upper().startswith("OUZEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OUZEL_SECRETS_DIR", str(_made(tmp_path / "no secrets")))
    monkeypatch.chdir(_made(tmp_path / "here"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _page(path: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a settings file and returns its path."""

    def written(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return written


# --- order ----------------------------------------------------------------------------------------------------------


def test_with_nothing_set_the_defaults_hold() -> None:
    settings, sources = load_with_sources()
    assert settings == Settings()
    assert set(sources.values()) == {"default"}


def test_each_layer_gives_way_to_the_one_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write
) -> None:
    file = write("[batch]\nmax_size = 1\nmax_wait_ms = 1\nmax_bytes = 1\n[retry]\nmax_attempts = 1\n[model]\ntop_k = 1")
    secrets = _made(tmp_path / "secrets")
    for name in ("BATCH__MAX_SIZE", "BATCH__MAX_WAIT_MS", "BATCH__MAX_BYTES", "RETRY__MAX_ATTEMPTS"):
        (secrets / f"OUZEL_{name}").write_text("2\n")
    monkeypatch.setenv("OUZEL_SECRETS_DIR", str(secrets))
    Path(".env").write_text("OUZEL_BATCH__MAX_SIZE=3\nOUZEL_BATCH__MAX_WAIT_MS=3\nOUZEL_BATCH__MAX_BYTES=3\nOTHER=1\n")
    monkeypatch.setenv("OUZEL_BATCH__MAX_SIZE", "4")
    monkeypatch.setenv("OUZEL_BATCH__MAX_WAIT_MS", "4")

    settings, sources = load_with_sources(file, {"batch.max_size": 5})

    batch = settings.batch
    assert (batch.max_size, batch.max_wait_ms, batch.max_bytes) == (5, 4, 3)
    assert (settings.retry.max_attempts, settings.model.top_k) == (2, 1)
    assert sources["batch.max_size"] == "command line"
    assert sources["batch.max_wait_ms"] == "environment variable OUZEL_BATCH__MAX_WAIT_MS"
    assert sources["batch.max_bytes"] == ".env, variable OUZEL_BATCH__MAX_BYTES"
    assert sources["retry.max_attempts"] == f"secret file {secrets}/OUZEL_RETRY__MAX_ATTEMPTS"
    assert sources["model.top_k"] == str(file)
    assert sources["model.min_score"] == "default"


def test_the_file_is_the_named_one_else_that_of_the_environment_else_the_one_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write
) -> None:
    Path("settings.toml").write_text("[model]\ntop_k = 11")
    assert load().model.top_k == 11
    of_the_environment = tmp_path / "env.toml"
    of_the_environment.write_text("[model]\ntop_k = 12")
    monkeypatch.setenv("OUZEL_SETTINGS", str(of_the_environment))
    assert load().model.top_k == 12
    assert load(write("[model]\ntop_k = 13")).model.top_k == 13


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[kafka.client]\n"sasl.password" = "x"\n"sasl.username" = "me"',
        '[kafka.client]\nsasl.password = "x"\nsasl.username = "me"',
        '[kafka.client.sasl]\npassword = "x"\nusername = "me"',
    ],
)
def test_a_librdkafka_property_has_dots_however_toml_nests_it(write: Write, text: str) -> None:
    assert load(write(text)).kafka.client == {"sasl.password": "x", "sasl.username": "me"}


def test_in_librdkafka_tables_the_environments_underscore_is_the_dot(
    monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    file = write('[kafka.client]\nsasl.password = "in the file"\nsasl.username = "me"')
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SASL_PASSWORD", "s3cret")
    monkeypatch.setenv("OUZEL_KAFKA__CONSUMER", '{"max.poll.interval.ms": 60000}')
    settings, sources = load_with_sources(file)
    assert settings.kafka.client == {"sasl.password": "s3cret", "sasl.username": "me"}
    assert settings.kafka.consumer == {"max.poll.interval.ms": 60000}
    assert sources["kafka.client.sasl.password"] == "environment variable OUZEL_KAFKA__CLIENT__SASL_PASSWORD"
    assert sources["kafka.client.sasl.username"] == str(file)


@pytest.mark.parametrize(("text", "topics"), [("a,b", ["a", "b"]), (" a , b,", ["a", "b"]), ('["a","b"]', ["a", "b"])])
def test_a_list_in_the_environment_is_json_or_has_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, topics: list[str]
) -> None:
    monkeypatch.setenv("OUZEL_KAFKA__INPUT_TOPICS", text)
    assert load().kafka.input_topics == topics


def test_an_unquoted_time_is_a_start(write: Write) -> None:
    assert load(write("[kafka]\nstart = 2026-01-31T09:30:00Z")).kafka.start == "2026-01-31T09:30:00+00:00"


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OUZEL_BACTH__MAX_SIZE", "OUZEL_BATCH__MAX_SIZE"),
        ("OUZEL_BATCH_MAX_SIZE", "OUZEL_BATCH__MAX_SIZE"),
        ("OUZEL_KAFKA__BOOTSTRAP_SERVER", "OUZEL_KAFKA__BOOTSTRAP_SERVERS"),
        ("OUZEL_KAFKA_CLIENT_SASL_PASSWORD", "OUZEL_KAFKA__CLIENT__SASL_PASSWORD"),
        ("OUZEL_HEALTH_PORT", "OUZEL_HEALTH__PORT"),
    ],
)
def test_a_variable_that_is_no_setting_is_an_error_with_the_near_name(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "hunter2")
    page = _page()
    assert f"{name}: there is no such setting" in page
    assert f"did you mean {meant}?" in page
    assert "hunter2" not in page


def test_variables_of_tests_and_of_kubernetes_services_are_no_typos(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OUZEL_TEST_BOOTSTRAP_SERVERS": "x",
        "OUZEL_PORT": "tcp://10.0.0.1:8080",
        "OUZEL_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "OUZEL_PORT_8080_TCP_ADDR": "10.0.0.1",
        "OUZEL_SERVICE_HOST": "10.0.0.1",
        "OUZEL_HEALTH_SERVICE_PORT_METRICS": "8080",
    }.items():
        monkeypatch.setenv(name, value)
    assert load() == Settings()


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("[batch]\nmax_sise = 3", "batch.max_sise", "batch.max_size"),
        ("[pipeline]\nmax_wait_ms = 3", "pipeline.max_wait_ms", "batch.max_wait_ms"),
        ("[bacth]\nmax_size = 3", "bacth", None),
    ],
)
def test_a_key_that_does_not_exist_is_an_error_with_the_near_name(
    write: Write, text: str, key: str, meant: str | None
) -> None:
    file = write(text)
    page = _page(file)
    assert f"{key}: there is no such setting" in page
    assert f"from: {file}" in page
    assert meant is None or f"did you mean {meant}?" in page


def test_everything_that_is_wrong_is_on_one_page(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    file = write('[batch]\nmax_size = "many"\nmax_bites = 1\n[kafka]\nstart = "yesterday"\n[kafka.producer]\nacks = 1')
    monkeypatch.setenv("OUZEL_LOG__LEVEL", "LOUD")
    monkeypatch.setenv("OUZEL_TOPIC__PARTITIONS", "3")
    monkeypatch.setenv("OUZEL_KAFKA__ADMIN", "{not json")
    page = _page(file)
    assert page.startswith("7 problems with the settings")
    for key in ("batch.max_size", "batch.max_bites", "kafka.start", "kafka.producer.acks", "log.level", "kafka.admin"):
        assert f"\n  {key}: " in page
    assert "did you mean OUZEL_TOPICS__PARTITIONS?" in page
    assert "choose 'TRACE', 'DEBUG', 'INFO', 'WARNING' or 'ERROR'" in page
    assert "environment variable OUZEL_LOG__LEVEL" in page


def test_the_value_of_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setenv("OUZEL_KAFKA__CONSUMER", '{"sasl.password": "hunter2"')
    page = _page(
        write('[kafka.client]\nsasl.password = ["hunter2"]\nssl.key.pem = ["hunter2"]\n[kafka]\nadmin = "hunter2"')
    )
    assert "hunter2" not in page
    assert "kafka.client.sasl.password: ******** will not do" in page
    assert page.startswith("4 problems")


@pytest.mark.parametrize(
    "text",
    [
        '[stores.http]\nheaders = "hunter2"',
        '[stores.http.headers]\n"a.example" = "hunter2"',
        '[stores.http.headers."a.example"]\nAuthorization = ["hunter2"]',
        '[stores.http.headers."a.example"]\nAuthorization = "hunter2\\n"',
        '[stores.http]\nproxy = ["http://user:hunter2@proxy:1"]',
        '[stores.http]\nproxy = "http://user:hunter2@proxy"',
    ],
)
def test_headers_and_proxies_are_secrets_even_where_they_are_wrong(write: Write, text: str) -> None:
    page = _page(write(text))
    assert page.startswith("one problem")
    assert "hunter2" not in page


def test_headers_come_from_the_file_and_from_secrets_and_are_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from consumer.cli import app

    secrets = _made(tmp_path / "secrets")
    (secrets / "OUZEL_STORES__HTTP__HEADERS").write_text('{"a.example": {"Authorization": "Bearer hunter2"}}\n')
    monkeypatch.setenv("OUZEL_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("OUZEL_STORES__HTTP__PROXY", "http://user:hunter2@proxy.example:3128")
    path = write('[stores.http.headers."b.example"]\nX-Key = "hunter2"')
    http = load(path).stores.http
    assert {host: [*headers] for host, headers in http.headers.items()} == {
        "a.example": ["Authorization"],
        "b.example": ["X-Key"],
    }
    assert http.headers["a.example"]["Authorization"].get_secret_value() == "Bearer hunter2"
    assert "hunter2" not in repr(http)
    for option in ([], ["--json"]):
        shown = CliRunner().invoke(app, ["--settings", str(path), "settings", *option])
        assert shown.exit_code == 0, shown.output
        assert "stores.http.headers" in shown.output
        assert "hunter2" not in shown.output


def test_a_named_file_that_is_missing_is_an_error_that_says_who_named_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "nowhere.toml"
    assert "--settings names it" in _page(missing)
    monkeypatch.setenv("OUZEL_SETTINGS", str(missing))
    assert "environment variable OUZEL_SETTINGS names it" in _page()
    assert "cannot be read" in _page(tmp_path)


def test_a_syntax_error_says_its_line_and_the_rest_is_still_checked(
    monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    monkeypatch.setenv("OUZEL_BATCH__MAX_SIZE", "0")
    page = _page(write("[batch]\n\nmax_size = = 3\n"))
    assert "line 3" in page
    assert "batch.max_size: '0' will not do" in page


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of secrets."""
    folder = _made(tmp_path / "secrets")
    monkeypatch.setenv("OUZEL_SECRETS_DIR", str(folder))
    return folder


def test_a_secret_file_is_named_like_its_variable_and_what_ends_its_lines_is_cut_off(secrets: Path) -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"
    (secrets / "OUZEL_KAFKA__CLIENT__SASL_PASSWORD").write_text(" hunter2 \r\n\n")
    (secrets / "ouzel_kafka__client__ssl_key_pem").write_text(key + "\n")
    (secrets / "OUZEL_KAFKA__CLIENT__SASL_OAUTHBEARER_CLIENT_SECRET").write_text("s3cret")
    (secrets / "postgres-password").write_text("another's")
    client = load().kafka.client
    assert client == {"sasl.password": " hunter2 ", "ssl.key.pem": key, "sasl.oauthbearer.client.secret": "s3cret"}


def test_a_secret_may_be_a_link_as_kubernetes_mounts_it(secrets: Path) -> None:
    (_made(secrets / "..data") / "OUZEL_KAFKA__CLIENT__SASL_PASSWORD").write_text("hunter2")
    link = secrets / "OUZEL_KAFKA__CLIENT__SASL_PASSWORD"
    link.symlink_to(Path("..data") / link.name)
    assert load().kafka.client["sasl.password"] == "hunter2"


def test_a_secret_that_cannot_be_read_is_an_error_that_names_the_file(secrets: Path) -> None:
    _made(secrets / "OUZEL_KAFKA__CLIENT__SASL_PASSWORD")  # as Docker makes it, where the file to be mounted is missing
    (secrets / "OUZEL_KAFKA__CLIENT__SSL_KEY_PEM").symlink_to("gone")
    (secrets / "OUZEL_KAFKA__CLIENT__SSL_KEY_PASSWORD").write_bytes(b"\xff\xfe")
    page = _page()
    assert "OUZEL_KAFKA__CLIENT__SASL_PASSWORD: the secret cannot be read: Is a directory" in page
    assert "OUZEL_KAFKA__CLIENT__SSL_KEY_PEM: the secret cannot be read: No such file" in page
    assert "OUZEL_KAFKA__CLIENT__SSL_KEY_PASSWORD: the secret is not UTF-8 text" in page


def test_a_typo_in_the_name_of_a_secret_file_is_an_error_without_its_value(secrets: Path) -> None:
    (secrets / "OUZEL_KAFKA_CLIENT_SASL_PASSWORD").write_text("hunter2")
    (secrets / "OUZEL_RETRY__MAX_ATTEMPTS").write_text("hunter2")
    page = _page()
    assert "did you mean OUZEL_KAFKA__CLIENT__SASL_PASSWORD?" in page
    assert f"from: secret file {secrets}/OUZEL_KAFKA_CLIENT_SASL_PASSWORD" in page
    assert "hunter2" not in page


@pytest.mark.parametrize("name", ["KAFKA__CLIENT__SASL_PASSWORD", "KAFKA__GROUP_ID"])
def test_a_variable_that_names_a_file_is_told_the_one_way(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"OUZEL_{name}_FILE", "/run/secrets/password")
    assert f"put the file under the name OUZEL_{name} into the folder that OUZEL_SECRETS_DIR names" in _page()


def test_librdkafkas_own_files_are_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE", "/key.pem")
    assert load().kafka.client == {"sasl.oauthbearer.assertion.private.key.file": "/key.pem"}


def test_what_is_secret_is_known_by_its_key_its_type_and_its_file(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "OUZEL_KAFKA__CLIENT__SASL_USERNAME").write_text("from-a-file")
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SASL_PASSWORD", "by-its-key")
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SASL_PASWORD", "by-a-typo")
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SASL_MECHANISM", "PLAIN")
    assert set(secret_values(*load_with_sources())) == {"from-a-file", "by-its-key", "by-a-typo"}
    nested = {"host.example.org": SecretStr("by-its-type"), "others": [SecretStr("in-a-list")], "url": "public"}
    assert set(_secrets_in(nested, called_so=False)) == {"by-its-type", "in-a-list"}


def test_a_missing_folder_of_secrets_is_an_error_if_it_was_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OUZEL_SECRETS_DIR", str(tmp_path / "nowhere"))
    assert "folder of secrets cannot be read" in _page()


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('[kafka]\nstart = "2026-01-31T09:30:00"', "kafka.start", "no place to start"),
        ('[kafka]\nstart = "1969-12-31T23:59:59Z"', "kafka.start", "no place to start"),
        ('[kafka]\nstart = "2026-01-31"', "kafka.start", "no place to start"),
        ('[kafka]\ninput_topics = ["^images-.*"]', "kafka.input_topics", "is a pattern"),
        ('[kafka]\ninput_topics = ["my images"]', "kafka.input_topics", "no name for a topic"),
        ('[kafka]\ninput_topics = ["a", "a"]', "kafka.input_topics", "listed twice"),
        ("[kafka]\ninput_topics = []", "kafka.input_topics", "at least 1"),
        ('[kafka]\noutput_topic = "images"', "kafka.output_topic", "is an input topic too"),
        ('[kafka]\ndead_letter_topic = "predictions"', "kafka.dead_letter_topic", "output topic too"),
        ('[kafka]\noutput_topic = "images.dlq.replayed"', "kafka.dead_letter_topic", "output topic too"),
        ('[swap]\nshadow_topic = "predictions"', "swap.shadow_topic", "has another use"),
        ('[swap]\nshadow_topic = "images.dlq.replayed"', "swap.shadow_topic", "has another use"),
        ('[swap]\nshadow_topic = "a b"', "swap.shadow_topic", "no name for a topic"),
        ('[kafka]\ngroup_instance_id = "a-{pod}"', "kafka.group_instance_id", "'{pod}' cannot be filled in"),
        ("[kafka]\nmax_message_bytes = 2_000_000_000", "kafka.max_message_bytes", "outside"),
        ("[model]\nstd = [1.0, 0.0, 1.0]", "model.std", "has a zero"),
        ("[model]\nmean = [1.0, 0.0]", "model.mean", "has 2 values"),
        ("[model]\ninput_range = [1.0, 1.0]", "model.input_range", "the same"),
        ('[model]\ndevice = "tpu"', "model.device", "no device"),
        ("[batch]\nmax_size = 300", "batch.max_size", "never gather"),
        ("[pipeline]\nmax_in_flight_bytes = 1", "batch.max_bytes", "never gather"),
        ("[batch]\nmax_wait_ms = 300_000", "batch.max_wait_ms", "restarted"),
        ("[decode]\ndeadline_ms = 300_000", "decode.deadline_ms", "restarted"),
        ("[model]\ninfer_deadline_ms = 0", "model.infer_deadline_ms", "no time at all"),
        ("[retry]\ninitial_backoff_ms = 20_000", "retry.initial_backoff_ms", "more than"),
        ('[stores.file]\nroots = ["/images", "images"]', "stores.file.roots", "'images' is relative"),
        ('[stores.file]\nroots = ["~/images"]', "stores.file.roots", "is relative"),
        ('[stores.http]\nhosts = ["https://a.example/"]', "stores.http.hosts", "'https://a.example/' is no port"),
        ('[stores.http]\nhosts = ["a.example."]', "stores.http.hosts", "without a last dot"),
        ('[stores.http]\nhosts = ["*.127.0.0.1"]', "stores.http.hosts", "no names below it"),
        ('[stores.http]\nhosts = ["10.1"]', "stores.http.hosts", "four decimal numbers"),
        ('[stores.http]\nhosts = ["straße.example"]', "stores.http.hosts", "xn--"),
        ('[stores.http]\nhosts = ["a.*.example"]', "stores.http.hosts", "no host name"),
        ('[stores.http]\nschemes = ["ftp"]', "stores.http.schemes", "'https' or 'http'"),
        ('[stores.http]\nallow_networks = ["10.0.0.1/8"]', "stores.http.allow_networks", "no network"),
        ('[stores.http]\nca_file = "/absent.pem"', "stores.http.ca_file", "no file"),
        ('[stores.http]\nproxy = "socks5://a:1"', "stores.http.proxy", "no proxy"),
        ("[stores.http]\nmax_redirects = 21", "stores.http.max_redirects", "at most 20"),
        ('[stores.http.headers."*.example"]\nA = "b"', "stores.http.headers", "anybody may own"),
        ('[stores.http.headers."a.example"]\nHost = "b"', "stores.http.headers", "the store's own"),
        ('[stores.http.headers."a.example"]\nA = 1', "stores.http.headers", "********"),
        ('[stores.s3]\nbuckets = ["s3://photos"]', "stores.s3.buckets", "not the name of a bucket"),
        ('[stores.gcs]\nbuckets = ["photos", ""]', "stores.gcs.buckets", "not the name of a bucket"),
        ('[stores.azure]\ncontainers = ["/a"]', "stores.azure.containers", "not the name of a bucket"),
        ('[stores.s3]\nendpoint_url = "https://me:pw@host"', "stores.s3.endpoint_url", "not the URL"),
        ('[stores.gcs]\nendpoint_url = "host:9000"', "stores.gcs.endpoint_url", "not the URL"),
        ('[stores.s3]\naccess_key_id = "a"', "stores.s3.access_key_id", "half of a key"),
        ('[stores.s3]\nanonymous = true\nprofile = "birds"', "stores.s3.anonymous", "differently who asks"),
        ("[model]\nmean = [nan]", "model.mean", "finite number"),
        ("[model]\nstd = [1.0, 1.0, inf]", "model.std", "finite number"),
        ("[model]\ninput_range = [0.0, inf]", "model.input_range", "finite number"),
        ("[model]\nmin_score = nan", "model.min_score", "finite number"),
        ("[model]\ncrop = nan", "model.crop", "finite number"),
        ("[dead_letters]\nsystem_ratio = nan", "dead_letters.system_ratio", "finite number"),
        ("[topics]\nreplication_factor = 0", "topics.replication_factor", "none"),
    ],
)
def test_values_that_cannot_be_or_not_together_are_refused(write: Write, text: str, key: str, said: str) -> None:
    page = _page(write(text))
    assert f"\n  {key}: " in page
    assert "me:pw" not in page
    assert said in page
    assert "fix:" in page


@pytest.mark.parametrize("start", ["earliest", "latest", "2026-01-31T09:30:00Z", "2026-01-31T09:30:00.5+02:00"])
def test_a_start_is_a_word_or_a_time(write: Write, start: str) -> None:
    assert load(write(f'[kafka]\nstart = "{start}"')).kafka.start == start


# --- the schema registry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[output]\nformat = "avro"', "output.format"),
        ('[schema_registry]\nurl = "registry:8081"', "schema_registry.url"),
        ('[schema_registry]\nurl = "http://one:8081, two"', "schema_registry.url"),
        ('[schema_registry]\nurl = "https://me:hunter2@one"', "carries a user name or password"),
        ('[schema_registry]\nurl = "http://one"\nusername = "me"', "schema_registry.username"),
    ],
)
def test_a_registry_that_cannot_be_used_is_told(write: Write, text: str, named: str) -> None:
    page = _page(write(text))
    assert named in page
    assert "hunter2" not in page


def test_the_registrys_password_is_shown_nowhere(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUZEL_SCHEMA_REGISTRY__PASSWORD", "hunter2")
    settings = load(write('[schema_registry]\nurl = "http://one:8081,https://two"\nusername = "me"'))
    assert settings.schema_registry.password.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"
