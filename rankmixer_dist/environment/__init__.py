"""Checks of the machine and of what is installed on it: what `launch/doctor.py` shows."""
