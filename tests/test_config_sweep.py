"""Sweep specs: whatever a trial could become is checked before anything starts."""

import re

import pytest

from emc2dist.config import Range, Sweep, dump, load, load_job, load_sweep, parse_sweep
from emc2dist.config.points import remarks
from emc2dist.errors import SpecError

BASE = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\n"
SWEEP = """
name: s
base: jobs/base.yaml
set: {epochs: 5, data: {limit: 64}, optimiser: {accumulate: 4}}
space:
  temperature: loguniform(0.05, 0.5)
  lr: [1e-3, 1e-2]
  optimiser: {weight_decay: 'uniform(0, 1e-2)'}
  views.crop: [[0.2, 1.0], [0.6, 1.0]]
"""


@pytest.fixture
def sweep_file(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "base.yaml").write_text(BASE)
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_the_base_lies_beside_the_sweep_and_set_changes_it(sweep_file):
    sweep = load_sweep(
        sweep_file, ["set.data.limit=32", "budget.trials=4", "space.negatives.cache_proposals=randint(0, 8)"]
    )
    assert (sweep.base.epochs, sweep.base.data.limit, sweep.base.lr, sweep.budget.trials) == (5, 32, 1e-4, 4)
    assert sweep.distributions() == {
        "temperature": Range("loguniform", 0.05, 0.5),
        "lr": (1e-3, 1e-2),
        "optimiser.weight_decay": Range("uniform", 0, 1e-2),
        "views.crop": ((0.2, 1.0), (0.6, 1.0)),
        "negatives.cache_proposals": Range("randint", 0, 8),
    }
    assert parse_sweep(dump(sweep)) == sweep  # with the base inside


def test_bounds_are_numbers_as_elsewhere_and_points_that_are_equal_are_counted(sweep_file, capsys):
    sweep_file.write_text("name: s\nbase: jobs/base.yaml\nset:\nspace: {lr: [1, 2]}\n")
    sweep = load_sweep(sweep_file, ["budget.trials=8"])
    assert sweep.distributions() == {"lr": (1, 2)}
    assert "sweep.yaml: 2 of 8 points differ; search.name=grid" in capsys.readouterr().err
    sweep = load_sweep(sweep_file, ["space.epochs=randint(8, 1e2)"])
    assert sweep.distributions()["epochs"] == Range("randint", 8, 100)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("trials", "told"),
    [
        (3, ["budget.trials: 1 of 3 are left over, for every point takes 2, one a seed", "1 of the grid's 4 points"]),
        (4, ["budget.trials: 4 are for 2 of the grid's 4 points, the first; 8 trials would be all of them"]),
        (8, []),
    ],
)
def test_a_grid_that_the_budget_cuts_is_said_with_its_numbers(sweep_file, capsys, trials, told):
    sweep_file.write_text(
        "name: s\nbase: jobs/base.yaml\nset:\nspace: {lr: [1, 2], temperature: [0.1, 0.2]}\nseeds: 2\n"
    )
    sweep = load_sweep(sweep_file, ["search.name=grid", f"budget.trials={trials}"])
    found = remarks(sweep)
    assert capsys.readouterr().err.splitlines() == [f"{sweep_file}: {remark}" for remark in found]
    assert len(found) == len(told)
    for remark, words in zip(found, told, strict=True):
        assert words in remark


