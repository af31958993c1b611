# %% [markdown]
# # Process a BIDS dataset from Python
# The same as `chisep run bids out`: what would run, the run, and the files of a result.

# %%
import json
from pathlib import Path

import chisep
from chisep.execution.cohort import plan

config = chisep.RunConfig(Path("bids"), Path("out"))
for session in plan(config):
    waiting = {stage: reason for stage, reason in session.reasons.items() if reason}
    print(session.name, waiting or "is up to date")

# %% [markdown]
# `chisep.run` processes the sessions one after the other, and keeps what is up to date. For several workers
# see `chisep.execution.cohort.run_cohort`.

# %%
for result in chisep.run(config):
    print(result.name, result.error or result.report)

# %% [markdown]
# Each map has a sidecar with everything that made it.

# %%
sidecar = json.loads(Path("out/sub-01/anat/sub-01_desc-paramagnetic_Chimap.json").read_text(encoding="utf-8"))
print(sidecar["Parameters"]["Method"], sidecar["SoftwareVersion"])
