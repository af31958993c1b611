"""The benchmark QSM-CI on simulated worlds: its definitions, its runner, its metrics."""
