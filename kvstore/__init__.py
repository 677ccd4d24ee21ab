"""Room card: an ordered log of opaque bytes, and the sessions that may append to it.

Lives here: keys in etcd, the append transaction, catch-up and watch, sessions and fencing, sequence-gap
detection, the embedded etcd, checkpoints, repacking and retention of history, the archive, etcd roles.
Does not live here: the meaning of a payload. No address, label, node or policy is known in this room.
May import: the standard library, msgspec, and grpc only in the etcd shell.
Start with: api.py (the two Protocols), types.py (a record and a position), then memory.py and etcd.py.
"""
