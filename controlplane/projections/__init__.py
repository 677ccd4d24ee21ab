"""Room card: events, folded into state.

Lives here: one module per noun, and the state that holds them all; `apply` is the only way to change any of it.
Does not live here: decisions (commands/), rows (desired/). Pure and synchronous.
May import: model, events, labels, addresses, codec.
Start with: endpoints.py, then state.py.
"""
