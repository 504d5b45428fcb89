"""Set-up for all tests."""

import os

from hypothesis import HealthCheck, settings

from mflux_api.machine import DEVICES_VARIABLE

# A busy machine draws slowly; what counts is what is found.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

# Exact pixels are those of float32 on a CPU, whatever this machine has, in this process and in every engine child.
os.environ[DEVICES_VARIABLE] = "cpu"
