"""Room card: make the kernel hold a set of rows.

Lives here: typed rows and tables, their encoding, the difference between desired and realized, a plan in safe order,
the reconciler, and the kernel itself (maps, programs, links, netlink, ring buffer) behind one Protocol.
Does not live here: why a row is desired. This room has no word for a log, a policy manifest or a Kubernetes kind;
it sees a generation, an opaque number that only grows.
May import: the standard library, msgspec, numpy, structlog; pyroute2 only in kernel/netlink.py, ctypes only in
kernel/libbpf.py; never kvstore nor controlplane.
Start with: tables.py (the rows), kernel/api.py (the kernel's door), reconciler.py.
"""
