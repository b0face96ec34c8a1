"""What a teacher's weights may be: tied, finite, whole; padded beyond its tokenizer, saved with a wrapper's names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForMaskedLM

from pipeline.errors import UserError
from pipeline.parsing import build
from pipeline.recipe import Recipe
from pipeline.teacher_files import head_warmup_fault, teacher_has_head
from pipeline.teachers import load_teacher
from tests.support.methods import build_method
from tests.support.models import logits, random_teacher
from tests.support.runs import make_shards, recipe_values, vocabulary_of

WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
BIAS = "cls.predictions.bias"
FILES = ("model.safetensors", "pytorch_model.bin")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "shards", words=400)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, shards):
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    random_teacher(vocab=vocabulary_of(shards)).save_pretrained(path)
    return path


@pytest.fixture
def teacher(sound, tmp_path):
    """Writes a copy of the sound teacher whose tensors `change` has changed, in either file format."""

    def write(change, name: str = FILES[0]) -> str:
        path = tmp_path / "teacher"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        shutil.copy(sound / "config.json", path)
        tensors = change(load_file(sound / "model.safetensors"))
        if name.endswith(".bin"):
            torch.save(tensors, path / name)
        else:
            save_file(tensors, path / name, {"format": "pt"})
        return str(path)

    return write


def recipe(path, shards, method: str = "wid", **sections) -> Recipe:
    if method == "continue":
        sections["target"] = None
    return build(Recipe, recipe_values(shards, path, method, **sections), "test")


def equal(first: BertForMaskedLM, second: BertForMaskedLM) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def refused(path: str, *parts: str) -> None:
    with pytest.raises(UserError) as found:
        load_teacher(path, 0.1)
    sentence = str(found.value)
    assert found.value.exit_code == 2 and "\n" not in sentence and not sentence.endswith(".")
    assert all(part in sentence for part in (path, *parts)), sentence


# A decoder of its own


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("method", ["wid", "continue"])
def test_a_decoder_that_is_not_the_embeddings_is_refused(teacher, shards, name, method):
    path = teacher(lambda t: t | {DECODER: t[WORDS] + 1e-6 * torch.randn_like(t[WORDS])}, name)
    with pytest.raises(UserError, match=r"untied MLM decoder \(its file holds a cls\.predictions\.decoder\.weight"):
        build_method(recipe(path, shards, method), vocabulary_of(shards))


@pytest.mark.parametrize("name", FILES)
def test_a_decoder_bias_that_is_not_the_heads_is_refused(teacher, name):
    path = teacher(lambda t: t | {"cls.predictions.decoder.bias": t[BIAS] + 1}, name)
    refused(path, "untied MLM decoder", "cls.predictions.decoder.bias, which is not cls.predictions.bias")


@pytest.mark.parametrize("name", FILES)
def test_a_decoder_that_is_in_the_file_twice_or_under_its_own_name_is_taken(teacher, sound, name):
    original = BertForMaskedLM.from_pretrained(sound)
    twice = lambda t: t | {DECODER: t[WORDS].clone(), "cls.predictions.decoder.bias": t[BIAS].clone()}  # noqa: E731
    renamed = {WORDS: DECODER, BIAS: "cls.predictions.decoder.bias"}
    for change in (twice, lambda t: {renamed.get(key, key): value for key, value in t.items()}):
        model, head_is_new, notices = load_teacher(teacher(change, name), 0.1)
        assert equal(model, original) and not head_is_new and notices == []


# NaN and infinity


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "tensor", [WORDS, "bert.encoder.layer.1.output.LayerNorm.bias", "cls.predictions.transform.dense.weight", BIAS]
)
def test_a_tensor_without_finite_numbers_is_named(teacher, name, number, tensor):
    def spoil(tensors):
        tensors[tensor].view(-1)[-1] = number
        return tensors | {DECODER: tensors[WORDS].clone()}  # as pickled files hold it: NaN differs from itself

    refused(teacher(spoil, name), f"holds NaN or infinity in {tensor}")


def test_a_number_too_large_for_fp32_is_named(teacher):
    name = "bert.encoder.layer.0.attention.self.query.weight"
    refused(teacher(lambda t: t | {name: t[name].double() * 1e300}), f"holds NaN or infinity in {name}")


# Padding


def padded(directory, shards, rows: int, tokenizer: bool = True, head: bool = True) -> BertForMaskedLM:
    """Saves a teacher with `rows` more rows than its tokenizer has ids, of other numbers; the one without them."""
    size = vocabulary_of(shards)
    model = random_teacher(vocab=size + rows)
    (model if head else model.bert).save_pretrained(directory)
    if tokenizer:
        shutil.copytree(shards / "tokenizer", directory, dirs_exist_ok=True)
    state = {key: value[:size] if len(value) == size + rows else value for key, value in model.state_dict().items()}
    cut = random_teacher(vocab=size)
    cut.load_state_dict(state)
    return cut


@pytest.mark.parametrize("method", ["wid", "continue"])
@pytest.mark.parametrize("rows", [1, 37])
def test_rows_beyond_the_tokenizer_are_cut_off(tmp_path, shards, method, rows):
    size = vocabulary_of(shards)
    expected = padded(tmp_path, shards, rows).eval()
    built = build_method(recipe(tmp_path, shards, method), size)
    assert f"have {size + rows} rows for {size} tokens: the rows of padding are cut off" in built.notices[0]
    assert built.model.config.vocab_size == built.model.config.vocab_size == size
    ids = torch.arange(24).reshape(2, 12)
    got = logits(built.model.eval(), ids)
    torch.testing.assert_close(got, expected(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert got.shape[-1] == size
    if method == "continue":
        bert = built.model.bert()
        assert equal(bert, expected)
        head = bert.cls.predictions
        assert head.decoder.weight is bert.bert.embeddings.word_embeddings.weight
        assert head.decoder.bias is head.bias and head.bias.shape == (size,)


def test_a_vocabulary_file_says_what_is_padding_too(tmp_path, shards):
    """One that ends with a blank line, which is no token."""
    size = vocabulary_of(shards)
    padded(tmp_path, shards, 5)
    pieces = AutoTokenizer.from_pretrained(shards / "tokenizer").convert_ids_to_tokens(list(range(size)))
    for path in tmp_path.glob("*token*"):
        path.unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n\n")
    assert build_method(recipe(tmp_path, shards), size).model.config.vocab_size == size


def test_a_new_head_is_made_at_the_size_of_the_tokenizer(tmp_path, shards):
    padded(tmp_path, shards, 5, head=False)
    built = build_method(recipe(tmp_path, shards, teacher={"head_warmup_steps": 1}), vocabulary_of(shards))
    assert built.head_is_new and built.model.decoder_bias.shape == (vocabulary_of(shards),)


def test_other_vocabularies_are_refused_as_ever(tmp_path, shards):
    """Fewer rows than tokens; no tokenizer that could say what is padding; one of another size than the shards'."""
    size = vocabulary_of(shards)
    random_teacher(vocab=size - 3).save_pretrained(tmp_path / "small")
    padded(tmp_path / "unknown", shards, 5, tokenizer=False)
    padded(tmp_path / "other", shards, 5)
    shutil.copytree(
        make_shards(tmp_path / "more", words=400, extra=("zebra", "yak")) / "tokenizer",
        tmp_path / "other",
        dirs_exist_ok=True,
    )
    for name, rows in (("small", -3), ("unknown", 5), ("other", 5)):
        sentence = f"has {size + rows} tokens and the shards have {size}: build the shards with the teacher's tokenizer"
        with pytest.raises(UserError, match=sentence):
            build_method(recipe(tmp_path / name, shards), size)


