"""vLLM as the sampler: a child process in an environment of its own draws the thoughts.

Ids go in, ids and float32 log-probs come out. Placing, which needs entropies that vLLM does not
give, takes a prefill of the trainer's own model. Weights are written to a folder and loaded again
whenever they have changed; then fixed sequences are scored by both sides, and nothing is sampled
where they disagree.
"""
