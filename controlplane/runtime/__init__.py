"""Room card: what runs while an agent or an operator does.

Lives here: the writer, the follower, the feed to the reconciler, duties, devices, clocks, counters. Shell modules: they
wait, and hold no decision about the mesh.
Does not live here: which parts a process has (agent.py, operator.py), and what they decide (commands/, desired/).
May import: everything of controlplane below the API, asyncio, structlog, uvloop, pyroute2 for devices.
Start with: follower.py, writer.py, feed.py.
"""
