"""A process without signs of life says what its threads do, and leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import runs

SCRIPT = """
import sys, time
from pathlib import Path
from unihetero_jax.train.monitor import watchdog

watchdog._LINGER_FIRST_S = 0.1
dog = watchdog.Watchdog(float(sys.argv[1]), Path(sys.argv[2]))
dog.start()
dog.alive(4)

def hangs_here():
    time.sleep(float(sys.argv[3]))

hangs_here()
dog.close()
"""


@pytest.mark.parametrize(("timeout", "sleep", "code"), [("0.3", "60", 75), ("30", "0.1", 0), ("0", "0.5", 0)])
def test_exit_code_and_stacks(tmp_path, timeout, sleep, code):
    path = tmp_path / "stacks"
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, timeout, str(path), sleep], env=runs.environment(), cwd=runs.ROOT, timeout=50
    )
    assert found.returncode == code
    assert path.exists() == (code == 75)
    if code:
        text = path.read_text()
        assert "after step 4 (config.train.hang_timeout=0.3)" in text
        assert "in hangs_here" in text


LATE = """
import sys, time
from pathlib import Path
from unihetero_jax.train.monitor import watchdog

watchdog._LINGER_FIRST_S = 1.0
stacks = Path(sys.argv[1])
dog = watchdog.Watchdog(1.0, stacks)
dog.start()
while not stacks.exists():
    time.sleep(0.01)
for step in range(15):
    dog.alive(step)
    time.sleep(0.1)
dog.close()
"""


def test_a_step_that_finishes_after_all_is_no_hang(tmp_path):
    path = tmp_path / "stacks"
    found = subprocess.run([sys.executable, "-c", LATE, str(path)], env=runs.environment(), cwd=runs.ROOT, timeout=50)
    assert found.returncode == 0
    assert "no step finished" in path.read_text()


PAUSED = SCRIPT.replace(
    "dog.alive(4)",
    """
dog.pause()
time.sleep(1.0)
assert not Path(sys.argv[2]).exists(), "a pause is no hang"
dog.alive(4)
""",
)


def test_a_pause_is_no_hang_and_ends_with_the_next_step(tmp_path):
    path = tmp_path / "stacks"
    command = [sys.executable, "-c", PAUSED, "0.3", str(path), "20"]
    found = subprocess.run(command, env=runs.environment(), cwd=runs.ROOT, timeout=50, capture_output=True, text=True)
    assert found.returncode == 75, found.stderr
    assert "after step 4" in path.read_text()
