"""Faults in a training run: their plan, the process that meets them, and the supervisor that starts it again."""