def test_a_run_and_a_sweep_are_told_apart(sweep_file):
    base = sweep_file.parent / "jobs" / "base.yaml"
    assert load_job(base) == load(base)
    assert load_job(sweep_file, ["seeds=2"]) == load_sweep(sweep_file, ["seeds=2"])
    with pytest.raises(SpecError, match=r"sweep\.yaml: is a sweep; run it with `emc2dist sweep`"):
        load(sweep_file)
    with pytest.raises(SpecError, match=r"base\.yaml: is a run; a sweep has a `base`"):
        load_sweep(base)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("space.tempreature=[1]", ["space.tempreature", "unknown key", "temperature"]),
        ("space.data.limt=[1]", ["data.limt", "data.limit"]),
        ("space.lr=uniform(0, 1)", ["space: uniform(0, 1): lr: got 0.0", "greater than 0"]),
        ("space.negatives.burn_in_fraction=uniform(0, 1)", ["burn_in_fraction: got 1.0", "less than 1"]),
        (
            "space.batch_size=uniform(8, 16)",
            ["space.batch_size: got 'uniform(8, 16)'", "write randint(8, 16), or a list"],
        ),
        (
            "space.data.limit=loguniform(8, 1e3)",
            ["data.limit: got 'loguniform(8, 1e3)'", "write randint(8, 1e3), or a"],
        ),
        ("space.views.crop=uniform(0, 1)", ["space: uniform(0, 1): views.crop: got 0.0; write a list"]),
        ("space={lr:uniform(1, 2)}", ["space.lr: no space after the colon; write lr: VALUE"]),
        ("space.negatives.kernel=[mh, gibbs]", ["kernel", "gibbs", "'mh' or 'isir'"]),
        ("space.lr=0.1", ["space.lr: got 0.1", "list of choices"]),
        ("space={lr: uniform(1, 2)}", ["space.2)", "quotes"]),
        ("space.lr=[]", ["space.lr", "empty"]),
        ("space.lr={min: 1e-4, max: 1e-1}", ["space.lr: got keys and their values; write a list", "loguniform(a, b)"]),
        ("space.optimiser.weight_decay={low: 1}", ["space.optimiser.weight_decay: got keys and their values; write"]),
        ("space.lr=[loguniform(1e-4, 1e-1)]", ["space.lr: got loguniform(1e-4, 1e-1) in brackets", "leave them out"]),
        ("space.epochs=['randint(1, 9)']", ["space.epochs: got randint(1, 9) in brackets", "leave them out"]),
        ("space.lr=uniform(2, 1)", ["space.lr", "uniform(2, 1)", "smaller one first"]),
        ("space.lr=uniform(1, inf)", ["space.lr", "finite"]),
        ("space.lr=loguniform(0, 1)", ["space.lr", "above 0"]),
        ("space.lr=randint(1, 2.5)", ["space.lr", "randint(1, 2.5)", "2.5 is no whole number"]),
        ("space.lr=uniform(1, lots)", ["space.lr", "lots is no number", "uniform(a, b)"]),
        ("space.lr=[1e-3, 2, 0.001]", ["space.lr: holds 0.001 twice"]),
        ("space.temperature=[1, 1.0]", ["space.temperature: holds 1.0 twice"]),
        ("space.batch_size=randint(16, 64)", ["point ", "batch_size", "multiple of 4"]),
        ("space.views.crop=[[0.2, 1], [0.2, 1.0]]", ["space.views.crop: holds (0.2, 1.0) twice"]),
        ("space.lr=__import__('os')", ["space.lr", "list of choices"]),
        ("space.seed=[1, 2]", ["space.seed", "its own", "seeds"]),
        ("space.workers=[1, 2]", ["space.workers", "in `set`"]),
        ("space.resources.worker_cpus=[1, 2]", ["space.resources.worker_cpus"]),
        ("search.name=grid", ["space.temperature", "a grid has no ranges"]),
        ("search.name=hyperopt", ["search.name", "'optuna'"]),
        ("scheduler.name=pbt", ["pbt", "checkpoint", "asha, median or fifo"]),
        ("set.tempreature=1", ["set.tempreature: unknown key; the nearest valid key is temperature"]),
        ("set.lr.peak=1", ["set.lr.peak: unknown key"]),
        ("set={lr:3}", ["set.lr: no space after the colon; write lr: VALUE"]),
        ("set.negatives={name: in_batch, kernel: mh}", ["base.negatives: in_batch takes no kernel"]),
        ("lr=3", ["lr: unknown key; the nearest valid key is set.lr"]),
        ("data.limt=3", ["data.limt: unknown key; the nearest valid key is set.data.limit"]),
        ("base.eval.every=1", ["base.eval.every: base is a value, not a section; write set.eval.every, which changes"]),
        ("set.lr=-1", ["base.lr", "-1"]),
        ("set.eval.every=0", ["scheduler.name: asha", "give set.eval.every a value of 1 or more"]),
        ("sed=3", ["sed: unknown key", "seeds"]),
        ("mode=min", ["mode: unknown key; the nearest valid key is goal"]),
        ("parameters={}", ["parameters: unknown key; the nearest valid key is space"]),
        ("metric=accuracy", ["metric: 'accuracy' is none of a run's; the nearest is knn_accuracy"]),
        ("metric=knn", ["metric: 'knn' is none of a run's; the nearest is knn_accuracy"]),
        ("metric=knn_pixels", ["metric: 'knn_pixels' is the same in all trials"]),
        ("metric=passed_over", ["metric: 'passed_over' is none of a run's"]),
        ("space.tempreature=unifrm(1", ["space.tempreature: unknown key; the nearest valid key is temperature"]),
        ("budget.trials=0", ["budget.trials", "0"]),
        (
            "base=nowhere.yaml",
            ["nowhere.yaml: cannot be read", "give the path of a YAML spec as base, from the folder of "],
        ),
        ("base=jobs/bsae.yaml", ["bsae.yaml: cannot be read", "the nearest is ", "jobs/base.yaml"]),
        ("space.data.path=[/a #1]", ["space.data.path: not valid YAML"]),
        ("set=3", ["set", "'3'"]),
    ],
)
def test_what_is_wrong_is_one_message_that_names_it(sweep_file, override, words):
    with pytest.raises(SpecError) as caught:
        load_sweep(sweep_file, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lr: 3", "lr: unknown key; the nearest valid key is set.lr"),
        ("set.lr: 3", "set.lr: with a dot this is for the command line; in a file it stands in its section"),
        ("space.lr: [1]", "space.lr: with a dot this is for the command line; in a file it stands in its section"),
        (
            "base.lr: 3",
            "base.lr: with a dot this is for the command line; in a file it stands in its section, or in set",
        ),
    ],
)
def test_a_key_of_the_base_that_stands_alone_is_told_where_it_goes(sweep_file, line, told):
    sweep_file.write_text(f"{SWEEP}{line}\n")
    with pytest.raises(SpecError) as caught:
        load_job(sweep_file)
    assert str(caught.value) == f"{sweep_file}: {told}"