# Names of a wrapper


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_weights_saved_with_their_wrapper_are_loaded(teacher, sound, name, prefix):
    path = teacher(lambda t: {prefix + key: value for key, value in t.items()}, name)
    model, head_is_new, notices = load_teacher(path, 0.1)
    assert equal(model, BertForMaskedLM.from_pretrained(sound)) and not head_is_new
    assert len(notices) == 1 and f"begin with {prefix}" in notices[0]


@pytest.mark.parametrize("base", ["bert.", ""])
def test_an_encoder_saved_with_its_wrapper_is_loaded_and_gets_the_same_new_head(teacher, base):
    """With the pooler of its own that most have, and names of LayerNorms as old files have them."""

    def encoder(tensors, prefix: str):
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        kept = {key.removeprefix("bert."): value for key, value in tensors.items() if key.startswith("bert.")}
        kept |= {"pooler.dense.weight": torch.eye(24), "pooler.dense.bias": torch.zeros(24)}
        for new, written in old.items():
            kept = {key.replace(new, written): value for key, value in kept.items()}
        return {prefix + base + key: value for key, value in kept.items()}

    models = []
    for prefix in ("", "module."):
        torch.manual_seed(3)
        model, head_is_new, notices = load_teacher(teacher(lambda t, p=prefix: encoder(t, p)), 0.1)
        assert head_is_new and any("pooler is dropped" in notice for notice in notices)
        models.append(model)
    assert equal(*models)


