"""How many connections the system lets the server hold."""

from __future__ import annotations

import resource

from fedscale.wire.limits import CONNECTIONS

SPARE = 1_024  # for the database, blobs and answers that are being written, and the dashboard


def make_room() -> str:
    """Take as many open files as the server may need and the system allows; what to tell people if those are too few, else nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return ""
    nodes = max(allowed - SPARE, 0) // 2
    return f"the system allows {allowed} open files, enough for {nodes} nodes; for more, raise 'ulimit -Hn', or LimitNOFILE of the service"
