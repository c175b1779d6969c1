"""All processes of a job find each other before JAX connects them, or say by name who did not come.

JAX's own start ends a process with a C++ stack after its timeout, and names nobody. So each process first tells process
0 its name, over the port that JAX's service takes next; process 0 answers when all are there, or with who is missing.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence

_RETRY_S = 0.2
_LONGEST_LINE = 1 << 20


class HostMissing(Exception):
    """A process of the job did not come in time; the message names it. Another start may cure it."""


def call(address: str, count: int, number: int, name: str, timeout_s: float, expected: Sequence[str] = ()) -> list[str]:
    """Waits until all processes of a job have called.

    Args:
      address: host:port of process 0.
      count: processes of the job.
      number: of this one.
      name: of this one's machine.
      timeout_s: how long to wait for the last.
      expected: machines of the job, where they are known; those that nobody called from are named.

    Returns:
      The machines' names by process.

    Raises:
      HostMissing: naming the processes that did not call, or process 0's address if it does not answer.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    if number:
        answer = _ask(host, int(port), {"process": number, "name": name}, deadline)
        if answer is None:
            raise HostMissing(f"process 0 at {address} did not answer process {number} ({name}) in {timeout_s:g} s")
    else:
        answer = _answer(int(port), count, name, deadline, timeout_s, expected)
    if "error" in answer:
        raise HostMissing(answer["error"])
    return [str(found) for found in answer["names"]]


def _answer(
    port: int, count: int, name: str, deadline: float, timeout_s: float, expected: Sequence[str]
) -> dict[str, list[str]] | dict[str, str]:
    names, connections = {0: name}, list[socket.socket]()
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both) as server:
        while len(names) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            connections.append(connection)
            told = _read(connection, time.monotonic() + 5.0)
            # Something else may knock at the port; it gets no say.
            if told is not None and told.get("process") in range(1, count):
                names[told["process"]] = str(told.get("name"))
    answer: dict[str, list[str]] | dict[str, str]
    if len(names) == count:
        answer = {"names": [names[process] for process in range(count)]}
    else:
        answer = {"error": _missing(names, count, timeout_s, expected)}
    for connection in connections:
        with connection:
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                continue  # it died meanwhile, which JAX's start will notice
    return answer


def _missing(names: dict[int, str], count: int, timeout_s: float, expected: Sequence[str]) -> str:
    absent = [process for process in range(count) if process not in names]
    # Some environments tell full names, some only their first part.
    here = {name.partition(".")[0] for name in names.values()}
    silent = [host for host in expected if host.partition(".")[0] not in here]
    return (
        f"{count - len(names)} of {count} processes did not come in {timeout_s:g} s: "
        f"{', '.join(map(str, absent))}"
        + (f"; nobody came from {', '.join(silent)}" if silent else "")
        + "; here are "
        + ", ".join(f"{process} ({names[process]})" for process in sorted(names))
    )


def _ask(host: str, port: int, told: dict[str, int | str], deadline: float) -> dict | None:
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(told).encode() + b"\n")
                # Process 0 may have begun a little later than this one, and tells when its time is up.
                answer = _read(connection, deadline + 10.0)
        except OSError:
            answer = None
        if answer is not None:
            return answer
        time.sleep(_RETRY_S)
    return None


def _read(connection: socket.socket, deadline: float) -> dict | None:
    """The one line of JSON that the other side sends; None when there is none."""
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
