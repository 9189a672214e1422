"""Messages between a cache's fetcher and the reading processes: JSON, followed by bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

__all__ = ["receive", "receive_async", "send", "send_async"]

_HEADER = struct.Struct("<IQ")  # number of bytes of the JSON, and of the bytes after it


def send(connection: socket.socket, message: dict[str, Any], payload: bytes = b"") -> None:
    """Send a message.

    Raises:
        OSError: If the other side has closed the connection.
    """
    connection.sendall(_encode(message, payload))


def receive(connection: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """Wait for a message, and return it with the bytes that follow it.

    Raises:
        ConnectionError: If the other side has closed the connection.
    """
    length, size = _HEADER.unpack(_read(connection, _HEADER.size))
    message = json.loads(bytes(_read(connection, length)))
    return message, _read(connection, size)


async def send_async(writer: asyncio.StreamWriter, message: dict[str, Any], payload: bytes = b"") -> None:
    """Send a message from an event loop; see `send`."""
    writer.write(_encode(message, payload))
    await writer.drain()


async def receive_async(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """Wait for a message in an event loop; return None if the other side has closed the connection."""
    try:
        length, size = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        return json.loads(await reader.readexactly(length)), await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _encode(message: dict[str, Any], payload: bytes) -> bytes:
    text = json.dumps(message).encode()
    return _HEADER.pack(len(text), len(payload)) + text + payload


def _read(connection: socket.socket, size: int) -> memoryview:
    content = memoryview(bytearray(size))
    at = 0
    while at < size:
        if not (count := connection.recv_into(content[at:])):
            raise ConnectionError("the other side has closed the connection")
        at += count
    return content
