"""Room card: one node's kernel, real or fake, behind the Protocol of api.py.

Lives here: bpf(2) and libbpf (libbpf.py, uapi.py), maps, programs, attachments in both forms (links.py,
clsact.py), the ring buffer, netlink, and feature probes. Does not live here: which rows the kernel should hold,
and in which order they are written.
May import: the rest of datapath's values (tables, codec, errors, abi), numpy, msgspec; ctypes only in libbpf.py,
pyroute2 only in netlink.py.
Start with: api.py (the promises), real.py (who keeps which).
"""
