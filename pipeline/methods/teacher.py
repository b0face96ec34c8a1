"""A run's teacher, as its method takes it."""

from transformers import BertConfig, BertForMaskedLM

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.teachers import fit_vocabulary, load_teacher


def teacher_of(recipe: Recipe, vocab_size: int, dropout: float) -> tuple[BertForMaskedLM, bool, list[str]]:
    """The teacher for shards of so many tokens, whether its MLM head is new, and notices for the user.

    Raises:
        UserError: it cannot be used, or not for these windows.
    """
    path = str(recipe.teacher.path)
    teacher, head_is_new, notices = load_teacher(path, dropout)
    notices += fit_vocabulary(teacher, path, vocab_size)
    if recipe.data.seq_len > teacher.config.max_position_embeddings:
        raise UserError(
            f"data.seq_len {recipe.data.seq_len} is longer than the teacher's "
            f"{teacher.config.max_position_embeddings} positions"
        )
    return teacher, head_is_new, notices


def new_bert(config: BertConfig) -> BertForMaskedLM:
    """A BERT without values to start from."""
    model: BertForMaskedLM = BertForMaskedLM(config)
    return model
