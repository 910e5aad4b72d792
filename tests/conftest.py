"""What pytest leaves alone: a device that stays registered in the process that loads it."""

collect_ignore = ["far.py", "far_runs.py"]
