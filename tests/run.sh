#!/usr/bin/env bash
# Makes an environment, installs this checkout with its test tools into it, and runs the tests.
#
#   tests/run.sh [arguments of pytest]
#
# By default the fast suite. It leaves out the slow matrices: `-m slow` runs those, `-m "slow or not slow"` everything,
# which a release needs.
#
# PYTHON: the interpreter (python3). VENV: where the environment goes (.venv-tests); it is used again when it is there.
# INSTALL: "no" where the environment has this checkout already. WORKERS: processes that run tests (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv-tests}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "tests/run.sh: $python is $("$python" --version 2>&1): expected Python 3.11 or newer; set PYTHON" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
[ "${INSTALL:-}" = no ] || "$venv/bin/python" -m pip install --quiet '.[test,docs]'
# By file: the runs that tests of one file compare with are made once.
# A worker that dies ends them: pytest-xdist would wait for the rest of its file for ever.
exec "$venv/bin/python" -m pytest -n "${WORKERS:-2}" --dist=loadfile --max-worker-restart=0 "$@"
