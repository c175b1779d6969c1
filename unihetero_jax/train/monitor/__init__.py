"""How a training run is watched: metrics, goodput, utilization, profiles, watchdog."""
