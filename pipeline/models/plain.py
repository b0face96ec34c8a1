"""A BERT that is trained as it is: the tensors of the encoder are its parameters."""

from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.models.huggingface import bert_of, form_of, tensors_of


class PlainBert(nn.Module):
    """The parameters of an ordinary BERT, stacked.

    Calling it returns the tensors that the encoder takes, which for a plain BERT are the parameters themselves.
    """

    def __init__(self, bert: BertForMaskedLM) -> None:
        super().__init__()
        self.config: BertConfig = bert.config
        self.form = form_of(bert.config)
        for name, tensor in tensors_of(bert).items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self) -> dict[str, Tensor]:
        """The tensors of `encoder.SHAPES`."""
        # Views, not the parameters themselves: ZeRO-3 takes those away again behind the module's back.
        return {name: parameter.view_as(parameter) for name, parameter in self.named_parameters()}

    def bert(self) -> BertForMaskedLM:
        """The same model as everybody loads it; a copy."""
        return bert_of(dict(self.named_parameters()), self.config)
