"""How thorough Hypothesis is: `dev` for people, `ci` (HYPOTHESIS_PROFILE=ci) for machines."""

import os

from hypothesis import settings

# No deadline: on a busy machine a slow example says nothing about the code.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
