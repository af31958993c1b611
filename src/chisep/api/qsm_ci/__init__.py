"""The command `qsm-ci`: every stage of the public benchmark QSM-CI, by its file names."""

from chisep.api.qsm_ci.command import QsmCiConfig, qsm_ci

__all__ = ["QsmCiConfig", "qsm_ci"]
