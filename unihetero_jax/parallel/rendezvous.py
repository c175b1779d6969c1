"""Rendezvous of a job's processes before JAX connects them; names the hosts that do not arrive.

JAX's own start ends a process with a C++ stack after its timeout, and names no host. So each process first sends its
host name to process 0, over the port that JAX's service takes next. Process 0 replies when all have arrived, or with
the ones that are missing.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any

_RETRY_S = 0.2
_LONGEST_LINE = 1 << 20


class HostMissing(Exception):
    """A process of the job did not arrive in time; the message names it. Another start may succeed."""


def meet(address: str, count: int, number: int, name: str, timeout_s: float, expected: Sequence[str] = ()) -> list[str]:
    """Wait until all processes of a job have arrived.

    Args:
      address: host:port of process 0.
      count: number of processes.
      number: index of this one.
      name: host name of this one.
      timeout_s: how long to wait for the last.
      expected: host names of the job, where they are known; those that nothing arrived from are named.

    Returns:
      The host names by process.

    Raises:
      HostMissing: naming the processes that did not arrive, or process 0's address if it does not reply.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    if number:
        reply = _join(host, int(port), {"process": number, "name": name}, deadline)
        if reply is None:
            raise HostMissing(f"process 0 at {address} did not answer process {number} ({name}) in {timeout_s:g} s")
    else:
        reply = _host(bind_host(address), int(port), count, name, deadline, timeout_s, expected)
    if "error" in reply:
        raise HostMissing(reply["error"])
    return [str(found) for found in reply["names"]]


def bind_host(address: str) -> str:
    """Return where process 0 listens: this machine only where the job's address is a loopback one, else everywhere."""
    host = address.rpartition(":")[0].strip("[]")
    return host if host in ("localhost", "::1") or host.startswith("127.") else ""


def _host(
    host: str, port: int, count: int, name: str, deadline: float, timeout_s: float, expected: Sequence[str]
) -> dict[str, Any]:
    names, connections = {0: name}, list[socket.socket]()
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=count, dualstack_ipv6=both) as server:
        while len(names) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            connections.append(connection)
            message = _read(connection, time.monotonic() + 5.0)
            # Other programs may connect to the port; they are not counted.
            if message is not None and message.get("process") in range(1, count):
                names[message["process"]] = str(message.get("name"))
    if len(names) == count:
        reply: dict[str, Any] = {"names": [names[process] for process in range(count)]}
    else:
        reply = {"error": _missing(names, count, timeout_s, expected)}
    for connection in connections:
        with connection:
            try:
                connection.sendall(json.dumps(reply).encode() + b"\n")
            except OSError:
                continue  # it died meanwhile, which JAX's start will notice
    return reply


def _missing(names: dict[int, str], count: int, timeout_s: float, expected: Sequence[str]) -> str:
    absent = [process for process in range(count) if process not in names]
    # Some environments have fully qualified names, some only the first part.
    here = {name.partition(".")[0] for name in names.values()}
    silent = [host for host in expected if host.partition(".")[0] not in here]
    return (
        f"{count - len(names)} of {count} processes did not arrive in {timeout_s:g} s: "
        f"{', '.join(map(str, absent))}"
        + (f"; none from {', '.join(silent)}" if silent else "")
        + "; here are "
        + ", ".join(f"{process} ({names[process]})" for process in sorted(names))
    )


def _join(host: str, port: int, message: dict[str, int | str], deadline: float) -> dict[str, Any] | None:
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(message).encode() + b"\n")
                # Process 0 may have started a little later than this one, and replies when its time is up.
                reply = _read(connection, deadline + 10.0)
        except OSError:
            reply = None
        if reply is not None:
            return reply
        time.sleep(_RETRY_S)
    return None


def _read(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """Read the one line of JSON that the other side sends; None when there is none."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            part = connection.recv(1 << 16)
        except OSError:
            return None
        if not part:
            return None
        line += part
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
