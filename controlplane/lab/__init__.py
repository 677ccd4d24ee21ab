"""Room card: a whole mesh on one machine, in namespaces.

Lives here: names and addresses of the lab (topology.py), the machine's objects it uses (machine.py, processes.py),
what is built and in which order (up.py, nodes.py, pods.py), the demonstration (story.py) and its end (down.py).
Does not live here: anything that an agent does by itself; the lab only starts agents and calls the CNI plugin, as a
kubelet would. Everything made here is named `mlab-...` or lies below /run/meshlog-lab, and the machine's own
network namespace is never configured.
May import: the standard library, msgspec, controlplane.api.connection, kvstore.embedded.
Start with: topology.py.
"""
