"""The one BERT of this project, as a function of tensors.

1. `encoder`      embeddings, layers, MLM head: token ids and tensors in, logits out;
2. `attention`    fused or as plain products;
3. `norm`         the LayerNorm whose statistics are weighted by a gate;
4. `loss`         masked-language modelling;
5. `huggingface`  from and to the models that everybody loads;
6. `plain`        these tensors as the parameters of a module: a BERT that is trained as it is.
"""
