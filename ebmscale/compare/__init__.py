"""Methods side by side: the same data, budget and evaluation for every row, several seeds, one table.

A comparison is a file of rows. Each row changes a shared training configuration, and is trained and evaluated by the
commands `train` and `evaluate` in processes of their own, so a row is exactly what a user of these commands gets.
Finished work is kept in the storage: the same command continues a comparison that stopped.
"""

from ebmscale.compare.commands import RunFailed
from ebmscale.compare.rows import load_comparison, make_jobs
from ebmscale.compare.runs import compare

__all__ = ["RunFailed", "compare", "load_comparison", "make_jobs"]
