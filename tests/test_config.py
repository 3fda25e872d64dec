"""Specs: strict, exact about what is wrong, and the same after a round trip."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from emc2dist.config import OPERATIONAL, Spec, changed, differences, dump, load, load_job, parse, parse_s3, paths
from emc2dist.errors import SpecError

MINIMAL = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\n"
JOBS = sorted((Path(__file__).parent.parent / "jobs").rglob("*.yaml"))


def test_scientific_notation_is_a_number_in_files_and_overrides():
    spec = parse(MINIMAL, ["temperature=7e-2", "optimiser.weight_decay=1E-6", "data.limit=512"])
    assert (spec.lr, spec.temperature, spec.optimiser.weight_decay, spec.data.limit) == (1e-4, 0.07, 1e-6, 512)


def test_precedence_default_file_override():
    assert parse(MINIMAL).seed == 0
    assert parse(MINIMAL + "seed: 1\n").seed == 1
    assert parse(MINIMAL + "seed: 1\n", ["seed=2"]).seed == 2
    whole = parse(MINIMAL + "data: {path: /a, limit: 3}\n", ["data={limit: 4}"]).data
    assert (whole.path, whole.limit) == ("/a", 4)  # a mapping sets the keys that it holds


def test_a_dump_reads_back_to_an_equal_spec():
    spec = parse(MINIMAL, ["views.crop=[0.1,0.9]", "data.limit=5", "optimiser.clip_norm=1.5"])
    assert parse(dump(spec)) == spec


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tempreature=1", ["tempreature", "unknown", "temperature"]),
        ("data.limt=3", ["data.limt", "data.limit"]),
        ("burn_in=0.5", ["burn_in", "unknown key"]),
        ("temperature=0", ["temperature", "0", "greater than or equal to 0.000001"]),
        ("temperature=-0.1", ["temperature", "-0.1", "greater than or equal to 0.000001"]),
        ("temperature=.nan", ["temperature", "nan"]),
        ("temperature=inf", ["temperature", "inf", "1000000"]),
        ("temperature_end=0", ["temperature_end", "0", "greater than or equal to 0.000001"]),
        ("temperature_period=2", ["temperature_period", "2", "needs temperature_end"]),
        ("negatives.burn_in_fraction=1.0", ["burn_in_fraction", "1.0", "less than 1"]),
        ("negatives.burn_in_fraction=-0.1", ["burn_in_fraction", "greater than or equal to 0"]),
        ("batch_size=1", ["batch_size", "1", "2"]),
        ("workers=0", ["workers", "0", "1"]),
        ("workers=3", ["batch_size", "16", "multiple of 3"]),
        ("workers=32", ["batch_size", "16", "multiple of 32"]),
        ("optimiser.accumulate=16", ["batch_size", "no negatives", "32"]),
        ("encode_chunk=0", ["encode_chunk", "0", "1"]),
        ("objective={name: supremix, beta: [0, 5]}", ["objective.beta.0", "0", "greater than or equal to 1"]),
        ("data.per_class=3", ["data.per_class: 3", "a batch of 16", "multiple of it"]),
        ("data.per_class=16", ["data.per_class: 16", "two classes or more"]),
        ("data={per_class: 4, shuffle: block}", ["data.per_class: 4", "data.shuffle=full"]),
        ("data.per_class=4", ["data.per_class: 4", "more of its own class", "negatives.close=[label]"]),
        ("epochs=true", ["epochs", "True", "integer"]),
        ("epochs=1.5", ["epochs", "1.5", "integer"]),
        ("negatives.kernel=gibbs", ["kernel", "gibbs", "'mh' or 'isir'"]),
        ("objective=", ["objective: got nothing", "objective=emc2"]),
        ("objective=SimCLR", ["objective: got 'SimCLR'", "the nearest is simclr"]),
        ("objective=byol", ["objective: got 'byol'", "emc2", "sogclr"]),
        ("negatives.cache_proposals=-8", ["cache_proposals", "-8"]),
        ("lr=nan", ["lr", "nan", "finite"]),
        ("lr=1:30", ["lr", "'1:30'", "number"]),
        ("lr=1 #2", ["lr", "'1 #2'", "number"]),
        ("data={limit: 3} #2", ["data: '#2' comes after the end"]),
        ("data.path.x=1", ["data.path", "{'x': 1}", "string"]),
        ("a..b=1", ["a..b: unknown key"]),
        ("data.path=", ["data.path", "got nothing", "string"]),
        ("epochs=1.5e0", ["epochs", "1.5", "integer"]),
        ("name=../up", ["name", "../up"]),
        ("views.crop=[0.5,0.2]", ["views.crop", "ascending"]),
        ("data=3", ["data", "3"]),
        ("lr=", ["lr", "nothing", "number"]),
        ("lr", ["'lr'", "key=value"]),
        ("lr.x=1", ["lr is a value"]),
        ("lr={a: b: c}", ["not valid YAML"]),
        ("lr=[1", ["lr: got '[1', a part of a value", "put all of it in quotes, as in 'lr=VALUE'"]),
        ("views=crop:[0.2", ["views: got 'crop:[0.2', a part of a value", "'views=VALUE'"]),
        ("launch.environment={A: '[', B", ["a part of a value"]),
        ("lr=1e-3,1e-4", ["lr: got '1e-3,1e-4'", "a number has no comma", "`emc2dist sweep`"]),
        ("lr=[1e-3, 1e-4]", ["lr: got (0.001, 0.0001)", "`emc2dist sweep`"]),
        ("precision=bf16,float32", ["precision: got 'bf16,float32'", "`emc2dist sweep`"]),
        ("data=", ["data: got nothing", "data={KEY: VALUE}"]),
        ("launch.environment=A", ["launch.environment", "'A'", "{KEY: VALUE}"]),
        ("views.crop=0.2,1.0", ["views.crop", "'0.2,1.0'", "[0.2, 1.0]"]),
        ("data.limit=all", ["data.limit", "'all'", "integer, or null"]),
        ("watch.port=off", ["watch.port", "'off'", "integer, or null"]),
        ("watch.wandb=false", ["watch.wandb", "got False", "string, or null"]),
        ("watch.mlflow=yes", ["watch.mlflow", "got True", "string, or null"]),
        ("s3.region=off", ["s3.region", "got False", "string, or null"]),
        ("launch.cluster=no", ["launch.cluster", "got False", "string, or null"]),
        (
            "s3.endpoint=127.0.0.1:9000",
            ["s3.endpoint: got '127.0.0.1:9000'", "no URL", "write http://127.0.0.1:9000 or"],
        ),
        ("s3.endpoint=localhost", ["s3.endpoint", "write http://localhost or https://localhost"]),
        ("s3.endpoint=ftp://host", ["s3.endpoint", "as in https://s3.example.org:9000"]),
        ("s3.endpoint=http://host:99999", ["s3.endpoint", "as in https://"]),
        ("s3.endpoint=http://[", ["s3.endpoint", "as in https://"]),
        ("s3.endpoint=''", ["s3.endpoint", "as in https://"]),
        ("s3.endpoint=", ["s3.endpoint: got nothing; give it a value, or null"]),
        ("data.limit= ", ["data.limit: got nothing; give it a value, or null"]),
        ("training.lr=1e-3", ["training.lr: unknown key; the nearest valid key is lr"]),
        ("lr =0.5", ["'lr ': leave out the spaces beside lr"]),
        ("momentum=0.5", ["momentum: unknown key; the nearest valid key is encoder.momentum"]),
        ("data.num_workers=4", ["data.num_workers: unknown key; the nearest valid key is data.loaders"]),
        (
            "encoder.pretrained=true",
            ["encoder.pretrained: unknown key; encoder takes backbone, stem, norm, hidden, projector, features"],
        ),
        (
            "encoder.wheels=x",
            ["encoder.wheels: unknown key; encoder takes backbone, stem, norm, hidden, projector, features"],
        ),
        ("amp=true", ["amp: unknown key; the nearest valid key is precision"]),
        ("trainer.use_amp=true", ["trainer.use_amp: unknown key; the nearest valid key is precision"]),
        ("knn_k=3", ["knn_k: unknown key; `emc2dist validate SPEC` prints those that there are"]),
        ("learning_rate=1", ["learning_rate: unknown key; the nearest valid key is lr"]),
        ("optimizer.momentum=0", ["optimizer.momentum: unknown key; the nearest valid key is optimiser.momentum"]),
        ("train.batch_sise=8", ["train.batch_sise: unknown key; the nearest valid key is batch_size"]),
        ("training={lr: 1, limit: 2}", ["training.lr: unknown", "is lr; training.limit: unknown", "is data.limit"]),
        ("s3.endpoint=$S3_ENDPOINT", ["s3.endpoint", "'$S3_ENDPOINT' is a shell's", "write out"]),
        ("watch.wandb=${PROJECT}", ["watch.wandb", "'${PROJECT}' is a shell's"]),
        ("watch.wandb=pro\x1bj", ["watch.wandb: got 'pro\\x1bj'", "holds a control character"]),
        ('watch.mlflow="proj\\n"', ["watch.mlflow", "holds a control character"]),
        ("eval.asked={{ split }}", ["eval.asked", "'{{ split }}' is a template's"]),
        ("lr={{lr}}", ["lr: line 1: '{{lr}}' is a template's, which nothing here fills in; write out"]),
        ("views.crop=[{{ low }}, 0.9]", ["views.crop: line 1: '{{ low }}' is a template's"]),
        ("views.crop=[${LOW}, 0.9]", ["views.crop: not valid YAML", "; '${LOW}' is a shell's"]),
        ("lr=$LR", ["lr: got '$LR'; '$LR' is a shell's, which nothing here fills in; write out"]),
        ("name={{name}}", ["name: got '{{name}}'; '{{name}}' is a template's"]),
        ("resources.worker_labels={zone: $ZONE}", ["resources.worker_labels.zone: got '$ZONE'; '$ZONE' is a shell's"]),
        ("resources.shard_labels={zone: $ZONE}", ["resources.shard_labels.zone: got '$ZONE'; '$ZONE' is a shell's"]),
        ('lr="1e-3"', ["lr: got '1e-3'; the quotes around it make it text; leave them out"]),
        ("watch.tensorboard='yes'", ["watch.tensorboard: got 'yes'; the quotes around it"]),
        ("data.limit='null'", ["data.limit: got 'null'; the quotes around it"]),
        ('views.crop=["0.2", 1]', ["views.crop.0: got '0.2'; the quotes around it"]),
        ("lr='fast'", ["lr: got 'fast'; input should be a valid number"]),
    ],
)
def test_what_is_wrong_is_one_message_that_names_it(override, words):
    with pytest.raises(SpecError) as caught:
        parse(MINIMAL, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("said", "objective", "negatives"),
    [
        ([], "dcl", "chain"),
        (["objective=emc2"], "dcl", "chain"),
        (["objective=simclr"], "infonce", "in_batch"),
        (["objective=sogclr"], "dcl", "moving_average"),
        (["objective=dcl"], "dcl", "in_batch"),
        (["objective=dclw"], "dclw", "in_batch"),
        (["objective=dclw", "negatives=chain"], "dclw", "chain"),
        (["negatives=chain", "objective=dclw"], "dclw", "chain"),
        (["objective.name=dclw"], "dclw", "chain"),
        (["objective.name=dclw", "objective.sigma=0.3"], "dclw", "chain"),
        (["negatives.kernel=isir"], "dcl", "chain"),
        (["negatives={name: moving_average, rate: 0.5}"], "dcl", "moving_average"),
        (["objective={name: infonce}", "negatives=in_batch"], "infonce", "in_batch"),
    ],
)
@pytest.mark.parametrize("before", ["", "objective: emc2\n", "objective: dcl\nnegatives: {name: chain}\n"])
def test_an_objective_by_its_bare_name_brings_its_negatives(before, said, objective, negatives):
    spec = parse(MINIMAL + before, said)
    assert (spec.objective.name, spec.negatives.name) == (objective, negatives)
    assert parse(dump(spec)) == spec


def test_negatives_of_the_file_that_an_objective_takes_the_place_of_are_told(capsys):
    chain = MINIMAL + "negatives: {name: chain, kernel: isir}\n"
    parse(chain, ["objective=dclw"])
    said = "objective=dclw: takes the place of the file's negatives too; objective.name=dclw keeps them"
    assert said in capsys.readouterr().err
    assert parse(chain, ["objective.name=dclw"]).negatives.kernel == "isir"
    parse(MINIMAL, ["objective=dclw"])
    assert capsys.readouterr().err == ""


def test_a_sweep_takes_presets_and_what_they_are_of():
    spec = parse(MINIMAL, ["negatives.kernel=isir"])
    assert changed(spec, {"objective": "simclr"}, source="t").method == "simclr"
    assert changed(spec, {"objective": "dcl"}, source="t").method == "dcl"
    assert changed(spec, {"negatives.kernel": "mh"}, source="t").negatives.kernel == "mh"
    assert changed(spec, {"objective.name": "dclw"}, source="t").method == "dclw, chain"


def test_what_nobody_reads_is_refused_by_the_name_of_what_it_is_given_to():
    for said, words in [
        (["objective=simclr", "negatives.kernel=isir"], "negatives: in_batch takes no kernel: 'isir'"),
        (["objective=dcl", "negatives.cache_proposals=8"], "negatives: in_batch takes no cache_proposals: 8"),
        (["negatives.balance=push"], "negatives.balance: push is for candidates whose features carry no gradient"),
        (["objective.sigma=0.2"], "objective: dcl takes no sigma: 0.2"),
        (["kernel=isir"], "kernel: unknown key; the nearest valid key is negatives.kernel"),
        (["negatives.kernel=isir", "negatives.burn_in_fraction=0.1"], "burn_in_fraction: 0.1 is of kernel: mh"),
        (["optimiser.trust=0.1"], "optimiser.trust: 0.1 is of lars; optimiser.name: adamw takes none"),
        (["optimiser.name=adam", "optimiser.momentum=0.5"], "optimiser.momentum: 0.5 is of sgd and lars"),
        (["objective={sigma: 0.2}", "negatives=in_batch"], "objective: dcl takes no sigma"),
    ]:
        with pytest.raises(SpecError) as caught:
            parse(MINIMAL, said)
        assert words in str(caught.value)


def test_moco_brings_its_follower_unless_the_spec_names_one():
    spec = parse(MINIMAL, ["objective=moco"])
    assert (spec.method, spec.negatives.name, spec.encoder.momentum) == ("moco", "queue", 0.99)
    assert parse(MINIMAL + "objective: moco\nencoder: {momentum: 0.9}\n").encoder.momentum == 0.9
    assert parse(dump(spec)) == spec
    assert parse(MINIMAL, ["objective=isogclr"]).method == "isogclr"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["negatives=queue"], r"negatives: queue needs encoder.momentum: .* give encoder.momentum=0.99, or objective"),
        (["objective=moco", "encoder.momentum=null"], "negatives: queue needs encoder.momentum"),
        (
            ["negatives={name: gumbel, carried: cached}"],
            r"negatives.carried: cached would have old features alone push",
        ),
        (["encoder.momentum=0.9", "encoder.norm=batch"], r"encoder.momentum: .* use group, none or sync_batch"),
        (["encoder.momentum=0.9", "negatives.draws=8", "negatives.balance=pull"], "pull has nothing to balance with"),
        (["objective=nnclr", "encoder.momentum=0.9"], "encoder.momentum: objective: nnclr gives gradients to keys"),
        (["objective=supcon", "encoder.momentum=0.9"], "encoder.momentum: objective: supcon gives gradients to keys"),
        (["objective=mv_dhel", "negatives=queue"], "negatives: queue has a follower's keys, and objective: mv_dhel"),
        (["objective=cacr", "negatives=gumbel"], "negatives: gumbel draws one cached row .* needs the mean over all"),
        (["objective=groco", "negatives=gumbel"], "negatives: gumbel draws one cached row .* ranks the hardest"),
        (["objective=nnclr", "negatives.draws=8", "negatives.balance=push"], r"negatives.balance: push .* use pull"),
        (["objective=rgcl", "temperature_end=0.5"], "temperature_end: 0.5 is nobody's with objective: rgcl"),
        (["objective=rgcl", "objective.tau_min=2"], "objective.tau_min: 2 is not below objective.tau_max: 1"),
        (["encoder.momentum=1"], r"encoder.momentum: got 1"),
    ],
)
def test_keys_and_temperatures_that_do_not_combine_are_refused_with_the_reason(said, message):
    with pytest.raises(SpecError, match=message):
        parse(MINIMAL, said)


def test_what_does_not_combine_is_refused_with_the_reason():
    with pytest.raises(SpecError, match="objective: emc2 is short for objective: dcl with negatives: chain"):
        parse(MINIMAL, ["objective=emc2", "negatives=in_batch"])
    with pytest.raises(SpecError, match=r"objective.name: missing"):
        parse(MINIMAL + "objective: {sigma: 0.1}\n")
    with pytest.raises(SpecError, match=r"negatives.draws: 9 does not divide among 2 workers; use a multiple of 2"):
        parse(MINIMAL, ["negatives.draws=9", "workers=2"])


def test_what_has_no_gradient_can_be_balanced_and_is_shared_by_workers():
    for said in ["negatives.carried=cached", "negatives.draws=6"]:
        assert parse(MINIMAL, [said, "negatives.balance=push"]).negatives.balance == "push"
    fitting = parse(MINIMAL, ["batch_size=24", "negatives.draws=8", "workers=8", "min_workers=1"]).fitting
    assert [fitting(places) for places in (8, 7, 3, 1)] == [8, 4, 2, 1]


def test_a_run_and_its_resumption_are_compared_by_what_is_used():
    mh, isir, simclr = (parse(MINIMAL, [word]) for word in ("seed=0", "negatives.kernel=isir", "objective=simclr"))
    assert differences(mh, isir) == ["negatives.kernel: mh -> isir"]
    assert "objective.name: dcl -> infonce" in differences(mh, simclr)
    assert differences(simclr, simclr) == []


def test_missing_key_file_and_mapping(tmp_path):
    with pytest.raises(SpecError, match="lr: missing"):
        parse("name: a\nepochs: 3\nbatch_size: 16\n")
    with pytest.raises(SpecError, match=r"nowhere.yaml: cannot be read"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match=rf"gone\.yaml: cannot be read \(No such .* in {os.getcwd()}\); give the path"):
        load("gone.yaml")
    with pytest.raises(SpecError, match="expected a mapping"):
        parse("- a\n- b\n")
    with pytest.raises(SpecError, match=r"epochs: got '3'; the quotes around it make it text; leave them out"):
        parse(MINIMAL.replace("3", '"3"'))


def test_tags_in_a_spec_run_nothing():
    with pytest.raises(SpecError, match=r"line 1: holds the tag python/object/apply:os.system; a spec takes none"):
        parse("name: !!python/object/apply:os.system ['true']\n")


def test_differences_name_what_changes_the_result_only():
    old = parse(MINIMAL)
    keys = ["workers=2", "shards=3", "eval.every=5", "data.path=/else", "data.decoded_mib=9", "run_dir=r"]
    keys += ["data.on_device=true", "data.loaders=3"]
    moved = parse(MINIMAL, keys)
    assert differences(old, moved) == []
    keys = ["temperature=0.1", "precision=tf32", "deterministic=true", "data.limit=9", "data.shrink=true"]
    keys += ["views.made_on=device", "encoder.features=64", "cuda_graphs=true"]
    changed = parse(MINIMAL, keys)
    assert differences(old, changed) == [
        "temperature: 0.2 -> 0.1",
        "precision: float32 -> tf32",
        "deterministic: False -> True",
        "cuda_graphs: False -> True",
        "data.limit: None -> 9",
        "data.shrink: False -> True",
        "views.made_on: auto -> device",
        "encoder.features: 128 -> 64",
    ]
    assert differences(old, parse(MINIMAL, ["compile=true"])) == ["compile: False -> True"]


@pytest.mark.parametrize(
    "other", ["workers=2", "optimiser.accumulate=2", "encode_chunk=4", "compile=true", "device=cpu"]
)
def test_what_cannot_be_recorded_as_a_cuda_graph_is_refused(other):
    assert parse(MINIMAL, ["cuda_graphs=true"]).cuda_graphs
    key, value = other.split("=")
    with pytest.raises(SpecError, match=f"cuda_graphs: true does not go with {key}: {value},"):
        parse(MINIMAL, ["cuda_graphs=true", other])


def test_operational_keys_exist():
    for key in OPERATIONAL:
        section = Spec
        for part in key.split("."):
            assert part in section.model_fields
            section = section.model_fields[part].annotation


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_is_valid(path):
    assert load_job(path).name


def test_a_spec_is_read_without_torch_or_ray():
    code = (
        "import sys; import emc2dist.cli, emc2dist.config as c; c.parse(sys.argv[1]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code, MINIMAL], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("data.path=/data/set #2", "/data/set #2"),
        ("data.path=/data/exp: 3", "/data/exp: 3"),
        ('data.path=it\'s "so"', 'it\'s "so"'),
        ("data.path='/data/set #2'", "/data/set #2"),
        ("data.path=~", "~"),
        ("data.path={a}", "{a}"),
        ("data.path=[a", "[a"),
        ("data.path=*a", "*a"),
        ("data.path=!a", "!a"),
        ("data.path=2026-11-26", "2026-11-26"),
        ("watch.wandb= a ", " a "),
        ("name=1e5", "1e5"),
        ("name=007", "007"),
        ("name=yes", "yes"),
        ("name=null", "null"),
        ("s3.region=null", None),
        ("s3.endpoint=None", None),
        ("eval.asked=none", None),
        ("resources.accelerator=NONE", None),
        ("watch.wandb='None'", "None"),
        ("watch.mlflow='off'", "off"),
        ("encoder.norm=none", "none"),
        ("min_workers=None", None),
        ("data.limit=null", None),
        ("data.limit=1e6", 1_000_000),
        ("workers=016", 16),
        ("workers=0x10", 16),
        ("lr=1_0", 10.0),
        ("lr=.5", 0.5),
        ("lr=+1", 1.0),
        ("watch.tensorboard=on", True),
        ("watch.tensorboard=FALSE", False),
        ("views.crop=[.1, 1]", (0.1, 1.0)),
        ("resources.worker_labels.ray.io/market-type=no", {"ray.io/market-type": "no"}),
        ("launch.environment={A: 01, B: 1e5}", {"A": "01", "B": "1e5"}),
        ("launch.environment={A: '[', B: '}'}", {"A": "[", "B": "}"}),
    ],
)
def test_a_value_is_what_its_key_takes(override, meant):
    """The same on the command line and, where YAML can say it so, in a file; and after a round trip."""
    spec = parse(MINIMAL, [override])
    value = spec
    for part in override.partition("=")[0].split(".")[:2]:
        value = getattr(value, part)
    assert value == meant
    assert type(value) is type(meant)
    assert parse(dump(spec)) == spec


@pytest.mark.parametrize(
    ("line", "key", "meant"),
    [
        ("name: 1e5", "name", "1e5"),
        ("name: 007", "name", "007"),
        ("name: no", "name", "no"),
        ("run_dir: 2026-11-26", "run_dir", "2026-11-26"),
        ("run_dir: 12:30", "run_dir", "12:30"),
        ("run_dir: ~", "run_dir", "~"),
        ("workers: 010", "workers", 10),
        ("lr: 1e-4", "lr", 1e-4),
        ("lr: 1_000", "lr", 1000.0),
        ("seed: 0o17", "seed", 15),
    ],
)
def test_a_file_says_what_was_written(line, key, meant):
    lines = {"name": "name: a", "epochs": "epochs: 3", "batch_size": "batch_size: 160", "lr": "lr: 1"}
    assert getattr(parse("\n".join((lines | {key: line}).values())), key) == meant


def test_a_key_given_twice_is_refused_with_both_lines():
    with pytest.raises(SpecError, match=r"spec: lr: given twice, in lines 4 and 5; keep one"):
        parse(MINIMAL + "lr: 2\n")
    with pytest.raises(SpecError, match=r"data\.limit: given twice, in lines 6 and 8"):
        parse(MINIMAL + "data:\n  limit: 3\n  path: /a\n  limit: 3\n")
    with pytest.raises(SpecError, match=r"data: given twice, in lines 5 and 6"):
        parse(MINIMAL + "data: {limit: 3}\ndata: {path: /a}\n")
    with pytest.raises(SpecError, match=r"data\.limit: with a dot this is for the command line"):
        parse(MINIMAL + "data.limit: 3\n")


@pytest.mark.parametrize("line", ["data:", "data:\n  # limit: 3", "data: null", "launch:\n  environment:", "views: {}"])
def test_a_section_whose_keys_are_all_left_out_is_there(line):
    assert parse(f"{MINIMAL}{line}\n") == parse(MINIMAL)
    assert parse(f"{MINIMAL}{line}\n", ["data.limit=4"]) == parse(MINIMAL, ["data.limit=4"])


@pytest.mark.parametrize("word", ["None", "none", "null", "~", ""])
def test_null_as_other_languages_write_it(word):
    spec = parse(f"{MINIMAL}watch:\n  wandb: {word}\n  port: {word}\neval: {{asked: {word}}}\n")
    assert spec == parse(MINIMAL)


def test_of_several_words_for_a_key_the_last_one_holds_and_is_told(capsys):
    assert parse(MINIMAL, ["lr=1", "seed=1", "seed=1", "lr=2"]).lr == 2
    assert capsys.readouterr().err == "lr: given more than once on the command line; the last one holds\n"
    assert parse(MINIMAL, ["data={limit: 3}", "data.limit=4"]).data.limit == 4
    assert "data.limit: given more than once" in capsys.readouterr().err


def test_aliases_and_merges_are_read():
    spec = parse(MINIMAL + "views: &v {size: 8, count: 3}\nencoder: &e {features: 4}\n")
    merged = parse(MINIMAL + "data: &d {limit: 4}\nlaunch: {environment: {<<: [{A: x, B: x}, {B: y, C: y}], A: z}}\n")
    assert (spec.views.count, merged.launch.environment) == (3, {"A": "z", "B": "x", "C": "y"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_windows_writes_is_read(tmp_path, encoding, newline):
    path = tmp_path / "a.yaml"
    path.write_bytes((MINIMAL + "run_dir: /läufe/☃\n").replace("\n", newline).encode(encoding))
    assert load(path).run_dir == "/läufe/☃"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["expected a mapping", "got nothing"]),
        (b"# nothing\n", ["got nothing"]),
        (b"name: a\nrun_dir: l\xe4ufe\n", ["line 2: byte 0xe4 is not UTF-8", "save the file as UTF-8"]),
        (MINIMAL.encode("utf-16-le"), ["holds a NUL byte", "UTF-16 without its byte order mark", "UTF-8"]),
        ("näme: a".encode("utf-16-be"), ["holds a NUL byte", "UTF-16 without its byte order mark"]),
        (b"name: a\nseed: \0\n", ["line 2: holds a NUL byte", "a file that is no text"]),
        (b"PAR1\x15\x04\x15\xff", ["line 1: byte 0xff is not UTF-8"]),
        (b"x" * (2**20 + 1), ["more than 1,048,576 bytes"]),
        (b"a: " + b"[" * 100_000, ["line 1: nested too deep"]),
        (b"a: &a [*a]", ["line 1", "aliases"]),
        (b"a: 1\n---\na: 2\n", ["not valid YAML", "single document"]),
        (b"[a, b]: 1\n", ["line 1: a key that is a list"]),
        (b"a: !!int 5\n", ["line 1: holds the tag int"]),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n".encode() for a, b in zip("abcdefg", "bcdefgh", strict=True)
        ), ["aliases make more of it"]),
    ],
    ids=lambda value: str(value[:20]),
)  # fmt: skip
def test_what_is_no_spec_is_refused_within_bounds(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert [word for word in words if word not in message] == []
    assert len(message) < 500


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in {
        tmp_path: "Is a directory",
        tmp_path / "pipe": "is a pipe",
        "/dev/zero": "more than 1,048,576 bytes",
        "gs://bucket/a.yaml": "gs:// cannot be used here",
        "s3://bucket/a.yaml": "s3:// cannot be used here; give a path on disk",
        "": "is empty",
    }.items():
        with pytest.raises(SpecError, match=words):
            load_job(path)
    (tmp_path / "a b.yaml").write_text(MINIMAL)
    assert load(f"file://{tmp_path}/a%20b.yaml").name == "a"


@pytest.mark.parametrize("key", ["data.path", "run_dir", "data.cache_dir", "launch.cluster"])
@pytest.mark.parametrize(
    "path", ["gs://b/c", "s3a://b", "hf://d", "S3://b/c", "s3:/b", "http://h/x", "", "a\nb", "a\udcffb"]
)
def test_a_path_of_another_kind_is_refused_by_its_key(key, path):
    with pytest.raises(SpecError, match=f"{key}: got "):
        parse(MINIMAL, [f"{key}={path!r}" if not path else f"{key}={path}"])


MEANT_OTHERWISE = {  # what of it is named
    "$HOME/runs": "$HOME",
    "${SCRATCH}/runs": "${SCRATCH}",
    "${oc.env:HOME}/runs": "${oc.env:HOME}",
    "$(pwd)/runs": "$(pwd)",
    "`pwd`/runs": "`pwd`",
    "/scratch/$USER/runs": "$USER",
    "/scratch/runs-$USER": "$USER",
    "./runs/${USER}": "${USER}",
    "file:///scratch/$USER": "$USER",
    r"%USERPROFILE%\runs": "%USERPROFILE%",
    "%(root)s/runs": "%(root)s",
    "{{ root }}/runs": "{{ root }}",
    "/data/<your set>/x": "<your set>",
    r"C:\data": "C:\\",
    "D:/data": "D:/",
    r"\\server\share": "\\",
    r"runs\a": "\\",
    "“/data/set”": "“",
    "'/data/set": "'",
    " /data": " ",
    "/data ": " ",
    "\u202a/data": "\u202a",
}


@pytest.mark.parametrize("key", ["data.path", "run_dir", "data.cache_dir", "launch.cluster"])
@pytest.mark.parametrize("path", MEANT_OTHERWISE)
def test_what_should_have_become_a_path_is_refused_by_its_key(key, path):
    with pytest.raises(SpecError, match=re.escape(f"{key}: got {path!r}; {MEANT_OTHERWISE[path]!r} ")):
        parse(MINIMAL, [f"{key}={path}"])


@pytest.mark.parametrize("path", ["s3://b/${RUN}", "s3://b/$USER/x", "s3://b/{{ run }}", "s3://$BUCKET/x", "s3://b/x "])
def test_nor_does_it_become_a_key_of_s3(path):
    with pytest.raises(SpecError, match="run_dir: got "):
        parse(MINIMAL, [f"run_dir={path}"])


def test_another_users_home_is_there_or_refused(monkeypatch):
    with pytest.raises(SpecError, match=r"run_dir: got '~nobody-here/x'; there is no user nobody-here here"):
        parse(MINIMAL, ["run_dir=~nobody-here/x"])
    assert parse(MINIMAL, ["run_dir=~root/x"]).run_dir == "~root/x"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("./$HOME/runs", "$HOME/runs"),
        ("./{{ a }}/b", "{{ a }}/b"),
        ("./~nobody-here", "~nobody-here"),
        ("file:///a/%24USER/l%C3%A4bc%20d", "/a/$USER/läbc d"),
        ("a$b", "a$b"),
        ("/a/b$", "/a/b$"),
        ("/a/100%", "/a/100%"),
        ("/a/~b", "/a/~b"),
    ],
)
def test_who_means_such_a_folder_can_say_so(path, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.on_disk(parse(MINIMAL, [f"run_dir={path}"]).run_dir) == Path(meant)
    whole = paths.absolute(path)  # is understood anywhere
    assert paths.on_disk(parse(MINIMAL, [f"run_dir={whole}"]).run_dir) == tmp_path / meant


def test_digits_with_two_readings_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(MINIMAL)
    (tmp_path / "s.yaml").write_text("name: s\nbase: a.yaml\nspace: {data.path: [digits, /a]}\n")
    load("a.yaml")
    (tmp_path / "omniglot").touch()
    load("a.yaml")
    with pytest.raises(SpecError, match=r"omniglot is both the package's Omniglot and .* write \./omniglot"):
        load("a.yaml", ["data.path=omniglot"])
    (tmp_path / "digits").mkdir()
    for file in ("a.yaml", "s.yaml"):
        with pytest.raises(SpecError, match=r"yaml: data\.path: digits is both scikit-learn's .* write \./digits"):
            load_job(file)
    assert load("a.yaml", ["data.path=./digits"]).data.path == "./digits"
    parse(MINIMAL)  # as a run keeps it


def test_paths_that_stay_on_disk():
    for key in ("data.cache_dir", "launch.cluster"):
        with pytest.raises(SpecError, match=f"{key}: got 's3://b/c'; s3:// cannot be used here; give a path on disk"):
            parse(MINIMAL, [f"{key}=s3://b/c"])
    with pytest.raises(SpecError, match=r"data\.path: got 'S3://b/c'; S3:// cannot be used here"):
        parse(MINIMAL, ["data.path=S3://b/c"])
    with pytest.raises(SpecError, match=r"data\.path: got 's3:///c'; names no bucket"):
        parse(MINIMAL, ["data.path=s3:///c"])
    assert parse(MINIMAL, ["data.path=s3://b/c #1", "run_dir=file:///a%20b"]).run_dir == "file:///a%20b"


@pytest.mark.parametrize(
    ("override", "most"),
    [
        ("views.size=100000", "4096"),
        ("views.count=1000000", "256"),
        ("encoder.features=1000000000", "65536"),
        ("encoder.hidden=1000000000", "65536"),
        ("batch_size=1000000000000", "16777216"),
        ("workers=1000000000", "65536"),
        ("shards=1000000000", "65536"),
        ("data.prefetch=1000000000", "1024"),
        ("threads=1000000000", "65536"),
        ("epochs=1000000000000000000", "1000000"),
        ("optimiser.accumulate=1000000", "65536"),
        ("negatives.cache_proposals=1000000000", "1048576"),
        ("checkpoint.keep=1e30", "2147483648"),
        ("s3.timeout_s=1e300", "10000000"),
        ("lr=1e300", "1000000"),
    ],
)
def test_absurd_sizes_are_told_the_range(override, most):
    key = override.partition("=")[0]
    with pytest.raises(SpecError, match=rf"{key}: got .*less than or equal to {most}\b"):
        parse(MINIMAL, [override])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.loaders=auto", "auto"),
        ("data.loaders=3", 3),
        ("data.on_device=auto", "auto"),
        ("data.on_device=true", True),
    ],
)
def test_what_may_be_chosen_by_itself_or_given(override, value):
    spec = parse(MINIMAL, [override])
    assert value in (spec.data.loaders, spec.data.on_device)
    assert parse(dump(spec)) == spec


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("data.loaders=1000000", r"got 1000000; use auto, or a whole number from 0 to 1024"),
        ("data.loaders=-1", r"got -1; use auto, or a whole number from 0 to 1024"),
        ("data.loaders=true", r"got True; use auto, or a whole number from 0 to 1024"),
        ("data.on_device=1", "got 1; use auto, true or false"),
        ("data.on_device=cuda", "got 'cuda'; use auto, true or false"),
    ],
)
def test_neither_auto_nor_a_value(override, allowed):
    with pytest.raises(SpecError, match=f"{override.partition('=')[0]}: {allowed}"):
        parse(MINIMAL, [override])


def test_what_fits_alone_but_not_together():
    for norm in ("batch", "sync_batch"):
        with pytest.raises(
            SpecError, match=f"encode_chunk: 4 would give encoder.norm: {norm} the statistics of a chunk"
        ):
            parse(MINIMAL, ["encode_chunk=4", f"encoder.norm={norm}"])
    with pytest.raises(SpecError, match=r"batch_size: 16777216 .* gives a worker 96 GiB of pixels a step"):
        parse(MINIMAL, ["batch_size=16777216"])
    parse(MINIMAL, ["batch_size=16777216", "workers=2"])
    with pytest.raises(SpecError, match=r"resources\.worker_gpus: 0\.5 .* NCCL takes no two ranks"):
        parse(MINIMAL, ["workers=2", "resources.worker_gpus=0.5"])
    parse(MINIMAL, ["workers=2", "resources.worker_gpus=0.5", "device=cpu"])
    parse(MINIMAL, ["resources.worker_gpus=0.5"])  # a trial beside another one


def test_credentials_in_a_path_are_not_repeated():
    for key in ("data.path", "run_dir", "s3.endpoint", "launch.target"):
        with pytest.raises(SpecError, match=f"{key}: the https URL holds credentials") as caught:
            parse(MINIMAL, [f"{key}=https://me:hidden@host/x"])
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL + "data:\n  path:digits\n  limit: 64\n", [(6, "path")]),  # YAML blames the line after
        ("name:t\nobjective: emc2\n", [(1, "name")]),
        ("name: t\nlr:1e-3\n", [(2, "lr")]),  # and the end of the file
        ("lr:1e-3", [(1, "lr")]),  # no error of YAML's: a text
        (MINIMAL + "data:\n  path:/data\n", [(6, "path")]),
        (MINIMAL + "objective:\n  name:dclw\n", [(6, "name")]),
        (MINIMAL + "views:\n  crop:[0.2, 1]\n", [(6, "crop")]),
        ("name:t\nlr:3\nepochs: 1\n", [(1, "name"), (2, "lr")]),
        ("name: s\nspace:\n  data.limit:[1, 2]\nbase: {}\n", [(3, "data.limit")]),
        ("name: s\nbase:a.yaml\nspace: {}\n", [(2, "base")]),
        ("name: s\nbase: {}\nset:\n  lr:3\nspace: {}\n", [(4, "lr")]),
        (MINIMAL + "s3:\n  endpoint:https://me:hidden@host\n", [(6, "endpoint")]),
    ],
)
def test_a_missing_space_after_a_colon_is_told_by_its_own_line(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_job(path)
    slips = [f"line {line}: no space after the colon; write {key}: VALUE" for line, key in told]
    assert str(caught.value) == f"{path}: {'; '.join(slips)}"


UNSEEN = ["\u00a0", "\u2007", "\u202f", "\u3000", "\u200b", "\u2060", "\u00ad"]


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize(
    ("written", "line", "where"),
    [
        ("name: x\nlr:?1e-3\n", 2, "after `lr:`"),
        ("name: x\nlr: ?1e-3\n", 2, "after `lr:`"),
        ("name: x\nlr?: 1e-3\n", 2, "after `lr`"),
        ("name: x\nlr: 1e-3? \r\n", 2, "after `1e-3`"),
        ("name: x # what? it is:?\ndata:\n??path: digits\n", 3, "before the first word"),
        ("watch:\n  wandb: a project?\n", 2, "after `project`"),
        ("launch:\n  spread:\n    - ?a\n", 3, "after `-`"),
    ],
)
def test_a_blank_that_is_none_is_told_by_its_line_and_name(unseen, written, line, where):
    with pytest.raises(SpecError) as caught:
        parse(written.replace("?", unseen))
    assert str(caught.value) == (
        f"spec: line {line}: U+{ord(unseen):04X} ({unicodedata.name(unseen)}), which is not seen, stands {where}; "
        "write a plain space, or none"
    )


def test_what_is_not_seen_may_stand_in_a_comment_and_within_a_text():
    spec = parse(MINIMAL + "data: {path: a\u00a0b}  #\u00a0so:\u00a0")
    assert spec.data.path == "a\u00a0b"
    assert parse(dump(spec)) == spec


def test_what_only_yaml_takes_for_the_end_of_a_line_is_refused():
    with pytest.raises(SpecError, match=r"^spec: line 1: holds U\+2028 \(LINE SEPARATOR\), which ends a line"):
        parse("# a comment\u2028lr: 3\n" + MINIMAL)


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        (MINIMAL, ["lr=1e\u22123"], r"lr: got .*; it holds \u2212, U\+2212 \(MINUS SIGN\) where - is meant$"),
        (MINIMAL, ["lr=1\u200be-3"], r"lr: got .*; it holds U\+200B \(ZERO WIDTH SPACE\)$"),
        (MINIMAL, ["name=\u201ctiny\u201d"], r"name: got .*; it holds \u201c, U\+201C \(LEFT DOUBLE QUOTATION MARK\)"),
        (MINIMAL, ["l\u0433=1"], r"unknown key; .*; it holds \u0433, U\+0433 \(CYRILLIC SMALL LETTER GHE\)"),
        (
            MINIMAL,
            ["watch.wandb=it\u00a0"],
            r"watch\.wandb: got .*; .* is U\+00A0 \(NO-BREAK SPACE\), which .* at an end; leave it out",
        ),
        ("lr\uff1a 1\nepochs: 1\n", [], r"not valid YAML .*; line \d+ holds \uff1a, U\+FF1A .* where : is meant$"),
    ],
)
def test_what_looks_like_another_character_is_told_by_its_name(text, overrides, told):
    with pytest.raises(SpecError, match=told):
        parse(text, overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        (
            MINIMAL + "data: {limit: 3, path:digits}\n",
            [],
            "spec: data.path: no space after the colon; write path: VALUE",
        ),
        (MINIMAL, ["data={path:digits}"], "spec: data.path: no space after the colon; write path: VALUE"),
        (
            MINIMAL,
            ["s3={endpoint:https://me:hidden@host}"],
            "spec: s3.endpoint: no space after the colon; write endpoint",
        ),
    ],
)
def test_a_missing_space_within_braces_is_told_by_its_key(text, overrides, told):
    with pytest.raises(SpecError, match=f"^{re.escape(told)}") as caught:
        parse(text, overrides)
    assert "hidden" not in str(caught.value)


def test_a_colon_within_a_value_is_part_of_it():
    text = MINIMAL + "data:\n  path:\n    s3://bucket/set\nlaunch:\n  environment:\n    A: |\n      name:x\n"
    spec = parse(text)
    assert (spec.data.path, spec.launch.environment["A"]) == ("s3://bucket/set", "name:x\n")
    with pytest.raises(SpecError, match=r"^spec: lr: got -1"):
        parse(text.replace("A: |\n      name:x\n", "A: b\n"), ["lr=-1"])


@pytest.mark.parametrize("written", ["tiny", "tiny.yml", "tniy.yaml", "folder"])
def test_a_file_that_is_not_there_is_told_the_nearest(tmp_path, written):
    for name in ("tiny.yaml", "folder.yml", "unlike.yaml"):
        (tmp_path / name).write_text(MINIMAL)
    (tmp_path / "folder").mkdir()
    nearest = "folder.yml" if written == "folder" else "tiny.yaml"
    with pytest.raises(SpecError) as caught:
        load(tmp_path / written)
    assert str(caught.value).endswith(f"; give the path of a YAML spec; the nearest is {tmp_path / nearest}")


def test_a_file_that_is_like_no_other_is_told_no_other(tmp_path):
    (tmp_path / "link.yaml").symlink_to("gone")
    with pytest.raises(SpecError, match=r"link\.yaml: cannot be read \(.*\); give the path of a YAML spec$"):
        load(tmp_path / "link.yaml")


def test_a_tab_is_told_to_be_spaces():
    with pytest.raises(SpecError, match=r"not valid YAML \(.*line 2.*; indent with spaces"):
        parse("data:\n\tlimit: 3\n")
    with pytest.raises(SpecError, match="not valid YAML") as other:
        parse("data: [1")
    assert "spaces" not in str(other.value)


def test_what_a_command_says_of_s3_goes_before_what_a_spec_says():
    spec = parse(MINIMAL, ["s3.endpoint=http://of.spec", "s3.attempts=2", "s3.region=of-spec"]).s3
    said = parse_s3(["s3.endpoint=http://of.command", "s3.attempts=6"])  # 6 is the default, and was said
    found = spec.overridden(said)
    assert (found.endpoint, found.attempts, found.region) == ("http://of.command", 6, "of-spec")
    assert spec.overridden(None) == spec.overridden(parse_s3([])) == spec


@pytest.mark.parametrize(
    ("value", "named"), [("cuda:1", "1"), ("0", "0"), ("0,1", "0,1"), ("gpu:2", "2"), ("gpu", None), ("mps", None)]
)
def test_a_gpu_by_its_number_is_told_which_variable_chooses(value, named):
    with pytest.raises(SpecError) as refused:
        parse(MINIMAL, [f"device={value}"])
    told = f"; which of several GPUs is for the environment to say: CUDA_VISIBLE_DEVICES={named}"
    end = told if named else ""
    assert str(refused.value) == f"spec: device: got {value!r}; input should be 'auto', 'cpu' or 'cuda'{end}"


def test_of_a_file_that_no_template_filled_in_the_line_is_told():
    with pytest.raises(SpecError, match=r"spec: line 4: '\{\{ lr \}\}' is a template's, which nothing here fills in"):
        parse("name: a\nepochs: 3\nbatch_size: 16\nlr: {{ lr }}  # of the sweep\n")
