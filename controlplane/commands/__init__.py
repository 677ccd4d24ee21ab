"""Room card: what somebody wants, decided.

Lives here: commands and `decide(state, command)`, which gives the events and claims of one append, or a rejection.
Does not live here: the append (runtime/writer.py), what events change (projections/). Pure.
May import: model, events, projections, and what those import.
Start with: types.py, then endpoint.py.
"""
