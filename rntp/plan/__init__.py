"""What a run takes before it is started: tokens, FLOP, bytes, hours and money, from one GPU to many
data centres. Every size comes from the functions that a run counts itself with
(`rntp.training.estimate`); constants of a machine are measured (`rntp plan --calibrate`) or assumed
from its data sheet, and the plan says which.
"""
