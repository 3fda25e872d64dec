"""Specs: strict, exact about what is wrong, and the same after a round trip."""

import subprocess
import sys
from pathlib import Path

import pytest

from emc2dist.config import OPERATIONAL, Spec, differences, dump, load, load_job, parse
from emc2dist.errors import SpecError

MINIMAL = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\n"
JOBS = sorted((Path(__file__).parent.parent / "jobs").glob("*.yaml"))


def test_scientific_notation_is_a_number_in_files_and_overrides():
    spec = parse(MINIMAL, ["temperature=7e-2", "optimiser.weight_decay=1E-6", "data.limit=512"])
    assert (spec.lr, spec.temperature, spec.optimiser.weight_decay, spec.data.limit) == (1e-4, 0.07, 1e-6, 512)


def test_precedence_default_file_override():
    assert parse(MINIMAL).seed == 0
    assert parse(MINIMAL + "seed: 1\n").seed == 1
    assert parse(MINIMAL + "seed: 1\n", ["seed=2", "seed=3"]).seed == 3


def test_a_dump_reads_back_to_an_equal_spec():
    spec = parse(MINIMAL, ["views.crop=[0.1,0.9]", "data.limit=5", "optimiser.clip_norm=1.5"])
    assert parse(dump(spec)) == spec


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tempreature=1", ["tempreature", "unknown", "temperature"]),
        ("data.limt=3", ["data.limt", "data.limit"]),
        ("burn_in=0.5", ["burn_in", "burn_in_fraction"]),
        ("temperature=0", ["temperature", "0", "greater than 0"]),
        ("temperature=-0.1", ["temperature", "-0.1", "greater than 0"]),
        ("temperature=.nan", ["temperature", "nan"]),
        ("temperature=.inf", ["temperature", "finite"]),
        ("temperature_end=0", ["temperature_end", "0", "greater than 0"]),
        ("temperature_period=2", ["temperature_period", "2", "needs temperature_end"]),
        ("burn_in_fraction=1.0", ["burn_in_fraction", "1.0", "less than 1"]),
        ("burn_in_fraction=-0.1", ["burn_in_fraction", "greater than or equal to 0"]),
        ("batch_size=1", ["batch_size", "1", "2"]),
        ("workers=0", ["workers", "0", "1"]),
        ("workers=3", ["batch_size", "16", "multiple of 3"]),
        ("workers=32", ["batch_size", "16", "multiple of 32"]),
        ("optimiser.accumulate=16", ["batch_size", "no negatives", "32"]),
        ("epochs=true", ["epochs", "True", "integer"]),
        ("epochs=1.5", ["epochs", "1.5", "integer"]),
        ("kernel=gibbs", ["kernel", "gibbs", "'mh' or 'isir'"]),
        ("objective=byol", ["objective", "byol", "'emc2'", "'sogclr'"]),
        ("cache_proposals=-8", ["cache_proposals", "-8"]),
        ("name=2024", ["name", "2024", "string"]),
        ("name=../up", ["name", "../up"]),
        ("views.crop=[0.5,0.2]", ["views.crop", "ascending"]),
        ("data=3", ["data", "3"]),
        ("lr=", ["lr", "None"]),
        ("lr", ["'lr'", "key=value"]),
        ("lr.x=1", ["lr is a value"]),
        ("lr=[1", ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_one_message_that_names_it(override, words):
    with pytest.raises(SpecError) as caught:
        parse(MINIMAL, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_cache_proposals_belong_to_chains():
    with pytest.raises(SpecError, match="cache_proposals: 8 needs objective: emc2, got dcl"):
        parse(MINIMAL, ["cache_proposals=8", "objective=dcl"])


def test_missing_key_file_and_mapping(tmp_path):
    with pytest.raises(SpecError, match="lr: missing"):
        parse("name: a\nepochs: 3\nbatch_size: 16\n")
    with pytest.raises(SpecError, match=r"nowhere.yaml: cannot be read"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="expected a mapping"):
        parse("- a\n- b\n")


def test_tags_in_a_spec_run_nothing():
    with pytest.raises(SpecError, match="not valid YAML"):
        parse("name: !!python/object/apply:os.system ['true']\n")


def test_differences_name_what_changes_the_result_only():
    old = parse(MINIMAL)
    moved = parse(MINIMAL, ["workers=2", "shards=3", "eval.every=5", "data.path=/else", "run_dir=r", "log_every=7"])
    assert differences(old, moved) == []
    changed = parse(MINIMAL, ["temperature=0.1", "data.limit=9", "encoder.features=64"])
    assert differences(old, changed) == [
        "temperature: 0.2 -> 0.1",
        "data.limit: None -> 9",
        "encoder.features: 128 -> 64",
    ]


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
