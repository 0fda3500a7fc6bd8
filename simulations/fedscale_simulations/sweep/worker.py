"""A process that runs one trial after the other: a line of JSON in, a line of JSON out.

Whatever the app prints goes to stderr, so that stdout holds answers alone.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from fedscale.errors import FedscaleError
from fedscale_simulations.checkpoint import FILE
from fedscale_simulations.simulator import simulate_file


def trial(job: str, clients: int | None, overrides: list[str], folder: str) -> dict[str, Any]:
    """Run a trial, or go on with it where its folder holds a checkpoint.

    Returns:
        ``{"metrics", "reason"}``; the reason is empty for a run that completed.
    """
    begun = Path(folder, FILE).is_file()
    try:
        ended = simulate_file(job, clients, overrides, folder, resume=folder if begun else None, engine="sequential")
    except FedscaleError as error:
        return {"metrics": {}, "reason": str(error)}
    return {"metrics": ended.metrics, "reason": "" if ended.status == "completed" else ended.record.reason or ended.status}


def main() -> None:
    """Answer requests until stdin ends; whoever closes it waits for no answer."""
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        while True:
            answers.write(json.dumps(trial(**json.loads(requests.get()))) + "\n")
            answers.flush()


def _listen(requests: queue.SimpleQueue[str]) -> None:
    """Take requests; with their end this process ends, even in the middle of a trial, which goes on another time."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
