# %% [markdown]
# # Region values of all sessions
# `chisep run bids out` writes one table of region values for each session. This example collects them, and
# draws χ_pos of the deep grey nuclei. Change `out` to your own results.

# %%
import csv
from pathlib import Path

import matplotlib.pyplot as plt

out = Path("out")
rows = []
for path in sorted(out.rglob("*_regions.tsv")):
    session = path.name.removesuffix("_regions.tsv")
    with path.open(encoding="utf-8") as file:
        rows += [{"session": session} | row for row in csv.DictReader(file, delimiter="\t")]
print(len(rows), "values")

# %% [markdown]
# Only regions that lie in the reliable mask to at least a half.

# %%
NUCLEI = ("caudate", "putamen", "pallidum", "thalamus")
chosen = [
    row
    for row in rows
    if row["map"] == "chi_pos_ppb"
    and any(name in row["name"].lower() for name in NUCLEI)
    and float(row["reliable_part"]) > 0.5
]
for row in chosen:
    print(f"{row['session']}  {row['name']:24} {float(row['median']):6.1f} ppb, σ {float(row['sigma']):4.1f}")

# %%
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.errorbar(
    [float(row["median"]) for row in chosen],
    [f"{row['session']} {row['name']}" for row in chosen],
    xerr=[float(row["sigma"]) for row in chosen],
    fmt="o",
)
axis.set_xlabel("χ_pos (ppb), median and mean σ of a voxel")
figure.savefig("regions.png")

# %% [markdown]
# The mean σ of a voxel is no standard error of the median: errors of neighbouring voxels are not independent.
