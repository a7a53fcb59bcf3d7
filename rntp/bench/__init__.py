"""What sharing and fused heads are worth, measured against the usual way on the same thoughts.

Four benches: `head` (log-probs of the output embedding), `tree` (forward and backward of a
document and its branches), `rollout` (sampling) and `step` (all of them). Each checks first that
the providers compute the same thing; one that does not gets no time. Times are medians of
interleaved repeats, with the load average beside them; compare ratios, not seconds.
"""
