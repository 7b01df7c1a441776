"""TLS that fails, in our words. librdkafka says of every certificate that it does not believe the same sentence."""

import socket
import ssl
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError

from consumer.errors import NotAuthorized

_LOOK_S = 3.0


def tls_refusal(
    error: KafkaError, *, servers: str, properties: Mapping[str, Any] | None = None
) -> NotAuthorized | None:
    """What an error of a connection means where TLS is the cause, else None.

    With `properties`, librdkafka's, one more handshake finds out what is wrong with the broker's certificate. It blocks
    for a few seconds at most.
    """
    text = error.str()
    if error.code() == KafkaError._TRANSPORT and " alert " in text:
        # TLS 1.3: the server's judgement of our certificate comes with the first answer (RFC 8446, 4.4.2.4 and 6.2).
        return NotAuthorized(
            f"the broker at {servers} refuses our certificate: {text}",
            remedy="check ssl.certificate.location and ssl.key.location in [kafka.client]: the certificate must be "
            "there, be in date, and come from an authority that the broker trusts",
        )
    # Told by either code, as it happens (seen on a busy machine): the text is OpenSSL's own.
    if error.code() != KafkaError._SSL and "certificate verify failed" not in text:
        return None
    fault = certificate_fault(servers, properties) if properties is not None else None
    return NotAuthorized(
        f"no TLS with the broker at {servers}: {fault or text}",
        remedy="its certificate must come from an authority in ssl.ca.location ([kafka.client]), be in date, and name "
        "the host as kafka.bootstrap_servers and the broker's advertised listeners have it",
    )


def certificate_fault(servers: str, properties: Mapping[str, Any]) -> str | None:
    """Why the first certificate that fails is not believed, in OpenSSL's words; None where none does.

    Connects to `servers`, "host:port" with commas between; sends nothing but the handshake.
    """
    try:
        context = _context(properties)
    except (OSError, ValueError):
        return None  # librdkafka has said what is wrong with the files
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        host = host.rpartition("://")[2].strip("[]")
        try:
            with socket.create_connection((host, int(port)), _LOOK_S) as plain:
                context.wrap_socket(plain, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of {host}:{port} is not believed: {error.verify_message}"
        except (OSError, ValueError):
            continue
    return None


def _context(properties: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    if "ssl.ca.location" in properties or "ssl.ca.pem" in properties:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        place, text = properties.get("ssl.ca.location"), properties.get("ssl.ca.pem")
        context.load_verify_locations(cafile=place, cadata=text)
    if str(properties.get("ssl.endpoint.identification.algorithm", "https")) == "none":
        context.check_hostname = False
    return context
