"""The unrolled network against all others: unseen heads, lesions, other protocols, its intervals."""
