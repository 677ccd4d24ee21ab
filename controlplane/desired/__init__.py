"""Room card: what one node's kernel should hold.

Lives here: state -> rows of datapath.tables, whole or only where a change can reach.
Does not live here: how rows get into the kernel (datapath), what a policy means (policy/). Pure.
May import: model, projections, policy, and datapath's tables.
Start with: derive.py, then endpoints.py.
"""
