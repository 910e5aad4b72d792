"""What holds of all tests: no clock decides one."""

from hypothesis import HealthCheck, settings

# On a busy machine an example may take long, and so may the drawing of its data.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
