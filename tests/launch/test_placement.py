"""What a manifest declares, and which runs it can never hold: by the files of cluster/, and by Ray's own count."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emc2dist import cli
from emc2dist.config import parse
from emc2dist.errors import SpecError
from emc2dist.launch import manifest, placement
from emc2dist.launch.manifest import UNKNOWN, Group

ROOT = Path(__file__).parents[2]
KUBERAY, AWS = (str(ROOT / "cluster" / name) for name in ("kuberay/raycluster.yaml", "aws.yaml"))
RUN = "name: a\nepochs: 1\nbatch_size: 64\nlr: 0.1\nshards: 4\ndevice: cuda\nworkers: 8\n"
SPOT, ON_DEMAND = "{ray.io/market-type: spot}", "{ray.io/market-type: on-demand}"


def check(*overrides, cluster=KUBERAY):
    return placement.check(parse(RUN, [f"launch.cluster={cluster}", *overrides]))


def refusal(*overrides, cluster=KUBERAY):
    with pytest.raises(SpecError) as caught:
        check(*overrides, cluster=cluster)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def declared(path):
    return {group.name: group for group in manifest.groups(manifest.read(path), path)}


def test_what_the_kuberay_manifest_declares():
    groups = declared(KUBERAY)
    assert {name: (group.nodes, group.has) for name, group in groups.items()} == {
        "head": (1, {"CPU": 0, "GPU": 0, "MiB": 0}),
        "cpu": (2, {"CPU": 4, "GPU": 0, "MiB": 16384}),
        "gpu-spot": (8, {"CPU": 0, "GPU": 1, "MiB": 0}),
    }
    assert groups["gpu-spot"].labels == {"ray.io/node-group": "gpu-spot", "ray.io/market-type": "spot"}


def test_what_the_manifest_for_aws_declares():
    groups = declared(AWS)
    assert {name: (group.nodes, group.has) for name, group in groups.items()} == {
        "head": (1, {"CPU": 0, "GPU": UNKNOWN, "MiB": 0}),
        "cpu": (2, {"CPU": UNKNOWN, "GPU": UNKNOWN, "MiB": UNKNOWN}),
        "gpu_spot": (8, {"CPU": 0, "GPU": 1, "MiB": 0}),
    }


def test_ray_gives_away_all_the_memory_that_kuberay_passes_on():
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    declared = ResourceAndLabelSpec(num_cpus=4, num_gpus=0, memory=16 * 2**30, resources={})
    assert declared.resolve(is_head=False, node_ip_address="127.0.0.1").to_resource_dict()["memory"] == 16 * 2**30


@pytest.mark.parametrize(
    ("change", "has"),
    [
        ({}, (4, 0, 16384)),
        ({"resources": {"limits": {"cpu": "3500m", "memory": "1G", "nvidia.com/gpu": 2}}}, (4, 2, 10**9 / 2**20)),
        ({"resources": {"requests": {"cpu": 2, "memory": "1Gi"}}}, (2, 0, UNKNOWN)),
        ({"resources": {"limits": {"memory": "1e9", "nvidia.com/mig-1g.5gb": "3"}}}, (UNKNOWN, 3, 10**9 / 2**20)),
        ({"rayStartParams": {"num-cpus": "7", "num-gpus": "5", "memory": "1048576"}}, (7, 5, 1)),
        ({"rayStartParams": {"num-cpus": "7"}, "own": {"CPU": "9", "memory": "2Mi", "GPU": "1"}}, (9, 1, 2)),
    ],
)
def test_a_node_by_kuberays_rules(change, has):
    tree = copy.deepcopy(manifest.read(KUBERAY))
    group = tree["spec"]["workerGroupSpecs"][0]
    group["rayStartParams"] = change.get("rayStartParams", {})
    group["resources"] = change.get("own", {})
    if "resources" in change:
        group["template"]["spec"]["containers"][0]["resources"] = change["resources"]
    assert tuple(manifest.groups(tree, "m")[1].has.values()) == has


@pytest.mark.parametrize(
    ("change", "nodes"),
    [
        ({"replicas": 1, "maxReplicas": 5}, 5),
        ({"replicas": 3}, 3),
        ({}, 0),
        ({"maxReplicas": 2, "numOfHosts": 4}, 8),
        ({"autoscaled": True}, UNKNOWN),
    ],
)
def test_as_many_nodes_as_there_can_be(change, nodes):
    tree = copy.deepcopy(manifest.read(KUBERAY))
    tree["spec"]["enableInTreeAutoscaling"] = change.pop("autoscaled", False)
    group = tree["spec"]["workerGroupSpecs"][0]
    for key in ("replicas", "minReplicas", "maxReplicas"):
        group.pop(key)
    group |= change
    assert manifest.groups(tree, "m")[1].nodes == nodes


def test_lines_say_what_goes_where():
    labels = (f"resources.worker_labels={SPOT}", f"resources.shard_labels={ON_DEMAND}")
    assert check(*labels, "resources.driver_cpus=1", "resources.shard_mib=8192") == [
        "driver: 1 of 1 CPU, on cpu (1 node)",
        "worker: 8 of 1 GPU, on gpu-spot (8 nodes)",
        "shard: 4 of 8192 MiB, on cpu (2 nodes)",
    ]
    assert check(*labels) == [
        "driver: 1, asking for nothing, on the head",
        "worker: 8 of 1 GPU, on gpu-spot (8 nodes)",
        "shard: 4, asking for nothing, on any of head, cpu",
    ]
    assert check("device=auto", "workers=4")[1] == "worker: 4 of 1 GPU, on gpu-spot (4 nodes)"
    assert check("workers=1", "resources.worker_gpus=0.5")[1] == "worker: 1 of 0.5 GPU, on gpu-spot (1 node)"
    assert check("device=cpu")[1] == "worker: 8 of 1 CPU, on cpu (2 nodes)"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["workers=16"], ["workers: 16 of 1 GPU do not fit", "room for 8", "gpu-spot 8 x 1"]),
        (["workers=16", "device=cpu"], ["workers: 16 of 1 CPU do not fit", "room for 8", "cpu 2 x 4"]),
        (["workers=16", "device=auto"], ["16 of 1 CPU (device: auto finds 8 GPUs) do not fit"]),
        (
            ["device=cpu", "resources.driver_cpus=1"],
            ["workers: 8 of 1 CPU do not fit", "room for 7 beside the driver", "cpu 2 x 4"],
        ),
        (
            ["resources.worker_cpus=2"],
            [
                "resources.worker_gpus: a worker takes 1 GPU and 2 CPU",
                "gpu-spot 1 GPU and 0 CPU",
                "cpu 0 GPU and 4 CPU",
            ],
        ),
        (["device=cpu", "resources.worker_cpus=5"], ["resources.worker_cpus: a worker takes 5 CPU", "cpu 4 CPU"]),
        ([f"resources.worker_labels={ON_DEMAND}"], ["resources.worker_gpus: a worker takes 1 GPU", "cpu 0 GPU"]),
        (["resources.driver_cpus=5"], ["resources.driver_cpus: a driver takes 5 CPU", "cpu 4 CPU", "head 0 CPU"]),
        (["resources.shard_mib=16385"], ["resources.shard_mib: a shard takes 16385 MiB", "cpu 16384 MiB"]),
        (["resources.shard_mib=8193"], ["shards: 4 of 8193 MiB do not fit", "room for 2", "cpu 2 x 1"]),
        ([f"resources.shard_labels={SPOT}", "resources.shard_mib=1"], ["resources.shard_mib", "gpu-spot 0 MiB"]),
        (
            ["resources.worker_labels={ray.io/market-type: spott}"],
            ["resources.worker_labels: no group", "carries ray.io/market-type: spott", "is ray.io/market-type: spot"],
        ),
        (["resources.shard_labels={rack: r1}"], ["resources.shard_labels: no group", "carries rack: r1"]),
        (
            ["resources.worker_labels={ray.io/market-type: spot, ray.io/node-group: cpu}"],
            ["resources.worker_labels: no group", "all of ray.io/market-type: spot, ray.io/node-group: cpu"],
        ),
    ],
)
def test_what_could_never_run_is_refused_with_the_numbers(overrides, words):
    message = refusal(*overrides)
    assert KUBERAY in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["workers=1", "resources.worker_gpus=0.5"],
        ["device=cpu", "workers=4", "batch_size=4", "resources.worker_cpus=2"],
        ["device=cpu", "workers=4", "resources.driver_cpus=4"],
        ["resources.driver_cpus=4", "resources.shard_mib=8192"],
        ["shards=2", "resources.shard_mib=16384"],
        ["resources.worker_labels={ray.io/market-type: '!on-demand'}"],
        ["resources.worker_labels={ray.io/market-type: 'in(spot, reserved)', ray.io/availability-zone: a}"],
        ["resources.accelerator=A10G"],
    ],
)
def test_what_just_fits_is_not_refused(overrides):
    assert len(check(*overrides)) == 3


def test_an_accelerator_is_refused_only_where_the_manifest_contradicts_it(tmp_path):
    tree = copy.deepcopy(manifest.read(KUBERAY))
    tree["spec"]["workerGroupSpecs"][1]["labels"]["ray.io/accelerator-type"] = "L4"
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert check("resources.accelerator=L4", cluster=path)
    assert f"resources.accelerator: H100, but the groups of {path}" in refusal(
        "resources.accelerator=H100", cluster=path
    )
    tree = copy.deepcopy(manifest.read(AWS))
    for kind in tree["available_node_types"].values():
        kind["resources"] = {"GPU": 1, "accelerator_type:A10G": 1}
    path.write_text(yaml.safe_dump(tree))
    assert check("resources.accelerator=A10G", cluster=path)
    assert "workers have A10G" in refusal("resources.accelerator=H100", cluster=path)


def test_what_the_launcher_looks_up_refuses_nothing():
    assert check("shards=64", "resources.shard_mib=100000", "resources.driver_cpus=99", cluster=AWS) == [
        "driver: 1 of 99 CPU, on cpu (size unknown)",
        "worker: 8 of 1 GPU, on head (size unknown)",
        "shard: 64 of 100000 MiB, on cpu (size unknown)",
    ]
    message = refusal("workers=16", f"resources.worker_labels={SPOT}", cluster=AWS)
    assert "workers: 16 of 1 GPU do not fit" in message


def test_nodes_that_a_run_needs_of_each_group():
    groups = [
        Group("a", 4, {"CPU": 4.0, "GPU": 2.0, "MiB": 1000.0}, {}),
        Group("b", 4, {"CPU": 8.0, "GPU": 4.0, "MiB": 3000.0}, {}),
    ]
    spec = parse(RUN, ["workers=16", "resources.driver_cpus=1", "shards=7", "resources.shard_mib=900"])
    assert placement.place(spec, groups, "m").nodes == {"a": 4, "b": 2}
    whole = parse(RUN, ["workers=5", "batch_size=65"])
    assert placement.place(whole, groups, "m").nodes == {"a": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1", ["not valid YAML"]),
        ("!!python/object/apply:os.system ['true']", ["not valid YAML"]),
        ("kind: RayCluster\n---\nkind: Secret", ["not valid YAML", "single document"]),
        ("kind: RayJob", ["neither a RayCluster of KubeRay", "available_node_types"]),
        ("- 1", ["neither a RayCluster"]),
        ("kind: RayCluster", ["spec: missing"]),
        ("kind: RayCluster\nspec: {}", ["spec.headGroupSpec: missing"]),
        ("kind: RayCluster\nspec: {headGroupSpec: 3}", ["spec.headGroupSpec: expected a mapping, got 3"]),
        ("kind: RayCluster\nspec: {headGroupSpec: {}}", ["spec.headGroupSpec.template: missing"]),
        (
            "kind: RayCluster\nspec: {headGroupSpec: {template: {spec: {containers: []}}}}",
            ["spec.headGroupSpec.template.spec.containers: empty"],
        ),
        (
            "kind: RayCluster\nspec: {headGroupSpec: {template: {spec: {containers: [ray]}}}}",
            ["spec.headGroupSpec.template.spec.containers[0]: expected a mapping, got 'ray'"],
        ),
        (
            "kind: RayCluster\nspec: {headGroupSpec: {rayStartParams: {memory: lots}, "
            "template: {spec: {containers: [{name: ray}]}}}}",
            ["spec.headGroupSpec.rayStartParams.memory: 'lots' is no amount", "16Gi"],
        ),
        (
            "kind: RayCluster\nspec: {headGroupSpec: {template: {spec: {containers: [{}]}}}, workerGroupSpecs: [{}]}",
            ["spec.workerGroupSpecs[0].groupName: missing"],
        ),
        ("available_node_types: {a: {}}", ["head_node_type: missing"]),
        ("available_node_types: {a: {}}\nhead_node_type: b", ["head_node_type: 'b' is not one of", ": a"]),
        (
            "available_node_types: {a: {resources: {CPU: many}}}\nhead_node_type: a",
            ["available_node_types.a.resources.CPU: expected a number, got 'many'"],
        ),
        (
            "available_node_types: {a: {labels: {x: 1}}}\nhead_node_type: a",
            ["available_node_types.a.labels.x: expected text, got 1"],
        ),
    ],
)
def test_a_bad_manifest_is_one_message_that_names_file_and_key(tmp_path, text, words):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    message = refusal(cluster=path)
    assert [word for word in [str(path), *words] if word not in message] == []


def test_no_manifest_is_one_message(tmp_path):
    assert "launch.cluster" in refusal(cluster=tmp_path / "none.yaml")
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-16" in refusal(cluster=tmp_path / "image")


def test_validate_says_what_goes_where_and_refuses_what_could_never_run(tmp_path, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text(RUN)
    assert cli.main(["validate", str(spec), f"launch.cluster={KUBERAY}"]) == 0
    out, err = capsys.readouterr()
    assert parse(out).workers == 8
    assert "worker: 8 of 1 GPU, on gpu-spot (8 nodes)" in err.splitlines()
    assert cli.main(["validate", str(spec), f"launch.cluster={KUBERAY}", "workers=16"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith("emc2dist: workers: 16")) == ("", True)
    assert cli.main(["validate", str(spec)]) == 0
    assert capsys.readouterr().err == ""


def test_placement_is_checked_without_torch_or_ray():
    code = (
        "import sys; from emc2dist.launch import placement; from emc2dist.config import parse;"
        "placement.check(parse(sys.argv[1])); sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'numpy')))"
    )
    spec = RUN + f"launch: {{cluster: {KUBERAY}}}\n"
    assert subprocess.run([sys.executable, "-c", code, spec], timeout=60).returncode == 0
