"""Messages between two processes over a Unix socket: JSON, and file descriptors with it."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

HEAD = 8  # bytes of a message's length, which comes first
MOST_DESCRIPTORS = 3


def send(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """One message: its length, with the descriptors, then JSON."""
    data = json.dumps(message).encode()
    head = len(data).to_bytes(HEAD, "big")
    if descriptors:
        socket.send_fds(sock, [head], descriptors)
        sock.sendall(data)
    else:
        sock.sendall(head + data)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and what descriptors came with it; None when the other end is closed."""
    head, descriptors, _, _ = socket.recv_fds(sock, HEAD, MOST_DESCRIPTORS)
    while 0 < len(head) < HEAD:
        head += _some(sock, HEAD - len(head))
    if not head:
        return None, []
    left, data = int.from_bytes(head, "big"), b""
    while len(data) < left:
        data += _some(sock, left - len(data))
    return json.loads(data), list(descriptors)


def _some(sock: socket.socket, count: int) -> bytes:
    chunk = sock.recv(count)
    if not chunk:
        raise ConnectionResetError("the other end closed in the middle of a message")
    return chunk
