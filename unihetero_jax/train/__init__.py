"""State, step (pure), loop, telemetry."""
