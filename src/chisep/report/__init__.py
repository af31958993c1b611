"""Pages to read: one self-contained HTML file from figures and tables."""
