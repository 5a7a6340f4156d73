"""Object stores for tests: real servers on this machine, and a proxy before them that misbehaves by plan."""
