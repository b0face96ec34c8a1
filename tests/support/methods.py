"""Methods as a new run has them."""

from torch import nn

from pipeline.methods import METHODS
from pipeline.methods.continued import Continued
from pipeline.methods.method import Method
from pipeline.recipe import Recipe


def build_method(recipe: Recipe, vocab_size: int) -> Method:
    """Without text, which `train.embedding_init: ppmi` alone asks for."""
    return METHODS[recipe.method].build(recipe, None, vocab_size)


def around(module: nn.Module) -> Method:
    """A method that trains the module as it is."""
    return Continued(Recipe(), module)
