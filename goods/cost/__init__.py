"""Memory, time and disk of a run, before it: footprint.py counts a step, plan.py says what it means."""
