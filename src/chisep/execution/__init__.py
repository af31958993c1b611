"""Cohorts: sessions on local processes or a cluster."""
