"""Models for services: ONNX files that a gate let through, how fast they are, and a card that says so.

subject    what is exported: a BERT with its head and tokenizer
text       real text as inputs: windows, and padded batches of them
graph      PyTorch to ONNX, and ONNX Runtime
int8       8-bit matrix products and tables
quality    how good a model is by masked tokens or by a task, whatever computes it
gate       what may be written
latency    milliseconds by batch, length and threads
card       the README of the exported directory
run        all of it, in order
"""
