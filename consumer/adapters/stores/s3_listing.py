"""What a bucket holds, key by key, by botocore.

Not by obstore, which the images are fetched with: its listing ends in an error at the first key that it cannot say
(`a//b`, `..`, a control character), and all that lies behind it would be missed. Listing is not what takes time: a
request brings a thousand keys.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from consumer.errors import BucketFailed, Fatal, SettingsError
from consumer.extras import missing

if TYPE_CHECKING:
    from consumer.adapters.stores.clouds import Endpoint, S3Access

_ATTEMPTS = 5
_FALLBACK_REGION = "us-east-1"  # as the stores' client has it
_REMEDIES: Mapping[str, str] = {
    "NoSuchBucket": "correct the bucket's name, or stores.s3.endpoint_url",
    "AccessDenied": "have the bucket's owner allow s3:ListBucket (s3:GetObject for an inventory) to these credentials",
    "InvalidAccessKeyId": "correct stores.s3.access_key_id, or what AWS's credential chain finds",
    "SignatureDoesNotMatch": "correct stores.s3.secret_access_key, or what AWS's credential chain finds",
    "ExpiredToken": "get new temporary credentials, then give the same command again: it goes on where it stopped",
    "PermanentRedirect": "set stores.s3.region to the bucket's",
    "NoSuchKey": "correct the key",
}


class S3Listing:
    """Keys of buckets, and the few objects that a command reads itself. For one thread. Connects at the first call.

    Raises:
        SettingsError: the extra is not installed, or a value will not do.
    """

    def __init__(self, *, endpoint: "Endpoint", region: str, path_style: bool, access: "S3Access") -> None:
        need_extra("s3", "botocore", "listing a bucket")
        import botocore
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config: dict[str, Any] = {
            "s3": {"addressing_style": "path" if path_style else "virtual"},
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
            "connect_timeout": endpoint.connect_timeout_ms / 1000,
            "read_timeout": endpoint.read_timeout_ms / 1000,
            # As for the stores: the environment's proxies are not looked at.
            "proxies": {"http": endpoint.proxy_url, "https": endpoint.proxy_url} if endpoint.proxy_url else {},
        }
        if access.anonymous:
            config["signature_version"] = botocore.UNSIGNED
        keys: dict[str, str | None] = {}
        if access.access_key_id:
            keys = {
                "aws_access_key_id": access.access_key_id,
                "aws_secret_access_key": access.secret_access_key,
                "aws_session_token": access.session_token or None,
            }
        try:
            session = botocore.session.Session(profile=access.profile or None)
            self._client: Any = session.create_client(
                "s3",
                endpoint_url=endpoint.url or None,
                region_name=region or session.get_config_variable("region") or _FALLBACK_REGION,
                verify=endpoint.ca_file or None,
                config=Config(**config),
                **keys,
            )
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(f"no S3 client: {type(error).__name__}", remedy="correct [stores.s3]") from error
        self._payer = {"RequestPayer": "requester"} if access.requester_pays else {}

    def keys(self, bucket: str, prefix: str, *, after: str | None = None) -> Iterator[str]:
        """The keys that begin with `prefix`, in the store's order, those up to and with `after` left out.

        Raises:
            Fatal: the store does not answer, or refuses; said with a remedy.
        """
        more = {"StartAfter": after} if after is not None else {}
        with _in_our_words(f"s3://{bucket}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, **more, **self._payer
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    yield found["Key"]

    def copy(self, bucket: str, key: str, to: BinaryIO) -> None:
        """The bytes of an object, into a file. Raises as `keys` does."""
        with _in_our_words(f"s3://{bucket}/{key}"):
            answer = self._client.get_object(Bucket=bucket, Key=key, **self._payer)
            shutil.copyfileobj(answer["Body"], to, 1024 * 1024)


def need_extra(extra: str, module: str, purpose: str) -> None:
    """Raises `SettingsError` with what to install, where the module is not there."""
    if missing(module):
        raise SettingsError(f"{purpose} needs what is not installed", remedy=f"pip install '.[{extra}]'")


@contextmanager
def _in_our_words(where: str) -> Iterator[None]:
    """The client's own text may repeat the store's answer, which can carry key ids and what was signed."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise BucketFailed(f"{where}: the store answers {code}", remedy=_REMEDIES.get(code, "")) from None
    except NoCredentialsError:
        raise BucketFailed(
            f"{where}: no AWS credentials were found",
            remedy="set stores.s3.access_key_id or stores.s3.profile, or stores.s3.anonymous for a public bucket",
        ) from None
    except ParamValidationError:
        raise BucketFailed(f"{where}: no name of a bucket and key", remedy="write s3://bucket/prefix/") from None
    except (BotoCoreError, OSError) as error:
        raise _unreachable(where, error) from None


def _unreachable(where: str, error: Exception) -> Fatal:
    return BucketFailed(
        f"{where}: the store does not answer: {type(error).__name__}",
        remedy="check stores.s3.endpoint_url and the network",
    )
