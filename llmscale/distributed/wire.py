"""Lines of JSON over TCP between rank 0 and another rank, each side having proved that it knows the run's token."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from data_pipeline.base.errors import UserError

TOKEN = "LLMSCALE_TOKEN"
"""Variable with the secret that the ranks of one run share."""

_GREETING_BYTES = 4096
"""Most bytes of a line of whoever has proved nothing yet."""
_LINE_BYTES = 64 << 20
"""Most bytes of any other line: a config and a traceback fit."""
# A peer that answers nothing for about four minutes, its machine being off, is gone.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 9}


class StrangerError(Exception):
    """The other end is no rank of this run."""


class Line:
    """A connection to another rank of the run."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = bytearray()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def here(self) -> str:
        """The address of this end."""
        return plain(self.socket.getsockname()[0])

    @property
    def there(self) -> str:
        """The address of the other end."""
        with contextlib.suppress(OSError):
            return plain(self.socket.getpeername()[0])
        return "an unknown address"

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where the other end is gone."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline: float, limit: int = _LINE_BYTES) -> dict[str, Any]:
        """The next message, by `deadline` of time.monotonic.

        Raises:
            TimeoutError: none came in time.
            ConnectionError: the other end is gone.
            StrangerError: what came is no message.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > limit:
                raise StrangerError(f"a line of more than {limit} bytes")
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the connection was closed")
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise StrangerError("no JSON") from None
        if not isinstance(message, dict):
            raise StrangerError("no JSON object")
        return message

    @property
    def pending(self) -> bool:
        """Whether a whole message lies here already."""
        return b"\n" in self._buffer

    def close(self) -> None:
        """Close it; the other end then reads its end."""
        self.socket.close()

    # Both prove to know the token before anything else is said: the one that listens first, since strangers connect.

    def greet(self, token: bytes, deadline: float) -> None:
        """Of the rank that connects. Raises as `receive`, and StrangerError where the other does not know `token`."""
        mine = secrets.token_hex(16)
        self.send({"llmscale": 1, "nonce": mine})
        answer = self.receive(deadline, _GREETING_BYTES)
        theirs = str(answer.get("nonce"))
        if not hmac.compare_digest(str(answer.get("proof")).encode(), _proof(token, "lead", mine, theirs).encode()):
            raise StrangerError("another run, or one with another token")
        self.send({"proof": _proof(token, "rank", mine, theirs)})

    def answer(self, token: bytes, deadline: float) -> None:
        """Of the rank that listens. Raises as `greet`."""
        greeting = self.receive(deadline, _GREETING_BYTES)
        if greeting.get("llmscale") != 1:
            raise StrangerError("no rank")
        theirs, mine = str(greeting.get("nonce")), secrets.token_hex(16)
        self.send({"llmscale": 1, "nonce": mine, "proof": _proof(token, "lead", theirs, mine)})
        proof = self.receive(deadline, _GREETING_BYTES).get("proof")
        if not hmac.compare_digest(str(proof).encode(), _proof(token, "rank", theirs, mine).encode()):
            raise StrangerError("another run, or one with another token")


def run_token(extra: str = "") -> bytes:
    """The key by which the ranks of this run know each other.

    Args:
        extra: what else all of them know.
    """
    return hashlib.sha256(f"{os.environ.get(TOKEN, '')}\n{extra}".encode()).digest()


def _proof(token: bytes, role: str, first: str, second: str) -> str:
    return hmac.new(token, f"{role}\n{first}\n{second}".encode(), hashlib.sha256).hexdigest()


def plain(address: str) -> str:
    """An address without the marks of IPv4 in IPv6 and of a scope."""
    return address.removeprefix("::ffff:").partition("%")[0]


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address, or a name that means it."""
    return address in ("localhost", "::1", "ip6-localhost") or (address.startswith("127.") and address.count(".") == 3)


def seconds_of(name: str, default: float) -> float:
    """A number of seconds above 0 that a variable gives.

    Raises:
        UserError: it gives something else.
    """
    text = os.environ.get(name, str(default))
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 86400:
            return float(text)
    error = UserError(f"{name} is '{text}', but must be a number of seconds above 0 and up to 86400")
    error.everywhere = False
    raise error
