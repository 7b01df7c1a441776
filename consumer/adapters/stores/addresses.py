"""Which addresses a stranger's URI may make us connect to: those of the public Internet, and what an operator names.

An IPv6 address can carry an IPv4 address that a gateway connects to in its stead. Such an address is judged by every
address that it may lead to.
"""

import ipaddress
from collections.abc import Iterator, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The IANA special-purpose registries (https://www.iana.org/assignments/iana-ipv4-special-registry and
# .../iana-ipv6-special-registry), multicast, and two that are not in them. `ipaddress.is_global` follows the
# registries of its Python's day, and calls 192.0.0.8, 64:ff9b::a9fe:a9fe and 2002:7f00:1:: global.
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host; Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host of an Azure machine, by a public number
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments; a cloud's metadata at 192.0.0.192
        "192.0.2.0/24",
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # IETF protocol assignments, with Teredo (2001::/32) and ORCHID
        "2001:db8::/32",
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",
    )
]
# All that IANA has given out of IPv6 as global unicast (https://www.iana.org/assignments/ipv6-address-space).
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_IPV4_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_6TO4 = ipaddress.ip_network("2002::/16")  # RFC 3056
_ISATAP_IDENTIFIERS = {0x0000_5EFE, 0x0200_5EFE}  # RFC 5214, 6.1: the upper half of the interface's identifier


def is_allowed(address: Address, named: Sequence[Network]) -> bool:
    """Whether to connect to it: public, or in one of the networks that an operator named.

    An address that carries another (IPv4-mapped, NAT64, 6to4, ISATAP) is allowed if that one is; one with a zone, and
    one of NAT64's local prefix or of Teredo, only where an operator names its own network.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return False
    if any(address in network for network in named):
        return True
    carried = list(_carried(address))
    if carried:
        return all(is_allowed(each, named) for each in carried)
    return is_public(address)


def is_public(address: Address) -> bool:
    """Whether an address that carries no other is global unicast."""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def _carried(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that a gateway might connect to in this one's stead."""
    if address.version == 4:
        return
    bits = int(address)
    if address in _IPV4_MAPPED or address in _NAT64:
        yield ipaddress.IPv4Address(bits & 0xFFFF_FFFF)
    elif address in _6TO4:
        yield ipaddress.IPv4Address(bits >> 80 & 0xFFFF_FFFF)
    elif address in _GLOBAL_UNICAST and bits >> 32 & 0xFFFF_FFFF in _ISATAP_IDENTIFIERS and is_public(address):
        yield ipaddress.IPv4Address(bits & 0xFFFF_FFFF)
