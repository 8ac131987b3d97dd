"""One measurement in a process of its own: `python -m benchmarks.child MODULE URL ITEMS OPTIONS_AS_JSON`."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict

from benchmarks.measure import UNAVAILABLE_STATUS, Unavailable


def main() -> None:
    """Import the module named, call its `run`, print the measurement as the last line."""
    module, url, items, options = sys.argv[1:5]
    try:
        measurement = importlib.import_module(module).run(url, int(items), **json.loads(options))
    except (Unavailable, ModuleNotFoundError) as exc:
        print(exc, file=sys.stderr)
        sys.exit(UNAVAILABLE_STATUS)
    print(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
