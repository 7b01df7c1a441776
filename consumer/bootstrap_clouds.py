"""How buckets are reached, as `[stores.s3]` says: for images and for models."""

from typing import TYPE_CHECKING

from consumer.settings import Settings

if TYPE_CHECKING:
    from consumer.adapters.stores.clouds import Endpoint, S3Access


def s3_endpoint(settings: Settings) -> "Endpoint":
    """Where S3 answers."""
    from consumer.adapters.stores.clouds import Endpoint

    s3 = settings.stores.s3
    return Endpoint(
        url=s3.endpoint_url,
        ca_file=s3.ca_file,
        proxy_url=s3.proxy_url,
        connect_timeout_ms=s3.connect_timeout_ms,
        read_timeout_ms=s3.read_timeout_ms,
    )


def s3_access(settings: Settings) -> "S3Access":
    """As whom it is asked."""
    from consumer.adapters.stores.clouds import S3Access

    s3 = settings.stores.s3
    return S3Access(
        anonymous=s3.anonymous,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key.get_secret_value(),
        session_token=s3.session_token.get_secret_value(),
        profile=s3.profile,
        requester_pays=s3.requester_pays,
    )