def test_wrapped_weights_are_checked_like_others(teacher):
    def wrapped(change):
        return lambda t: {"module." + key: value for key, value in change(t).items()}

    refused(teacher(wrapped(lambda t: t | {DECODER: t[WORDS] + 1})), "untied MLM decoder")
    refused(teacher(wrapped(lambda t: t | {WORDS: t[WORDS] * float("nan")})), f"infinity in {WORDS}")
    lost = "bert.encoder.layer.1.output.dense.bias"
    refused(teacher(wrapped(lambda t: {k: v for k, v in t.items() if k != lost})), f"lacks the weights of {lost}")


def test_two_encoders_in_one_file_are_no_wrapper(teacher):
    path = teacher(lambda t: {p + key: value.clone() for p in ("query.", "answer.") for key, value in t.items()})
    refused(path, "it is no complete BERT")


# Parts of a head


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", ["transform.dense", "transform.LayerNorm", "transform.dense.bias", "LayerNorm.weight"])
def test_a_head_without_a_part_is_refused(teacher, name, part):
    path = teacher(lambda t: {k: v for k, v in t.items() if not (k.startswith("cls.") and part in k)}, name)
    refused(path, "has an MLM head without cls.predictions.transform.", "remove the rest of the head")


@pytest.mark.parametrize("name", FILES)
def test_a_head_without_its_bias_starts_at_zero_and_says_so(teacher, name):
    model, head_is_new, notices = load_teacher(teacher(lambda t: {k: v for k, v in t.items() if k != BIAS}, name), 0.1)
    assert not head_is_new and not model.cls.predictions.decoder.bias.any()
    assert len(notices) == 1 and "no bias over the vocabulary: it starts at zero" in notices[0]


def test_whether_there_is_a_head_is_read_without_loading(teacher, sound, tmp_path):
    assert teacher_has_head(str(sound)) is True
    assert teacher_has_head(teacher(lambda t: {"module." + key: value for key, value in t.items()})) is True
    assert teacher_has_head(teacher(lambda t: {k: v for k, v in t.items() if "cls." not in k})) is False
    assert teacher_has_head(teacher(lambda t: t, FILES[1])) is None
    assert teacher_has_head("some-owner/some-bert") is None and teacher_has_head(str(tmp_path / "missing")) is None
    path = teacher(lambda t: t)
    (tmp_path / "teacher" / FILES[0]).write_bytes(b"short")
    assert teacher_has_head(path) is None


@pytest.mark.parametrize("head", [True, False])
def test_the_index_of_a_teacher_in_several_files_says_so_too(tmp_path, sound, head):
    model = BertForMaskedLM.from_pretrained(sound)
    (model if head else model.bert).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 1
    assert teacher_has_head(str(tmp_path)) is head
    loaded, head_is_new, _ = load_teacher(str(tmp_path), 0.1)
    assert head_is_new is not head and torch.equal(
        loaded.bert.state_dict()["embeddings.LayerNorm.bias"], model.bert.state_dict()["embeddings.LayerNorm.bias"]
    )


def test_a_schedule_that_is_too_early_for_a_new_head_names_both_keys(sound, shards):
    late = recipe(sound, shards, teacher={"head_warmup_steps": 1})
    assert head_warmup_fault(late) is None
    assert head_warmup_fault(recipe(sound, shards, "continue")) is None
    sentence = str(head_warmup_fault(recipe(sound, shards)))
    assert "set compaction.start_step to at least 500, or teacher.head_warmup_steps to at most 1" in sentence
