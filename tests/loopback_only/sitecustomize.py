"""Keeps a test's child process on this machine: with this folder on PYTHONPATH, Python loads it before anything else.

Looking up or connecting to any other host fails at once, and its name goes into the file that LOOPBACK_ONLY_LOG names.
Names under 127.0.0.1, such as datasets-server.127.0.0.1, mean 127.0.0.1: `datasets` derives them from HF_ENDPOINT.
"""

import os
import socket

LOOPBACK = ("127.0.0.1", "localhost", "::1", "", None)
look_up = socket.getaddrinfo
connect, connect_ex = socket.socket.connect, socket.socket.connect_ex


def refuse(host):
    if path := os.environ.get("LOOPBACK_ONLY_LOG"):
        with open(path, "a", encoding="utf-8") as log:
            log.write(f"{host}\n")
    raise socket.gaierror(socket.EAI_NONAME, f"only loopback is allowed here, not {host}")


def here(host):
    host = host.decode() if isinstance(host, bytes) else host
    return "127.0.0.1" if host and host.endswith(".127.0.0.1") else host


def guarded_look_up(host, *args, **kwargs):
    host = here(host)
    return look_up(host, *args, **kwargs) if host in LOOPBACK else refuse(host)


def guarded(original):
    def call(self, address):
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            refuse(address[0])
        return original(self, address)

    return call


socket.getaddrinfo = guarded_look_up
socket.socket.connect = guarded(connect)
socket.socket.connect_ex = guarded(connect_ex)
