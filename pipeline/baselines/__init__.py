"""What WID is compared with: its published form, and the distillation methods that need the teacher at every step.

`chained`       the published form of WID: activations are multiplied by every compactor;
`distillation`  logit distillation (Hinton et al. 2015), the loss that DistilBERT and TinyBERT build on;
`minilm`        self-attention relations (Wang et al. 2021, MiniLMv2).

Pure torch, like `pipeline.compaction`.
"""
