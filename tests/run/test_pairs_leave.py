"""What people take away from a run over pairs: how good it is, its negatives, its model, its features."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import refused, told
from run.trained_pairs import ingest, rows, trained
from safetensors import safe_open
from safetensors.torch import load_file, save
from train.harness import Run, small_spec

from emc2dist import files
from emc2dist.cli import main
from emc2dist.data.texts.pairs import open_pairs
from emc2dist.data.texts.tokenizer import TokenView
from emc2dist.errors import RunError, StorageError
from emc2dist.evaluate.retrieval import Judged, measures
from emc2dist.files.disk import DiskPlace
from emc2dist.run.driver import train
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.negatives import Held
from emc2dist.run.texts import Encoding
from emc2dist.towers.text import Bag, pretrained_files
from emc2dist.train.checkpoint import load_trainer
from emc2dist.train.model_files import ModelFiles


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A set of 24 pairs to train on, and 24 to test with."""
    return ingest(tmp_path_factory.mktemp("sets") / "pairs", rows() + rows("test"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A run of a bag of words, whose one chain per text was visited once."""
    return trained(tmp_path_factory.mktemp("runs"), data)


def features_of(run, texts, side):
    """By the newest encoder, of each text by itself."""
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    encoding = Encoding.of(newest)
    return np.concatenate([encoding.features([text], side) for text in texts])


def test_all_queries_are_asked_among_all_documents(run, capsys, data):
    found = told(capsys, "evaluate", run)
    assert (found["asked"], found["queries"], found["documents"]) == ("test", 24, 48)
    pairs = open_pairs(LoadedCheckpoint.newest(RunFolder.open(run)).spec.data, "test", corpus=True)
    sides = ((pairs.queries, "query"), (pairs.documents, "document"))
    queries, documents = (features_of(run, texts.get(np.arange(len(texts))), side) for texts, side in sides)
    order = np.argsort(-(queries.astype(float) @ documents.T.astype(float)), axis=1, kind="stable")
    expected = measures(torch.from_numpy(order), Judged(pairs.relevance, pairs.scores))
    assert found["feature"] == pytest.approx(expected)
    assert found["bm25"]["recall_at_1"] == 1  # no two texts of a split share both words


def test_a_table_has_both_beside_each_other(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["feature", "bm25"] in lines
    assert {line[0] for line in lines[-5:]} == {"ndcg_at_10", "mrr_at_10", *(f"recall_at_{n}" for n in (1, 10, 100))}


def test_another_split_and_another_set_are_asked(run, capsys, tmp_path, data):
    assert told(capsys, "evaluate", run, "eval.asked=train", "data.limit=5")["queries"] == 5
    other = ingest(tmp_path / "other", rows("test")[:7])
    found = told(capsys, "evaluate", run, f"data.path={other}")
    assert (found["queries"], found["documents"]) == (7, 7)
    said = f"{other}: holds no texts to train on, not those that the run was trained on, and is read by its tokenizer"
    assert said in found["remarks"]


def test_a_set_that_moved_or_changed_is_read_by_the_runs_tokenizer(tmp_path, capsys):
    data = ingest(tmp_path / "set", rows() + rows("test"))
    run = trained(tmp_path / "runs", data)
    before = told(capsys, "evaluate", run)["feature"]
    shutil.move(data, tmp_path / "moved")
    found = told(capsys, "evaluate", run, f"data.path={tmp_path}/moved")
    assert found["feature"] == before
    assert not any("is read by its tokenizer" in remark for remark in found["remarks"])
    ingest(tmp_path / "set", rows("test") + rows()[1:])
    remarks = told(capsys, "evaluate", run)["remarks"]
    assert any("holds 46 training texts, not the 48 that the run was trained on" in remark for remark in remarks)
    assert "now holds 46 training texts, not the 48" in refused(capsys, "negatives", run, tmp_path / "out")


def test_what_is_for_training_is_refused(run, capsys):
    for key in ("eval.bank", "data.prefetch"):
        assert f"{key}: is for training" in refused(capsys, "evaluate", run, f"{key}=2")


def test_no_split_to_ask_is_told_with_what_to_do(run, capsys, tmp_path):
    other = ingest(tmp_path / "other", rows()[:7])
    assert "eval.asked=train" in refused(capsys, "evaluate", run, f"data.path={other}")
    assert "no queries of it" in refused(capsys, "evaluate", run, "eval.asked=validation")


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run over 6 queries of which 4 documents each are judged to answer them."""
    table = [row | {"query": f"which {row['query'].split()[1]}"} for row in rows()]
    data = ingest(tmp_path_factory.mktemp("sets") / "judged", table)
    return trained(tmp_path_factory.mktemp("runs"), data, "negatives.draws=4", "epochs=4", "batch_size=2")


def opened(run):
    """The newest checkpoint of a run, and its training pairs with all their texts."""
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    pairs = open_pairs(newest.spec.data, "train")
    return newest, pairs, *(side.get(np.arange(len(side))) for side in (pairs.queries, pairs.documents))


def test_a_mined_negative_is_what_its_querys_chain_holds(run, tmp_path, capsys):
    found = told(capsys, "negatives", run, tmp_path / "st.jsonl")
    newest, _, queries, documents = opened(run)
    table = newest.table("negatives")
    features = features_of(run, queries, "query"), features_of(run, documents, "document")
    written = lines(tmp_path / "st.jsonl")
    assert [line["anchor"] for line in written] == queries
    for row, line in enumerate(written):
        held = int(table["state"][row, 0]) - len(queries)
        cosines = features[1] @ features[0][row]
        assert (line["positive"], line["negative"]) == (documents[row], documents[held])
        assert line["score"] == pytest.approx(float(cosines[held]), abs=1e-5)
        assert line["margin"] == pytest.approx(float(cosines[row] - cosines[held]), abs=1e-5)
        assert line["age"] == newest.manifest.step - table["visited_at"][row, 0] >= 0
    assert found["negatives"] == found["queries"] == 24
    for name in ("score", "margin", "age"):
        assert found[name] == pytest.approx(np.mean([line[name] for line in written]), abs=1e-5)
    assert found["above_positive"] == sum(line["margin"] < 0 for line in written)


def test_each_positive_stands_beside_each_negative_and_is_never_one(judged, tmp_path, capsys):
    told(capsys, "negatives", judged, tmp_path / "st.jsonl", "--per-query", "3")
    answers = {(row["query"].split()[1], row["document"]) for row in rows()}
    pairs = {(line["anchor"].split()[1], line["positive"], line["negative"]) for line in lines(tmp_path / "st.jsonl")}
    assert {(query, positive) for query, positive, _ in pairs} == answers
    assert not {(query, negative) for query, _, negative in pairs} & answers
    negatives = {(query, negative) for query, _, negative in pairs}
    assert len(pairs) == 4 * len(negatives)


@pytest.mark.parametrize("form", ["st", "tevatron", "flag"])
def test_what_is_written_can_be_ingested(judged, tmp_path, form):
    assert main(["negatives", str(judged), str(tmp_path / "mined.jsonl"), "--format", form, "--per-query", "3"]) == 0
    ingest(tmp_path / "set", lines(tmp_path / "mined.jsonl"))
    newest, pairs, queries, documents = opened(judged)
    again = open_pairs(newest.spec.data.model_copy(update={"path": str(tmp_path / "set")}), "train")
    texts = [side.get(np.arange(len(side))) for side in (again.queries, again.documents)]
    assert {(texts[0][q], texts[1][d]) for q, d in again.relevance} == {
        (queries[q], documents[d]) for q, d in pairs.relevance
    }


def test_tevatrons_passages_keep_the_sets_own_ids(run, tmp_path):
    assert main(["negatives", str(run), str(tmp_path / "mined.jsonl"), "--format", "tevatron"]) == 0
    _, pairs, queries, documents = opened(run)
    ids = dict(zip(documents, pairs.documents.ids(np.arange(len(documents))), strict=True))
    for line in lines(tmp_path / "mined.jsonl"):
        assert line["query_id"] == pairs.queries.ids(np.array([queries.index(line["query"])]))[0]
        (positive,), (negative,) = line["positive_passages"], line["negative_passages"]
        assert (positive["docid"], negative["docid"]) == (ids[positive["text"]], ids[negative["text"]])


def test_older_checkpoints_tell_of_further_negatives(judged):
    newest, pairs, *_ = opened(judged)
    held = Held.of(newest, pairs, RunFolder.open(judged), 3)
    assert len(held.query) > len(np.unique(held.query))
    assert np.bincount(held.query).max() <= 3
    alone = Held.of(newest, pairs)
    first = np.unique(held.query, return_index=True)[1]
    np.testing.assert_array_equal(held.document[first], alone.document)
    assert (np.diff(held.age)[np.diff(held.query) == 0] > 0).all()


def test_a_chain_that_holds_an_answer_is_left_out_and_counted(judged):
    newest, pairs, *_ = opened(judged)
    query, document = pairs.relevance[0] + [0, len(pairs.queries)]
    table = newest.table("negatives")
    table["state"][query] = document
    told = SimpleNamespace(spec=newest.spec, manifest=newest.manifest, table=lambda name: table)
    held = Held.of(told, pairs)
    assert held.judged == 1
    assert query not in held.query


@pytest.mark.parametrize("out", ["mined.csv", "mined.parquet", "mined.json", "-"])
def test_negatives_are_not_written_under_an_ending_of_another_format(run, tmp_path, capsys, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    assert "JSONL is what is written, and to a file; call it *.jsonl" in refused(capsys, "negatives", run, out)
    assert not (tmp_path / out).exists()


def test_runs_without_chains_of_queries_have_no_negatives(data, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    run = trained(tmp_path / "runs", data, "negatives={name: in_batch}")
    assert "keeps no chains" in refused(capsys, "negatives", run, out)
    spec = small_spec(f"run_dir={tmp_path}")
    assert "is over images" in refused(capsys, "negatives", RunFolder.prepare(spec).place, out)
    assert not out.exists()


def test_what_cannot_be_is_refused_before_anything_is_read(run, tmp_path, capsys):
    assert "--per-query 101: give 1 to 100" in refused(capsys, "negatives", run, tmp_path / "o", "--per-query", "101")
    assert "data.limit: is not read here" in refused(capsys, "negatives", run, tmp_path / "o", "data.limit=3")
    assert "there is no folder" in refused(capsys, "negatives", run, tmp_path / "gone" / "o")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=["none", "group", "linear", "off"])
def bert(request, tmp_path_factory, data):
    """A run that began from a BERT of random weights with the tokenizer of the set, one for each kind of projector."""
    folder = bert_folder(tmp_path_factory.mktemp("bert"), data)
    kinds = {
        "none": "norm: none, features: 8, hidden: 12",
        "group": "norm: group, features: 8, hidden: 12",
        "linear": "norm: none, features: 8, hidden: 0",
        "off": "norm: none, features: 16, projector: false",
    }
    encoder = f"encoder={{backbone: 'transformers:{folder}', {kinds[request.param]}}}"
    pooling = {"none": "mean", "group": "cls", "linear": "last", "off": "mean"}[request.param]
    overrides = (encoder, f"text.pooling={pooling}", "text.query_prompt=ask ", "text.width=128")
    return trained(tmp_path_factory.mktemp("runs"), data, *overrides)


def bert_folder(folder, data):
    """A BERT of random weights with the tokenizer of a set."""
    from emc2dist.towers import _torchvision  # noqa: F401 (transformers imports torchvision)

    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=24,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(data / "tokenizer.json"),
        pad_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def of_folder(tmp_path, data):
    """A run of two epochs that began from `tmp_path/bert`, with a checkpoint of each."""
    encoder = f"encoder={{backbone: 'transformers:{bert_folder(tmp_path / 'bert', data)}', features: 8, hidden: 0}}"
    return trained(tmp_path / "runs", data, encoder, "text.width=128", "epochs=2", "encoder.norm=none")


def test_a_run_whose_set_is_gone_still_embeds_and_exports(tmp_path, capsys):
    run = trained(tmp_path / "runs", ingest(tmp_path / "set", rows()))
    tokenizer = (tmp_path / "set" / "tokenizer.json").read_bytes()
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "texts.txt").write_text("loud engine")
    _, table = embedded(capsys, run, tmp_path / "texts.txt", tmp_path / "out.parquet")
    assert len(table) == 1
    told(capsys, "export", run, tmp_path / "bag.safetensors")
    assert (tmp_path / "tokenizer.json").read_bytes() == tokenizer
    assert "the run's own set is needed" in refused(capsys, "negatives", run, tmp_path / "out.jsonl")


def turned(folder):
    """Give a folder another tokenizer: two tokens change their numbers."""
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    words = told["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(told))


def test_a_name_of_the_hub_is_told_to_be_no_folder_before_anything_is_made(tmp_path, capsys):
    spec = Path(__file__).parents[2] / "jobs/scifact.yaml"
    said = refused(
        capsys, "train", spec, f"encoder.backbone=transformers:{tmp_path}/org/name", f"run_dir={tmp_path}/runs"
    )
    assert said.startswith(f"emc2dist: encoder.backbone: {tmp_path}/org/name: there is no such folder, and nothing is ")
    assert "save_pretrained" in said
    assert not (tmp_path / "runs").exists()


def test_a_run_needs_no_folder_of_its_backbone_any_more(of_folder, tmp_path, capsys, data):
    def leaves(name):
        """What each command has to say, and what it writes."""
        out = tmp_path / name
        out.mkdir()
        found = told(capsys, "evaluate", of_folder)["feature"]
        told(capsys, "embed", of_folder, data / "queries.parquet", out / "features.parquet")
        told(capsys, "negatives", of_folder, out / "negatives.jsonl")
        told(capsys, "export", of_folder, out / "backbone.safetensors")
        told(capsys, "export", of_folder, out / "whole", "--format", "sentence-transformers")
        file = out / "backbone.safetensors"
        file.write_bytes(save(load_file(file)))  # its metadata have no order
        return found, {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = leaves("before")
    assert len(before[1]) > 8
    shutil.rmtree(tmp_path / "bert")
    assert leaves("gone") == before


def test_a_run_of_a_folder_that_is_gone_resumes_as_an_unbroken_one(of_folder, tmp_path):
    folder = RunFolder.open(of_folder)
    last, first = (place.path for place in folder.checkpoints())
    shutil.rmtree(tmp_path / "bert")
    resumed = Run(folder.spec(), tmp_path).go(first, folder.model(folder.spec()))
    again, unbroken = (load_trainer(path)["encoder"] for path in (resumed.checkpoints[12], last))
    assert all(torch.equal(again[name], unbroken[name]) for name in unbroken)


def test_another_tokenizer_or_config_is_refused_by_name(of_folder, tmp_path, capsys):
    folder = RunFolder.open(of_folder)
    first = folder.checkpoints()[1].path
    turned(tmp_path / "bert")
    with pytest.raises(RunError, match=r"bert: tokenizer\.json: not as in"):
        Run(folder.spec(), tmp_path).go(first)
    with pytest.raises(RunError, match=r"bert: tokenizer\.json: not as in .*runs/pairs"):
        train(folder.spec())
    with pytest.raises(RunError, match=r"bert: tokenizer\.json: not as in .*pairs/model"):  # on one machine of several
        Run(folder.spec(), tmp_path).go(None, folder.model(folder.spec()))
    (of_folder / "model" / "config.json").write_text("{}")
    assert "model: config.json: not as in" in refused(capsys, "evaluate", of_folder)
    shutil.rmtree(of_folder / "model")
    assert "model/tokenizer.json: is missing; put it back" in refused(capsys, "evaluate", of_folder)


def test_what_is_kept_on_s3_is_what_was_there_and_no_more(s3, tmp_path, data):
    place = files.at(s3.uri) / "model"
    (place / "vocab.txt").write(b"of an earlier start")
    found = ModelFiles("there", pretrained_files(bert_folder(tmp_path, data)))
    found.keep(place)
    assert ModelFiles.kept(place).content == found.content
    assert {"tokenizer.json", "config.json", "tokenizer_config.json"} <= found.content.keys()


TEXTS = ["which apple is red", "loud", "the old violin of the wide river and the loud engine"]


def by_hand(folder, texts, prompt):
    """Features of texts by what a folder of sentence-transformers says, module by module."""
    import transformers
    from torch import nn

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    tokens = tokenizer([prompt + text for text in texts], **options)
    mask = tokens["attention_mask"]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
    for module in json.loads((folder / "modules.json").read_text())[1:]:
        place, kind = folder / module["path"], module["type"].removeprefix("sentence_transformers.models.")
        config = json.loads((place / "config.json").read_text())
        if kind == "Pooling":
            (mode,) = (name.removeprefix("pooling_mode_") for name, value in config.items() if value and "mode" in name)
            found = {
                "mean_tokens": (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
                "cls_token": found[:, 0],
                "lasttoken": found[torch.arange(len(found)), mask.sum(1) - 1],
            }[mode]
            assert config["word_embedding_dimension"] == found.shape[1]
        elif kind == "Normalize":
            found = nn.functional.normalize(found, dim=1)
        else:
            makes = {
                "LayerNorm": lambda dimension: nn.ModuleDict({"norm": nn.LayerNorm(dimension)}),
                "Dense": lambda in_features, out_features, bias, activation_function: nn.ModuleDict(
                    {"linear": nn.Linear(in_features, out_features, bias)}
                ),
            }
            layer = makes[kind](**config)
            layer.load_state_dict(load_file(place / "model.safetensors"))
            (layer,) = layer.values()
            found = layer(found)
            if config.get("activation_function", "").endswith("ReLU"):
                found = found.relu()
    return found.detach().numpy()


def test_a_folder_of_sentence_transformers_gives_the_runs_features(bert, tmp_path, capsys):
    found = told(capsys, "export", bert, tmp_path / "out", "--format", "sentence-transformers")
    assert found["prompts"] == {"query": "ask ", "document": ""}
    assert any("text.query_length: 8 and text.document_length: 16 differ" in remark for remark in found["remarks"])
    expected = features_of(bert, TEXTS, "document")
    np.testing.assert_allclose(by_hand(tmp_path / "out", TEXTS, ""), expected, atol=1e-5)
    expected = features_of(bert, TEXTS[:2], "query")
    np.testing.assert_allclose(by_hand(tmp_path / "out", TEXTS[:2], "ask "), expected, atol=1e-5)


def test_sentence_transformers_loads_it(bert, tmp_path, capsys):
    library = pytest.importorskip("sentence_transformers")
    told(capsys, "export", bert, tmp_path / "out", "--format", "sentence-transformers")
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(model.encode(TEXTS), features_of(bert, TEXTS, "document"), atol=1e-5)
    encoded = model.encode(TEXTS[:2], prompt_name="query")
    np.testing.assert_allclose(encoded, features_of(bert, TEXTS[:2], "query"), atol=1e-5)


def test_a_folder_is_written_whole_or_not_at_all(bert, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    puts = []

    def put(self, source):
        puts.append(source.name)
        if source.name == "modules.json":
            raise StorageError("no room")
        return real(self, source)

    real = DiskPlace.put
    monkeypatch.setattr(DiskPlace, "put", put)
    assert "no room" in refused(capsys, "export", bert, out, "--format", "sentence-transformers")
    assert puts[-1] == "modules.json"
    assert [path for path in out.rglob("*") if path.is_file()] == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    words = ("export", bert, tmp_path / "full", "--format", "sentence-transformers")
    assert refused(capsys, *words).endswith("full: is not empty; name a new folder")


def test_sentence_transformers_is_refused_where_it_has_no_module(run, tmp_path, capsys):
    words = ("export", run, tmp_path / "out", "--format", "sentence-transformers")
    said = refused(capsys, *words)
    assert "encoder.backbone is bag, for which sentence-transformers has no module; write" in said
    assert f"`emc2dist export {run} FILE.safetensors`" in said
    images = RunFolder.prepare(small_spec(f"run_dir={tmp_path}")).place
    assert "is over images; --format" in refused(capsys, "export", images, tmp_path / "o", *words[3:])
    assert "only keys of s3" in refused(capsys, "export", images, tmp_path / "o", "data.path=x")
    assert not (tmp_path / "out").exists()


def test_a_backbone_gives_its_representation_with_the_tokenizer_beside_it(run, tmp_path, capsys, data):
    out = tmp_path / "bag.safetensors"
    found = told(capsys, "export", run, out)
    assert (tmp_path / "tokenizer.json").read_bytes() == (data / "tokenizer.json").read_bytes()
    with safe_open(out, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert (metadata["backbone"], metadata["width"], metadata["pooling"]) == ("bag", "16", "mean")
    assert (metadata["query_length"], metadata["document_length"]) == ("8", "16")
    assert str(found["vocabulary"]) == metadata["vocabulary"]
    assert "layers" not in metadata
    backbone = Bag(int(metadata["vocabulary"]), int(metadata["width"]))
    backbone.load_state_dict(tensors)
    tokens = TokenView((tmp_path / "tokenizer.json").read_text(), 16)(TEXTS, np.zeros((1, 3), int))[0]
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    feature = newest.encoder.feature(backbone(tokens)).detach().numpy()
    np.testing.assert_allclose(feature, features_of(run, TEXTS, "document"), atol=1e-6)


def test_another_tokenizer_is_not_written_over(run, tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: is another tokenizer; name" in refused(capsys, "export", run, tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_all_that_leaves_goes_to_s3_as_well(run, s3, data, tmp_path, capsys):
    told(capsys, "export", run, f"{s3.uri}/b.safetensors")
    told(capsys, "export", run, f"{s3.uri}/b.safetensors")  # over what was there
    assert files.at(f"{s3.uri}/tokenizer.json").read() == (data / "tokenizer.json").read_bytes()
    for command, *words in (["negatives", run], ["embed", run, data / "queries.parquet"]):
        told(capsys, command, *words, f"{s3.uri}/out")
        told(capsys, command, *words, tmp_path / "out")
        assert files.at(f"{s3.uri}/out").read() == (tmp_path / "out").read_bytes()


def embedded(capsys, run, source, out, *words):
    found = told(capsys, "embed", run, source, out, *words)
    return found, pq.read_table(out)


def test_every_line_of_a_file_is_embedded_in_order(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emc2dist.run.vectors.texts._AT_ONCE", 2)  # three chunks
    texts = ["loud engine", "the old violin", "loud engine", "blå", "which apple"]
    (tmp_path / "texts.txt").write_text("\ufeff" + "\r\n".join(texts), encoding="utf-8")
    for side in ("query", "document"):
        found, table = embedded(capsys, run, tmp_path / "texts.txt", tmp_path / "out.parquet", "--side", side)
        assert (found["texts"], found["width"]) == (5, 8)
        assert table["text"].to_pylist() == texts
        assert table["id"].to_pylist() == ["0", "1", "2", "3", "4"]
        features = np.array(table["feature"].to_pylist(), np.float32)
        np.testing.assert_allclose(features, features_of(run, texts, side), atol=1e-6)
        assert table.schema.metadata[b"side"] == side.encode()
        assert table.schema.field("feature").type == pa.list_(pa.float32(), 8)


def test_a_table_keeps_its_ids_and_says_what_is_not_read(run, data, tmp_path, capsys):
    found, table = embedded(capsys, run, data / "documents.parquet", tmp_path / "out.parquet", "--side", "document")
    source = pq.read_table(data / "documents.parquet")
    assert table.select(["id", "text"]) == source.select(["id", "text"]).cast(table.select(["id", "text"]).schema)
    assert found["remarks"] == ["columns that are not read: split"]
    (tmp_path / "more.jsonl").write_text('{"_id": 7, "code": "loud"}\n')
    _, table = embedded(capsys, run, tmp_path / "more.jsonl", tmp_path / "out.parquet", "--column", "code")
    assert table.select(["id", "text"]).to_pylist() == [{"id": "7", "text": "loud"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"one\n\ntwo\n", "a.txt, line 2: the text is empty"),
        ("a.txt", b"one\n\xff\n", "a.txt, line 2: the text is not UTF-8"),
        ("a.txt", b"one\n" + b"x" * (2**20 + 1), "a.txt, line 2: the text is of 1,048,577 bytes"),
        ("a.txt", b"", "a.txt: holds no text"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: the text is no text"),
        ("a.jsonl", b'{"text": "x", "id": [1]}\n', "a.jsonl, line 1: the id [1] is neither text nor a whole number"),
        ("a.jsonl", b'{"txt": "x"}\n', "a.jsonl: has no column 'text', but txt; say which: --column NAME"),
        ("a.jsonl", b"PAR1", "a.jsonl, line 1: no JSON"),
        ("a.parquet", b"PAR1", "a.parquet"),
        ("a.json", b'[{"text": "x"}]', "a.json: is neither a text a line nor a table; write a JSON object a line"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "a.jsonl.gz: is packed (gzip); unpack it"),
    ],
)
def test_a_text_that_is_of_no_use_is_named_and_nothing_is_written(run, tmp_path, capsys, name, content, said):
    (tmp_path / name).write_bytes(content)
    line = refused(capsys, "embed", run, tmp_path / name, tmp_path / "out.parquet")
    assert said in line
    assert "--skip-unreadable" not in line  # which it has not
    assert not (tmp_path / "out.parquet").exists()


def test_titles_are_joined_as_an_ingest_has_it(run, tmp_path, capsys):
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "d", "title": "loud", "text": "engine"}\n{"_id": "e", "text": "x"}\n'
    )
    found, table = embedded(capsys, run, tmp_path / "corpus.jsonl", tmp_path / "out.parquet", "--side", "document")
    assert table["text"].to_pylist() == ["loud engine", "x"]
    assert found["remarks"] == ["title and text of each row are one text, as `emc2dist ingest` has it"]
    (tmp_path / "titles.jsonl").write_text('{"title": "loud", "text": "engine"}\n')
    _, table = embedded(capsys, run, tmp_path / "titles.jsonl", tmp_path / "title.parquet", "--column", "title")
    assert table["text"].to_pylist() == ["loud"]


def test_a_source_is_not_written_over(run, tmp_path, capsys):
    (tmp_path / "a.parquet").write_bytes(b"mine")
    assert "is, or lies in, what is read" in refused(
        capsys, "embed", run, tmp_path / "a.parquet", tmp_path / "." / "a.parquet"
    )
    assert (tmp_path / "a.parquet").read_bytes() == b"mine"


def test_the_texts_nearest_to_one_of_a_file_or_to_a_new_one_are_found(run, tmp_path, capsys):
    texts = ["loud engine", "the old violin", "engine that is loud", "which apple"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    embedded(capsys, run, tmp_path / "texts.txt", tmp_path / "v.parquet")
    features = features_of(run, [*texts, "engine loud"], "query")
    for query, vector, own in (("0", features[0], 0), ("engine loud", features[4], None)):
        cosines = features[:4] @ vector
        order = [row for row in np.argsort(-cosines, kind="stable") if row != own]
        found = told(capsys, "neighbours", tmp_path / "v.parquet", query, "--count", "2")
        assert [row["text"] for row in found["neighbours"]] == [texts[row] for row in order[:2]]
        np.testing.assert_allclose([row["cosine"] for row in found["neighbours"]], cosines[order[:2]], atol=1e-5)
    for words, said in (
        (["--by", "representation"], "--by: "),
        (["--out", tmp_path / "n.png"], "of which there is no picture"),
    ):
        assert said in refused(capsys, "neighbours", tmp_path / "v.parquet", "0", *words)
    assert "--split: is not of a run over pairs" in refused(
        capsys, "embed", run, tmp_path / "texts.txt", tmp_path / "o.parquet", "--split", "test"
    )
