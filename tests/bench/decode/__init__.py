"""One contemplation of N agents on one prompt: our engine beside its peers, in alternation."""
