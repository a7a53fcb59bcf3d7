"""What the ranks of a run send each other in a step, in bytes and seconds, at many sizes.

Nothing is computed: each rank makes up its share of a step, and the ranks exchange it as the
trainer has them do, over gloo on this machine. Beside it stands the usual way, every rank's objects
to all of them (`all_gather_object`).
"""
