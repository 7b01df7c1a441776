"""The registry, by Confluent's own client, in our errors."""

from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from consumer.errors import NotAuthorized, RegistryUnreachable

T = TypeVar("T")

# https://docs.confluent.io/platform/current/schema-registry/develop/api.html#errors
SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND = 40401, 40402, 40403
NOT_FOUND = frozenset({SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND})


def open_client(
    url: str, *, username: str = "", password: str = "", ca_file: str = "", timeout_ms: int
) -> SchemaRegistryClient:
    """A client that connects at its first question. Thread-safe.

    Args:
        url: `http(s)://host:port/path`, several with commas between.
        username, password: of HTTP's basic authentication; empty for none.
        ca_file: PEM file of who signs the registry's certificate; empty for the public ones.
        timeout_ms: for each of connecting, sending and reading, in milliseconds.
    """
    properties: dict[str, Any] = {
        "url": url,
        "timeout": timeout_ms / 1000,
        "max.retries": 0,  # who calls knows better when to try again
    }
    if username:
        properties["basic.auth.user.info"] = f"{username}:{password}"
    if ca_file:
        properties["ssl.ca.location"] = ca_file
    return SchemaRegistryClient(properties)


def asked(question: Callable[..., T], *args: Any, **more: Any) -> T | None:
    """The answer; None where what was asked for does not exist. For commands and the start, which do not try again.

    Raises:
        RegistryUnreachable: no answer, or not one of a registry.
        NotAuthorized: the registry refuses who we are, or what we may do.
    """
    try:
        return question(*args, **more)
    except SchemaRegistryError as error:
        if error.http_status_code == 404 and error.error_code in NOT_FOUND:
            return None
        if error.http_status_code in {401, 403}:
            raise NotAuthorized(
                f"the schema registry refuses: {described(error)}",
                remedy="set schema_registry.username and schema_registry.password, and ask for the right",
            ) from None
        raise RegistryUnreachable(f"the schema registry answers {described(error)}", remedy=_CHECK) from None
    except Exception as error:  # of the HTTP client, which Confluent's passes on as they are
        raise RegistryUnreachable(f"the schema registry does not answer: {described(error)}", remedy=_CHECK) from None


_CHECK = "check schema_registry.url (with its path, such as /apis/ccompat/v7 of Apicurio) and schema_registry.ca_file"


def described(error: Exception) -> str:
    """An error of the client's without what it was given: no address with a password, no body of a proxy's page."""
    if isinstance(error, SchemaRegistryError):
        known = error.error_code not in (None, -1)
        return f"HTTP {error.http_status_code}" + (f" (code {error.error_code})" if known else "")
    return f"{type(error).__name__}: {error}"


__all__ = ["NOT_FOUND", "Schema", "SchemaRegistryClient", "SchemaRegistryError", "asked", "described", "open_client"]
