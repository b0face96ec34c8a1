"""The one BERT of this project, as a function of tensors.

1. `encoder`      embeddings, layers, MLM head: token ids and tensors in, logits out;
2. `norm`         the LayerNorm whose statistics are weighted by a gate;
3. `loss`         masked-language modelling;
4. `huggingface`  from and to the models that everybody loads;
5. `plain`        these tensors as the parameters of a module: a BERT that is trained as it is.
"""
