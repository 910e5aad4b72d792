"""What holds of all tests: what pytest leaves alone, and that no clock decides a test."""

from hypothesis import HealthCheck, settings

# On a busy machine an example may take long, and so may the drawing of its data.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
