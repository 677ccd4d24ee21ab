"""Room card: what a policy means, in pure code.

Lives here: selectors, the parsed form of a policy, the parsers per kind, the labels of addresses, rules about requests,
the rows that a policy becomes, and the model that says what happens to a flow.
Does not live here: which endpoints a node has (desired/policy.py), YAML and files (kubernetes.py).
May import: msgspec, controlplane.model, controlplane.fields, controlplane.labels, datapath.tables, datapath.abi.types.
Start with: rules.py (what a policy is), verdict.py (what it decides), prefixes.py (what CIDRs and names are),
resolve.py (the rows it becomes), mesh.py (any flow, answered).
"""
