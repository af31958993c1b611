"""Kim K.W., "Enhanced χ-sepnet with Physics-Informed Unrolling" (Seoul National University, 2023), again.

Its networks, table, figures, patients and ablations on digital heads: other data, so other numbers; the same
comparisons.
"""
