"""How a bucket's client is made: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

obstore is imported here when the first bucket is opened; botocore when its credentials are first needed.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from consumer.adapters.stores.buckets import BucketRules
from consumer.adapters.stores.object_store import ObjectStore
from consumer.errors import SettingsError
from consumer.extras import missing

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Config, S3Credential, S3Store

# botocore renews temporary credentials 15 minutes before they end, obstore asks 5 minutes before this: none is used
# that has ended (https://github.com/boto/botocore/blob/develop/botocore/credentials.py).
_CREDENTIALS_KEPT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How a store is reached."""

    url: str = ""
    """Empty: the cloud's own."""
    ca_file: str = ""
    """PEM certificates that are trusted beside the system's."""
    proxy_url: str = ""
    """Empty: none, whatever the environment says."""
    connect_timeout_ms: int = 3_000
    read_timeout_ms: int = 5_000
    """Between two pieces of an answer."""

    def client_options(self) -> "ClientConfig":
        """In obstore's words. The one total deadline is not among them: `ObjectStore` holds it, whatever is slow."""
        options: ClientConfig = {
            # Only where the operator wrote it: credentials would go out in the clear otherwise.
            "allow_http": urlsplit(self.url).scheme == "http",
            "connect_timeout": timedelta(milliseconds=self.connect_timeout_ms),
            "read_timeout": timedelta(milliseconds=self.read_timeout_ms),
            "timeout": timedelta(hours=1),
            "proxy_url": self.proxy_url or "http://127.0.0.1:9",
            # Without a proxy of its own the client takes the environment's; one that is for no host turns that off.
            "proxy_excludes": "" if self.proxy_url else "*,0.0.0.0/0,::/0",
        }
        if self.ca_file:
            try:
                options["root_certificate"] = Path(self.ca_file).read_bytes()
            except OSError as error:
                raise SettingsError(
                    f"{self.ca_file}: the certificates cannot be read: {error.strerror}",
                    remedy="correct ca_file of the store, or let this user read it",
                ) from error
        return options


_RETRIES: "RetryConfig" = {"max_retries": 0}


@dataclass(frozen=True, slots=True)
class S3Access:
    """As whom S3 is asked: nobody, given keys, or what botocore's chain of credentials finds."""

    anonymous: bool = False
    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str = ""
    profile: str = ""
    requester_pays: bool = False


class S3Clients:
    """Makes the client of a bucket, as `[stores.s3]` says.

    Raises:
        SettingsError: the extra is not installed, a file cannot be read, or a value will not do.
    """

    def __init__(self, *, endpoint: Endpoint, region: str, path_style: bool, access: S3Access) -> None:
        need("s3", "obstore", "botocore")
        self._options = endpoint.client_options()
        self._chain = _AwsChain(access.profile)
        self._endpoint, self._region, self._path_style, self._access = endpoint, region, path_style, access
        _try_out(self.open, "s3")

    def open(self, bucket: str) -> "S3Store":
        """The client of a bucket; connects to nothing yet."""
        from obstore.store import S3Store

        access, endpoint = self._access, self._endpoint
        config: S3Config = {"virtual_hosted_style_request": not self._path_style}
        if endpoint.url:
            config["endpoint"] = endpoint.url if self._path_style else _with_bucket(endpoint.url, bucket)
        if place := self._region or self._chain.region():
            config["region"] = place
        if access.requester_pays:
            config["request_payer"] = True
        provider = None
        if access.anonymous:
            config["skip_signature"] = True
        elif access.access_key_id:
            config["access_key_id"] = access.access_key_id
            config["secret_access_key"] = access.secret_access_key
            if access.session_token:
                config["session_token"] = access.session_token
        else:
            provider = self._chain.credentials
        return S3Store(
            bucket, config=config, client_options=self._options, retry_config=_RETRIES, credential_provider=provider
        )

    def forget_credentials(self) -> None:
        """Look them up anew for the next client: they were refused."""
        self._chain.forget()


