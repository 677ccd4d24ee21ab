"""Room card: what the mesh is, what happened to it, and what a node's kernel should therefore hold.

Lives here: events and the state folded from them, commands and their decisions, policy, desired rows, the running
agent and operator, the API and the command line. The only room that knows both the log and the kernel's tables.
Does not live here: how bytes are stored in order (kvstore), how rows reach the kernel (datapath).
May import: kvstore, datapath, msgspec everywhere; asyncio, aiohttp, structlog, uvloop, yaml only in shell modules
(runtime/, api/, cli/, agent.py, operator.py, cni.py, lab/, kubernetes.py for YAML).
Start with: model.py (nouns), events.py (facts), commands/endpoint.py, projections/endpoints.py, desired/endpoints.py.
"""
