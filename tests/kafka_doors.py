"""The ways into the secure broker of the tests: its listeners, their certificates, and how a client signs in at each.

Every certificate is made by the test run, of authorities that nobody else knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.processes import free_port

Door = Literal["plaintext", "scram", "mtls", "oauth", "expired", "misnamed"]
"""`oauth` believes whatever token is shown (Kafka's unsecured validator), as there is nobody who signs any. `expired`
and `misnamed` are `scram` with a broker's certificate that has run out, or is another host's."""

PROTOCOLS: Mapping[Door, str] = {
    "plaintext": "PLAINTEXT",
    "scram": "SASL_SSL",
    "mtls": "SSL",
    "oauth": "SASL_SSL",
    "expired": "SASL_SSL",
    "misnamed": "SASL_SSL",
}
PRINCIPALS: Mapping[Door, str] = {
    "plaintext": "User:ANONYMOUS",
    "scram": "User:ouzel",
    "mtls": "User:ouzel-mtls",
    "oauth": "User:ouzel-oauth",
}
"""Who a client is at a door: nobody asks at `plaintext`; `mtls` reads the certificate's common name, `oauth` the
token's subject."""

_CLIENT = "ouzel.example.org"
SCRAM_PASSWORD = "scram-secret"


class Certificates:
    """An authority, the broker's certificates and the clients', as PEM files in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._authority = trustme.CA()
        stranger = trustme.CA()
        past = datetime.now(UTC) - timedelta(days=1)
        self.authority = self._write("authority.pem", self._authority.cert_pem.bytes())
        self.other_authority = self._write("other-authority.pem", stranger.cert_pem.bytes())
        self.broker = self._keystore("broker.pem", self._authority.issue_cert("127.0.0.1", "localhost"))
        self.expired_broker = self._keystore(
            "expired-broker.pem", self._authority.issue_cert("127.0.0.1", not_after=past)
        )
        self.misnamed_broker = self._keystore("misnamed.pem", self._authority.issue_cert("kafka.example.org"))
        # Java refuses a certificate without any alternative name.
        self.client = self._keystore("client.pem", self._authority.issue_cert(_CLIENT, common_name="ouzel-mtls"))
        self.expired_client = self._keystore(
            "expired-client.pem", self._authority.issue_cert(_CLIENT, common_name="ouzel-mtls", not_after=past)
        )
        self.stranger = self._keystore("stranger.pem", stranger.issue_cert(_CLIENT, common_name="ouzel-mtls"))

    def _keystore(self, name: str, certificate: trustme.LeafCert) -> Path:
        """Key and chain in one file, the key as PKCS #8: Kafka reads no other (KIP-651)."""
        key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._write(name, pem + b"".join(blob.bytes() for blob in certificate.cert_chain_pems))

    def _write(self, name: str, pem: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(pem)
        return path


@dataclass(frozen=True, slots=True)
class Doors:
    """The listeners beside the broker's first one."""

    certificates: Certificates
    ports: Mapping[Door, int]

    @classmethod
    def made(cls, folder: Path) -> "Doors":
        """With fresh certificates, on free ports."""
        return cls(Certificates(folder), {door: free_port() for door in PROTOCOLS})

    @property
    def listeners(self) -> list[str]:
        """Each as `NAME://host:port`."""
        return [f"{door.upper()}://127.0.0.1:{port}" for door, port in self.ports.items()]

    def properties(self) -> dict[str, str]:
        """Lines of server.properties. Facts: KIP-651 (PEM stores), KIP-684 and KIP-371 (names of mTLS principals)."""
        lines = {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificates.authority),
            "ssl.keystore.type": "PEM",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
            "listener.name.mtls.ssl.client.auth": "required",
        }
        stores = {"expired": self.certificates.expired_broker, "misnamed": self.certificates.misnamed_broker}
        for door, protocol in PROTOCOLS.items():
            if protocol != "PLAINTEXT":
                store = stores.get(door, self.certificates.broker)
                lines[f"listener.name.{door}.ssl.keystore.type"] = "PEM"
                lines[f"listener.name.{door}.ssl.keystore.location"] = str(store)
            if door == "oauth":
                lines["listener.name.oauth.sasl.enabled.mechanisms"] = "OAUTHBEARER"
                lines["listener.name.oauth.oauthbearer.sasl.jaas.config"] = (
                    "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
                    ' unsecuredLoginStringClaim_sub="nobody";'
                )
            elif protocol == "SASL_SSL":
                lines[f"listener.name.{door}.sasl.enabled.mechanisms"] = "SCRAM-SHA-512"
                lines[f"listener.name.{door}.scram-sha-512.sasl.jaas.config"] = (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                )
        return lines

    def client_properties(self, door: Door) -> dict[str, str]:
        """librdkafka's for a client that should be let in there."""
        found = {"security.protocol": PROTOCOLS[door]}
        if door != "plaintext":
            found["ssl.ca.location"] = str(self.certificates.authority)
        if door == "mtls":
            found |= mutual_tls(self.certificates.client)
        elif door == "oauth":
            found |= {"sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc"}
        elif door != "plaintext":
            found |= {
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "ouzel",
                "sasl.password": SCRAM_PASSWORD,
            }
        return found


def mutual_tls(store: Path) -> dict[str, str]:
    """librdkafka's properties for a client's certificate: key and chain are in one file."""
    return {"ssl.certificate.location": str(store), "ssl.key.location": str(store)}
