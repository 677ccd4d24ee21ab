"""Room card: the layout of what the programs and user space share.

Lives here: types.py, generated from bpf/abi.h; the generator and its reader of BTF. Does not live here: encoding
rows by these layouts (datapath/codec.py).
May import: the standard library.
Start with: layout.py (what a description says), generate.py (what may stand in the ABI).
"""
