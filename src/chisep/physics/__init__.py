"""How sources make fields and signals: dipole, operators, Φ, decay."""
