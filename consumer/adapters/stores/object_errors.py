"""What a bucket's failures mean for the message. obstore gives them as text: the HTTP status and the store's own code
are read from it, and nothing else of it is repeated.

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
https://docs.cloud.google.com/storage/docs/xml-api/reference-status
https://learn.microsoft.com/en-us/rest/api/storageservices/blob-service-error-codes
"""

import re
from dataclasses import dataclass

from consumer.errors import ImageNotFound, InvalidMessage, ReferenceRefused, StoreUnavailable

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")

_NO_SUCH_OBJECT = {"NoSuchKey", "NoSuchVersion", "BlobNotFound", "InvalidVersionId", "ResourceNotFound"}
_NO_SUCH_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_ARCHIVED = {"InvalidObjectState", "BlobArchived"}
_WHO_WE_ARE = {
    "AccountProblem",
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "NoAuthenticationInformation",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_REMEDIES = {
    "AccessDenied": "grant s3:GetObject (and s3:GetObjectVersion), and s3:ListBucket so that an absent object is told "
    "from a forbidden one",
    "AuthorizationHeaderMalformed": "set stores.s3.region to the bucket's region",
    "ExpiredToken": "renew the credentials",
    "InvalidAccessKeyId": "correct the access key",
    "PermanentRedirect": "set stores.s3.region to the bucket's region",
    "RequestTimeTooSkewed": "set this machine's clock",
    "SignatureDoesNotMatch": "correct the secret key, or the region",
}

_NO_CREDENTIALS = "no AWS credentials"  # `clouds.py` says so

# In the debug text of the client, the first that fits.
_CAUSES = (
    (r"BareRedirect", "the bucket is in another region: set stores.s3.region to the bucket's"),
    (_NO_CREDENTIALS, "no AWS credentials were found: see docs/stores.md for where they are looked for"),
    (r"InvalidCertificate|UnknownIssuer|certificate", "its TLS certificate is not trusted: see the setting ca_file"),
    (r"dns error", "the name of its host is not known"),
    (r"ConnectionRefused", "the connection was refused"),
    (r"MissingContentLength", "it answered without a Content-Length"),
    (r"IncompleteBody|UnexpectedEof|ConnectionReset|BrokenPipe|IncompleteMessage", "the connection broke"),
    (r"TimedOut|kind: Timeout", "it did not answer in time"),
    (r"kind: Connect", "it cannot be reached"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What to raise, and whether the store refused who we are."""

    error: InvalidMessage | StoreUnavailable
    credentials_refused: bool = False
    denied: bool = False
    """Whether the store answered that we may not, or that it does not know us."""


def error_for(error: Exception, where: str, *, bucket_is_named: bool) -> Found:
    """The client's error as one of ours.

    Only what no waiting mends for this object alone is a dead letter. What points at the operator's side (credentials,
    rights, region, a bucket that the settings name) waits with the store presumed down, so that it empties no topic.
    A missing object is answered 403 by S3 where s3:ListBucket is not granted; that cannot be told from a missing
    right, so it waits too, and becomes a dead letter once the bucket serves another image.

    Args:
        error: what obstore raised.
        where: the URI, as it may be said.
        bucket_is_named: whether the settings name the very bucket. One that only a wild card allows may be a sender's
            invention.
    """
    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    code = found[1] if (found := _CODE.search(text)) else ""
    if status == 0:
        return _without_answer(error, text, where)
    said = f"{where}: the store answers {status} {code}".rstrip()
    if code in _NO_SUCH_BUCKET and bucket_is_named:
        return Found(StoreUnavailable(f"{said}: create the bucket, or correct the settings (stores)"))
    if absent := _absent(status, code):
        return Found(ImageNotFound(f"{said}: {absent}"))
    remedy = f": {_REMEDIES[code]}" if code in _REMEDIES else ""
    return Found(StoreUnavailable(said + remedy), credentials_refused=code in _WHO_WE_ARE, denied=status in {401, 403})


def _absent(status: int, code: str) -> str:
    """In words, what the store does not have; empty where it says nothing of the kind."""
    if code in _NO_SUCH_BUCKET:
        return "no such bucket"
    if code in _ARCHIVED:
        return "the object is archived: restore it and send it again"
    if code in _NO_SUCH_OBJECT or (status == 404 and not code):
        return "no such object, or version of it"
    # S3's answers for a version that is a delete marker, and for a version id that never was one.
    if status == 405 or (status == 400 and code == "InvalidArgument"):
        return "no such version"
    return ""


def _without_answer(error: Exception, text: str, where: str) -> Found:
    if isinstance(error, ValueError):
        return Found(ReferenceRefused(f"{where}: the client cannot ask for this key"))
    cause = next((words for pattern, words in _CAUSES if re.search(pattern, text)), type(error).__name__)
    return Found(StoreUnavailable(f"{where}: the store failed: {cause}"), _NO_CREDENTIALS in text)