@pytest.mark.parametrize("override", ["lr=3", "base.lr=3", "data.limt=8", "base.eval.every=2", "set.eval.every=0"])
def test_a_key_that_a_message_names_can_be_set(sweep_file, override):
    with pytest.raises(SpecError) as caught:
        load_sweep(sweep_file, [override])
    named = re.search(r"set(\.\w+)+", str(caught.value))
    assert load_sweep(sweep_file, [f"{named[0]}=2"]) != load_sweep(sweep_file)


def test_what_is_wrong_in_the_bases_own_file_is_told_of_that(sweep_file):
    base = sweep_file.parent / "jobs" / "base.yaml"
    base.write_text(BASE + "tempreature: 1\n")
    with pytest.raises(SpecError, match=r"base\.tempreature: unknown key; the nearest valid key is base\.temperature"):
        load_job(sweep_file)
    base.write_text(BASE + "objective:\n  name:dclw\n")
    with pytest.raises(SpecError) as caught:
        load_job(sweep_file)
    assert str(caught.value) == f"{base}: line 6: no space after the colon; write name: VALUE"


def test_fewer_trials_than_seeds_are_refused(sweep_file):
    with pytest.raises(SpecError, match=r"budget\.trials: 2 is less than the 3 seeds"):
        load_sweep(sweep_file, ["seeds=3", "budget.trials=2"])


def test_values_of_a_space_are_what_their_keys_take(sweep_file):
    space = ["space.data.path=['/a #1', 007]", "space.encoder.norm=[none, group]", "space.temperature=[1e-1, 010]"]
    sweep = load_sweep(sweep_file, [*space, "set.name=no", "set.run_dir=/b #1"])
    found = sweep.distributions()
    assert found["data.path"] == ("/a #1", "007")
    assert found["encoder.norm"] == ("none", "group")
    assert found["temperature"] == (0.1, 10)
    assert (sweep.base.name, sweep.base.run_dir) == ("no", "/b #1")
    assert parse_sweep(dump(sweep)) == sweep


