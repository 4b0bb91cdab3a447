from __future__ import annotations

import re
import socket

import pytest

from neuroglot_server.config.address import Address, AddressError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("localhost:0", "localhost", 0),
        ("[::1]:1", "::1", 1),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_addresses_are_read_and_written(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "50051", ":50051", "host", "host:", "host:x", "::1:50051", "host:-1", "host:٣"])
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(AddressError, match=re.escape(f"{text!r} is not an address: give HOST:PORT")):
        Address.parse(text)


def test_a_port_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AddressError, match=r"ports go from 0 .* to 65535"):
        Address.parse("127.0.0.1:65536")


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_loopback_addresses(text: str, loopback: bool) -> None:
    assert Address.parse(text).is_loopback is loopback


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(AddressError, match=f"{address} is taken, another program listens there"):
            address.check_free()
    address.check_free()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1:0 .*give an address of this machine"):
        Address("192.0.2.1", 0).check_free()


def test_an_unknown_host_name_is_refused() -> None:
    with pytest.raises(AddressError, match=r"'no\.such\.host\.invalid' has no address"):
        Address("no.such.host.invalid", 0).check_free()
