"""Room card: the command line. One file per noun, each imported only when its command runs.

Lives here: arguments, requests to an agent's or an operator's socket, and how answers look.
Does not live here: any decision. May import: the standard library, yaml for YAML, controlplane.api.schema for shapes,
and the door of what a command starts (agent.py, operator.py, cni.py, lab/).
Start with: main.py (the parser), target.py (which agent), output.py (the tables).
"""
