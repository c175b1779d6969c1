"""A process that is to end with the one that started it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import runs

from unihetero_jax.parallel.startup import hint_at_huge_pages

CHILD = """
import os, sys, time
from unihetero_jax.parallel.startup import end_with_parent
end_with_parent(lambda: os._exit(9))
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize(("seconds", "code"), [(0.2, 0), (60.0, 9)])
def test_it_ends_by_itself_or_when_nobody_holds_its_input(seconds, code):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(seconds)], cwd=runs.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    if code:
        process.stdin.close()
    assert process.wait(20) == code
    process.stdin.close()
    process.stdout.close()


def test_python_is_told_of_huge_pages_unless_it_has_chosen(monkeypatch, said):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    hint_at_huge_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    hint_at_huge_pages()
    (line,) = said
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in line
