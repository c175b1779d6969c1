"""Processes find each other, or say who did not come."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from unihetero_jax.parallel.rendezvous import HostMissing, meet


def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def meet_all(numbers, count, timeout_s, knock=False, expected=()):
    """What each of some processes gets: the names, or the error's text."""
    place = address()

    def one(number):
        try:
            return meet(place, count, number, f"n{number}.cluster", timeout_s, expected)
        except HostMissing as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers)) as pool:
        futures = [pool.submit(one, numbers[0])]
        if knock:
            knock_at(place, b"GET / HTTP/1.1\r\n\r\n")
            knock_at(place, b'{"process": 99}\n')
        futures += [pool.submit(one, number) for number in numbers[1:]]
        return [future.result() for future in futures]


def knock_at(place, says):
    for _ in range(500):
        try:
            with socket.create_connection(place.split(":")) as stranger:
                stranger.sendall(says)
                return
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError("nobody listens")


def test_all_learn_all_names():
    assert meet_all([2, 0, 1], 3, 20) == [["n0.cluster", "n1.cluster", "n2.cluster"]] * 3


def test_a_stranger_at_the_port_is_not_counted():
    assert meet_all([0, 1], 2, 20, knock=True) == [["n0.cluster", "n1.cluster"]] * 2


def test_everyone_is_told_who_did_not_come():
    first, second = meet_all([0, 2], 4, 1.0, expected=["n0", "n1", "n2", "n3"])
    assert first == second
    assert "2 of 4 processes did not arrive in 1 s: 1, 3" in first
    assert "none from n1, n3" in first
    assert "here are 0 (n0.cluster), 2 (n2.cluster)" in first


def test_a_first_process_that_does_not_answer_is_named():
    (text,) = meet_all([1], 2, 0.5)
    assert "process 0 at 127.0.0.1:" in text


def test_the_port_is_free_again():
    place = address()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            for future in [pool.submit(meet, place, 2, number, "n", 20) for number in (0, 1)]:
                future.result()
    with pytest.raises(HostMissing):
        meet(place, 2, 0, "n", 0.2)
