"""Secure aggregation: the server learns the sum of the nodes' vectors and nothing else.

Bonawitz et al. 2017 on the complete graph for a few institutions, Bell et al. 2020 on a random Harary graph for many
devices, as state machines without sockets, clocks or threads: ``node`` and ``server`` speak the ``messages``,
``simulate`` runs both in one process. What is promised and what is not: docs/security/secure-aggregation.md.
"""
