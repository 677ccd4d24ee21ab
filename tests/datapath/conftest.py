"""How hypothesis runs here: without time limits, since the machine may be shared.

Belongs here: its settings. Does not belong here: strategies (rows.py).
"""

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
