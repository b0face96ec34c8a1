"""The method, in pure torch: no files, no processes, no DeepSpeed.

How a teacher becomes a student, in the order of the files:

1. `groups`     which dimensions must be retired together, and the gate of each;
2. `stacks`     which linear layers there are, and which groups each of them reads and writes;
3. `compose`    weights and compactors multiplied, all layers of a stack at once;
4. `model`      a teacher with its compactors and gates: it composes to the tensors of a BERT;
5. `selection`  which dimensions to retire next;
6. `schedule`   when, and along which curve;
7. `fold`       the same composition in float64, as one ordinary small BERT;
8. `slice`      what a run that never trained folds to.
"""
