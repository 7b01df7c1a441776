"""How many messages a share group has yet to be through with, by Kafka's DescribeShareGroupOffsets (KIP-932, its lag by
KIP-1226). Spoken over a plain socket, as librdkafka's AdminClient does not know it yet."""

import contextlib
import itertools
import socket
import struct
from collections.abc import Mapping

from tests.kafka_broker import Cluster

_API, _VERSION = 90, 1  # https://kafka.apache.org/protocol#The_Messages_DescribeShareGroupOffsets
_TIMEOUT_S = 3.0
_CLIENT = b"share-lag"


class Unanswered(Exception):
    """This broker does not say: it is away, or the group is another's to know."""


class ShareLag:
    """Call it for the lag by topic and partition, without those of which the broker cannot tell; empty where none can.

    Only for listeners without TLS and SASL.
    """

    def __init__(self, cluster: Cluster, group: str) -> None:
        self._group = group
        self._addresses = [_address(each) for each in cluster.bootstrap_servers.split(",")]
        """The one that knew last comes first."""
        self._wire: socket.socket | None = None
        self._numbers = itertools.count(1)

    def __call__(self) -> Mapping[tuple[str, int], int]:
        """Ask now."""
        for _ in range(len(self._addresses)):
            try:
                return self._ask()
            except (OSError, Unanswered):
                self.close()
                self._addresses.append(self._addresses.pop(0))
        return {}

    def close(self) -> None:
        """Idempotent; the next question opens it again."""
        if self._wire is not None:
            with contextlib.suppress(OSError):
                self._wire.close()
        self._wire = None

    def _ask(self) -> dict[tuple[str, int], int]:
        if self._wire is None:
            self._wire = socket.create_connection(self._addresses[0], timeout=_TIMEOUT_S)
        number = next(self._numbers)
        request = request_of(self._group, number)
        self._wire.sendall(struct.pack(">i", len(request)) + request)
        size = struct.unpack(">i", self._exactly(4))[0]
        return lag_in(self._exactly(size), number)

    def _exactly(self, count: int) -> bytes:
        assert self._wire is not None
        data = b""
        while len(data) < count:
            piece = self._wire.recv(count - len(data))
            if not piece:
                raise OSError("the broker has closed the connection")
            data += piece
        return data


def request_of(group: str, number: int) -> bytes:
    """One group, all its topics."""
    header = struct.pack(">hhih", _API, _VERSION, number, len(_CLIENT)) + _CLIENT + _NO_TAGS
    name = group.encode()
    assert len(name) < 127, "one byte has its length"
    return header + bytes([2, len(name) + 1]) + name + _NULL + _NO_TAGS + _NO_TAGS


def lag_in(answer: bytes, number: int) -> dict[tuple[str, int], int]:
    """What an answer to that request says.

    Raises:
        Unanswered: an error of the group.
    """
    reader = _Reader(answer)
    assert reader.integer(">i") == number
    reader.tags()
    reader.integer(">i")  # the throttling
    lag: dict[tuple[str, int], int] = {}
    for _ in range(reader.length()):
        reader.text()
        for _ in range(reader.length()):
            topic = reader.text()
            reader.skip(16)
            for _ in range(reader.length()):
                partition = reader.integer(">i")
                reader.integer(">q")  # where it starts
                reader.integer(">i")
                behind, error = reader.integer(">q"), reader.integer(">h")
                reader.text()
                reader.tags()
                if error == 0 and behind >= 0:  # -1: nobody has read there yet
                    lag[topic, partition] = behind
            reader.tags()
        error = reader.integer(">h")
        said = reader.text()
        reader.tags()
        if error != 0:
            raise Unanswered(f"{error}: {said}")
    return lag


_NULL = b"\0"
_NO_TAGS = b"\0"


class _Reader:
    """Kafka's compact encoding: lengths are unsigned varints, one more than they are, so that 0 is null."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def skip(self, count: int) -> bytes:
        """So many bytes."""
        self._at += count
        return self._data[self._at - count : self._at]

    def integer(self, form: str) -> int:
        """Of `struct`'s form."""
        found: int = struct.unpack(form, self.skip(struct.calcsize(form)))[0]
        return found

    def length(self) -> int:
        """Of a list or a text; 0 where it is null."""
        return max(0, self._varint() - 1)

    def text(self) -> str:
        """Empty where it is null."""
        return self.skip(self.length()).decode()

    def tags(self) -> None:
        """Tagged fields: none that we know."""
        for _ in range(self._varint()):
            self._varint()
            self.skip(self._varint())

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self.skip(1)[0]
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
