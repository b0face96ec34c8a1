"""The pipeline on a SLURM cluster: from a recipe to a chain of jobs, and what becomes of them.

1. `submit.py` fetches what jobs without a network will need, and turns the stages of `pipeline.stages` into jobs.
2. `status.py` tells how far they are and what went wrong; `cancel.py` stops them.
3. `*.sbatch` are the batch files of single stages, for submit.py and for use by hand.

    site.yaml     resources of every stage    resources.py  reads it
    fetch.py      downloads                   chain.py      stages, and in what order they run
    batch.py      batch files                 record.py     what RUN/slurm holds
    scheduler.py  all talk with SLURM         progress.py   what files, SLURM and logs tell of a stage
"""