def s3_store(
    buckets: Iterable[str],
    *,
    endpoint: Endpoint,
    region: str,
    path_style: bool,
    access: S3Access,
    max_concurrency: int,
) -> ObjectStore:
    """`s3://bucket/key`, with `?versionId=ID` for a version.

    Raises:
        SettingsError: the extra is not installed, a file cannot be read, or a value will not do.
    """
    clients = S3Clients(endpoint=endpoint, region=region, path_style=path_style, access=access)
    return ObjectStore(
        BucketRules("s3", buckets, setting="stores.s3.buckets", version_parameter="versionId"),
        clients.open,
        forget_credentials=clients.forget_credentials,
        max_concurrency=max_concurrency,
    )


def gcs_store(buckets: Iterable[str], *, endpoint: Endpoint, anonymous: bool, max_concurrency: int) -> ObjectStore:
    """`gs://bucket/key`, with `?generation=N` for a version. Raises as `s3_store` does."""
    need("gcs", "obstore")
    options = endpoint.client_options()

    def open_bucket(bucket: str) -> Any:
        from obstore.store import GCSStore

        config: GCSConfig = {"skip_signature": anonymous}
        if endpoint.url:
            config["base_url"] = endpoint.url
        return GCSStore(bucket, config=config, client_options=options, retry_config=_RETRIES)

    _try_out(open_bucket, "gcs")
    rules = BucketRules("gs", buckets, setting="stores.gcs.buckets", version_parameter="generation")
    return ObjectStore(rules, open_bucket, max_concurrency=max_concurrency)


def azure_store(
    containers: Iterable[str], *, endpoint: Endpoint, account: str, anonymous: bool, max_concurrency: int
) -> ObjectStore:
    """`az://container/key`, with `?versionId=TIME` for a version. Raises as `s3_store` does."""
    need("azure", "obstore")
    options = endpoint.client_options()

    def open_container(container: str) -> Any:
        from obstore.store import AzureStore

        config: AzureConfig = {"skip_signature": anonymous}
        if account:
            config["account_name"] = account
        if endpoint.url:
            config["endpoint"] = endpoint.url
        return AzureStore(container, config=config, client_options=options, retry_config=_RETRIES)

    _try_out(open_container, "azure")
    rules = BucketRules("az", containers, setting="stores.azure.containers", version_parameter="versionId")
    return ObjectStore(rules, open_container, max_concurrency=max_concurrency)


class _AwsChain:
    """The AWS credential chain, as botocore looks it up: environment, profile (also assumed roles and single sign-on),
    web identity, container and instance roles. Blocks only on threads of its own."""

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._session: Any = None
        self._found: Any = None

    def region(self) -> str:
        """The region of the environment or the profile; empty where neither has one."""
        return str(self._opened().get_config_variable("region") or "")

    async def credentials(self) -> "S3Credential":
        """For obstore, which keeps them until shortly before they end."""
        frozen = await asyncio.to_thread(self._frozen)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_KEPT,
        }

    def forget(self) -> None:
        """Look all of it up anew the next time."""
        self._session = self._found = None

    def _opened(self) -> Any:
        import botocore.session

        session = self._session
        if session is None:
            session = self._session = botocore.session.Session(profile=self._profile or None)
        return session

    def _frozen(self) -> Any:
        found = self._found
        if found is None:
            found = self._found = self._opened().get_credentials()
        if found is None:
            raise LookupError("no AWS credentials")
        return found.get_frozen_credentials()


def need(extra: str, *modules: str) -> None:
    """Raises `SettingsError` with the command that installs an extra whose modules are not there."""
    if missing(*modules):
        raise SettingsError(
            f"the settings have [stores.{extra}], and what it needs is not installed",
            remedy=f"pip install '.[{extra}]', or empty the list of its buckets",
        )


def _try_out(open_bucket: Callable[[str], object], table: str) -> None:
    """Raises `SettingsError` where no client can be made at all, before the first image needs one."""
    try:
        open_bucket("try-out")
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise SettingsError(
            f"[stores.{table}] makes no client: {type(error).__name__}: {lines[0][:200]}",
            remedy=f"correct [stores.{table}], or what the cloud's own environment variables and files say",
        ) from None


def _with_bucket(url: str, bucket: str) -> str:
    """Virtual-hosted style, where the client wants the bucket in the endpoint."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()
