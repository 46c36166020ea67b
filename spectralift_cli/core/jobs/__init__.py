"""Inference that several processes share and that survives being killed.

A *job* is a folder `.OUT.job` beside the output: a plan, the output's files as they fill, and a
receipt for every block of rows that is proven complete. Processes join it, compute the blocks that
lack a receipt, and the one that finds all of them there moves the output into place.

- `plan`: what is to be made and its blocks, the same for every process.
- `folder`: the job on disk.
- `blocks`: computing, settling and checking blocks.
- `crew`: processes beside this one.
- `executors`: who computes the blocks: this process, local ones, a Dask cluster.
- `sharing`: joins, hands out, finishes.
"""
