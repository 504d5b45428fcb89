"""Set-up for all tests."""

from hypothesis import HealthCheck, settings

# A busy machine draws slowly; what counts is what is found.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
