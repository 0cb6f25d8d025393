"""The guard of conftest.py: the suite cannot leave the machine."""

import os
import socket

import pytest


def test_connections_outside_fail_at_once() -> None:
    with socket.socket() as client, pytest.raises(OSError, match="only loopback is allowed"):
        client.connect(("192.0.2.1", 80))
    with socket.socket() as client, pytest.raises(OSError, match="only loopback is allowed"):
        client.connect_ex(("example.org", 443))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
