"""Measures a running mesh: `statistics` (pure), `run` asks, `plot` draws."""
