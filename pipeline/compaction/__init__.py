"""The method, in pure torch: no files, no processes, no DeepSpeed.

How a teacher becomes a student, in the order of the files:

1. `shapes`     what a BERT of given sizes costs, and which targets are legal;
2. `groups`     which dimensions must be retired together, and the gate each group shares;
3. `layers`     a linear layer with its two compactors, the gated LayerNorm, the tied embeddings;
4. `model`      a Hugging Face BERT with those layers in place of its own;
5. `selection`  which dimensions to retire next;
6. `schedule`   when, and along which curve;
7. `fold`       everything multiplied into one ordinary small BERT.
"""
