"""Room card: the log as a thing to look back at.

Lives here: records as people read them, and the fold from the first record to what each kernel should hold.
Does not live here: following the log as it grows (runtime/follower.py).
May import: codec, projections, desired, the API's shapes, and kvstore's door.
Start with: replay.py.
"""
