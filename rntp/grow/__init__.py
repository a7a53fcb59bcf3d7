"""A corpus that grows where the run learns: `rntp data grow`.

frontier     pages that could be had: links of sites, pools of files, by region
choice       from which region the next page is taken: a bandit over what the model learns there
probe        what a page is worth to the current model: gain, spread, change
ledger       every choice with its reason and what came of it; the state is nothing but its rows
segment      chosen pages through `rntp data prep` to a corpus beside the run's own
weights      the mixture that the run goes on with
"""
