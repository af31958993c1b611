"""Classical solvers, one file each: maps in, susceptibility or its two sources out."""
