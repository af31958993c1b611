"""The stages of a session: what each reads, writes, and does."""