def test_what_a_sweep_says_twice_is_refused(sweep_file):
    sweep_file.write_text(SWEEP + "  optimiser.weight_decay: [1]\n")
    with pytest.raises(SpecError, match=r"space\.optimiser\.weight_decay: given twice, by itself and in its section"):
        load_sweep(sweep_file)
    sweep_file.write_text(SWEEP.replace("set: {", "set: {data.limit: 3, "))
    with pytest.raises(SpecError, match=r"set\.data\.limit: given twice"):
        load_sweep(sweep_file)


def test_a_key_that_is_set_does_not_vary(sweep_file, capsys):
    sweep = load_sweep(sweep_file, ["set.lr=0.1", "space.epochs=[1, 2]"])
    assert (sweep.base.lr, sweep.base.epochs) == (0.1, 3)
    assert ("lr" in sweep.space, sweep.space["epochs"]) == (False, (1, 2))
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "set.lr: takes the place of the file's space.lr", "space.epochs: takes the place of the file's set.epochs"
    ]  # fmt: skip
    sweep_file.write_text(SWEEP.replace("set: {", "set: {lr: 0.1, "))
    with pytest.raises(SpecError, match=r"lr: in set it is '0\.1', in space it varies; leave it out of one"):
        load_sweep(sweep_file)


@pytest.mark.parametrize(("space", "overrides"), [("{lr: [1e-3, 5.0]}", ["set.lr=1e-3"]), ("{}", []), ("", [])])
def test_a_space_in_which_nothing_is_left_is_told_as_that(space, overrides, sweep_file):
    sweep_file.write_text(f"name: s\nbase: jobs/base.yaml\nspace: {space}\n")
    with pytest.raises(SpecError, match=r"sweep\.yaml: space: holds no key, so nothing varies; give it one"):
        load_sweep(sweep_file, overrides)


def test_labels_of_the_base_keep_their_dots(sweep_file):
    sweep = load_sweep(sweep_file, ["set.resources.worker_labels.ray.io/market-type=spot"])
    assert sweep.base.resources.worker_labels == {"ray.io/market-type": "spot"}


@pytest.mark.parametrize("base", ["gs://bucket/base.yaml", "s3://bucket/base.yaml"])
def test_a_base_lies_on_disk(sweep_file, base):
    with pytest.raises(SpecError, match=r"sweep\.yaml: base: got '\w+://bucket/base.yaml'; \w+:// cannot be used"):
        load_sweep(sweep_file, [f"base={base}"])


def test_the_lower_loss_is_the_better_one_unless_it_is_said_otherwise(sweep_file):
    goals = {metric: load_sweep(sweep_file, [f"metric={metric}"]).goal for metric in ("loss", "knn_accuracy")}
    assert goals == {"loss": "min", "knn_accuracy": "max"}
    assert load_sweep(sweep_file, ["metric=loss", "goal=max"]).goal == "max"


def test_the_keys_of_a_sweep_of_wandb_are_told_as_ours(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "program: train.py\nmethod: bayes\nmetric: {name: loss, goal: minimize}\nparameters: {lr: {values: [1, 2]}}\n"
    )
    with pytest.raises(SpecError) as caught:
        load_job(tmp_path / "sweep.yaml")
    assert "metric: got {'name': 'loss', 'goal': 'minimize'}; write its name alone" in str(caught.value)
    assert "method: unknown key; the nearest valid key is search.name" in str(caught.value)
    assert "parameters: unknown key; the nearest valid key is space" in str(caught.value)


def test_a_sweep_over_pairs_is_judged_by_how_well_queries_find_their_documents():
    of_pairs = "data: {kind: pairs, path: x}, objective: infonce, encoder: {backbone: bag}"
    base = "name: s, epochs: 1, batch_size: 4, lr: 0.1"
    given = f"name: s\nbase: {{{base}, {of_pairs}}}\nspace: {{lr: 'uniform(0.1, 0.2)'}}\n"
    swept = parse_sweep(given)
    assert (swept.metric, swept.goal) == ("ndcg_at_10", "max")
    assert parse_sweep(given + "metric: loss\n").goal == "min"
    assert Sweep(**swept.model_dump()).metric == "ndcg_at_10"
    assert parse_sweep(given.replace(f", {of_pairs}", "")).metric == "knn_accuracy"
