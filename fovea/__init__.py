"""The `fovea` command: one thin module a sub-command, no logic."""
