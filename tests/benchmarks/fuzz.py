"""Five thousand damaged inputs: no hang, no crash, and nothing comes back that was not written.

    python tests/benchmarks/fuzz.py [--images=1000] [--records=400] [--shards=600] [--imports=3000] [--first=0]

Every case is a number, so that what is found can be looked at again (``--first=N --imports=1 --images=0 --records=0
--shards=0``). The cases, and what counts as an outcome, are those of ``tests/data/mutations.py`` and, for what can be
imported, of ``tests/data/importing/import_cases.py``. Prints the outcomes and, last, one JSON object. Exit code 1 when
there is a hang, a crash or a wrong sample.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data/importing"))

import import_cases
import mutations

CASES = {
    "images": (mutations.image_case, 1000),
    "records": (mutations.record_case, 400),
    "shards": (mutations.shard_case, 600),
    "imports": (import_cases.import_case, 3000),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (_, count) in CASES.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"damaged {name}")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds without an answer that are a hang")
    options = parser.parse_args()
    found = {}
    for kind, (case, _) in CASES.items():
        count = getattr(options, kind)
        if not count:
            continue
        started = time.perf_counter()
        outcomes = mutations.run(case, range(options.first, options.first + count), options.limit)
        seconds = time.perf_counter() - started
        print(f"{kind}: {count} in {seconds:.0f} s: " + ", ".join(f"{n} {name}" for name, n in outcomes.most_common()))
        found[kind] = dict(outcomes)
    bad = sum(count for outcomes in found.values() for name, count in outcomes.items() if name not in mutations.FINE)
    print(json.dumps({**found, "bad": bad}))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
