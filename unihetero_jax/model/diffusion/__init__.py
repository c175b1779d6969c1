"""The diffusion head: schedules, networks, objectives and samplers apart, put together in ``head``."""
