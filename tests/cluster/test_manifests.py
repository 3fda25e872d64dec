"""cluster/: what KubeRay, Kubernetes and Ray's launcher would say of the files, and what we promise about them."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from crds import check

from emc2dist.config import load, parse
from emc2dist.launch.plan import plan_of
from emc2dist.launch.rayjob import render

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFEST = CLUSTER / "kuberay/raycluster.yaml"

CLUSTER_YAML, POLICY, MONITOR, AWS = (
    yaml.safe_load((CLUSTER / name).read_text())
    for name in ("kuberay/raycluster.yaml", "kuberay/networkpolicy.yaml", "kuberay/podmonitor.yaml", "aws.yaml")
)
SPEC = CLUSTER_YAML["spec"]


def rendered(job):
    """The ConfigMap and the RayJob that `emc2dist submit` makes of a job and the manifest."""
    overrides = [
        "launch.target=kuberay", f"launch.cluster={MANIFEST}", "device=cuda", "resources.driver_cpus=1",
        "resources.worker_labels={ray.io/market-type: spot}", "resources.shard_labels={ray.io/market-type: on-demand}",
        "run_dir=s3://BUCKET/runs", "data.path=s3://BUCKET/data",
    ]  # fmt: skip
    return render(plan_of(load(ROOT / "jobs" / f"{job}.yaml", overrides)))


JOBS = {job: rendered(job) for job in ("imagenet100", "cifar10")}
HEAD = SPEC["headGroupSpec"]
CPU, SPOT = SPEC["workerGroupSpecs"]
GROUPS = {"head": HEAD, "cpu": CPU, "gpu-spot": SPOT}


@pytest.fixture(scope="module")
def launcher():
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def test_kuberay_takes_the_cluster(crd):
    assert CLUSTER_YAML["apiVersion"] == "ray.io/v1"
    check(CLUSTER_YAML, crd["RayCluster"])


@pytest.mark.parametrize("job", JOBS)
def test_kuberay_takes_the_job(crd, job):
    assert JOBS[job][1]["apiVersion"] == "ray.io/v1"
    check(JOBS[job][1], crd["RayJob"])


def typo(spec):
    spec["headGroupSpec"]["serviceTyp"] = "ClusterIP"


def deep_typo(spec):
    spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["securityContext"]["runAsNonroot"] = True


def wrong_type(spec):
    spec["workerGroupSpecs"][0]["replicas"] = "2"


def number_for_a_string(spec):
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def no_template(spec):
    del spec["workerGroupSpecs"][0]["template"]


@pytest.mark.parametrize("mistake", [typo, deep_typo, wrong_type, number_for_a_string, no_template])
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_check_sees_mistakes(crd, kind, mistake):
    resource = copy.deepcopy({"RayCluster": CLUSTER_YAML, "RayJob": JOBS["imagenet100"][1]}[kind])
    mistake(resource["spec"] if kind == "RayCluster" else resource["spec"]["rayClusterSpec"])
    with pytest.raises(jsonschema.ValidationError):
        check(resource, crd[kind])


def test_nothing_is_placed_on_the_head_and_only_gpu_work_on_spot():
    for group in (HEAD, SPOT):
        assert group["rayStartParams"] == {"num-cpus": "0", "memory": "0"}
    assert CPU["rayStartParams"] == {}
    assert all(job["spec"]["entrypointNumCpus"] > 0 for _, job in JOBS.values())
    gpus = {name: container(group)["resources"]["limits"].get("nvidia.com/gpu", "0") for name, group in GROUPS.items()}
    assert gpus == {"head": "0", "cpu": "0", "gpu-spot": "1"}


def test_spot_and_on_demand_are_told_apart_by_kubernetes_and_by_ray():
    for name, group in GROUPS.items():
        (node,) = pod(group)["nodeSelector"].values()
        assert node == ("SPOT" if name == "gpu-spot" else "ON_DEMAND")
        assert group["labels"] == {"ray.io/market-type": node.lower().replace("_", "-")}


def test_nodes_are_as_many_as_a_run_needs_from_its_start():
    assert "enableInTreeAutoscaling" not in SPEC
    for group in (CPU, SPOT):
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


@pytest.mark.parametrize("name", GROUPS)
def test_a_pod(name):
    spec, ray = pod(GROUPS[name]), container(GROUPS[name])
    assert len(spec["containers"]) == 1
    assert ray["image"] == container(HEAD)["image"] == "ghcr.io/OWNER/emc2dist:cuda"
    assert spec["terminationGracePeriodSeconds"] > float(variables(ray)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) > 0
    assert spec["securityContext"]["runAsNonRoot"]
    assert not ray["securityContext"]["allowPrivilegeEscalation"]
    assert not spec["automountServiceAccountToken"]
    assert ray["resources"]["requests"] == ray["resources"]["limits"]
    (mount,), (volume,) = ray["volumeMounts"], spec["volumes"]
    assert (mount["mountPath"], volume["name"]) == ("/dev/shm", mount["name"])
    assert volume["emptyDir"]["medium"] == "Memory"
    assert [list(source) for source in ray["envFrom"]] == [["secretRef"]]


def test_a_token_is_asked_for_and_nobody_outside_gets_near():
    assert SPEC["authOptions"] == {"mode": "token"}
    assert HEAD["serviceType"] == "ClusterIP"
    assert "enableIngress" not in HEAD


@pytest.mark.parametrize("job", JOBS)
def test_the_job_cleans_up_and_recovers_under_the_same_name(job):
    spec = JOBS[job][1]["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert spec.get("submissionMode", "K8sJobMode") == "K8sJobMode"
    submitter = spec["submitterPodTemplate"]["spec"]
    assert submitter["containers"][0]["image"] == container(HEAD)["image"]
    assert submitter["securityContext"] == pod(HEAD)["securityContext"]
    assert submitter["containers"][0]["securityContext"] == container(HEAD)["securityContext"]
    assert not submitter["automountServiceAccountToken"]


@pytest.mark.parametrize("job", JOBS)
def test_the_entrypoint_is_a_command_of_ours_with_a_spec_that_is_valid(job):
    config, rayjob = JOBS[job]
    entrypoint = rayjob["spec"]["entrypoint"]
    assert shlex.split(entrypoint) == entrypoint.split() == ["emc2dist", "train", "/etc/emc2dist/spec.yaml"]
    spec = parse(config["data"]["spec.yaml"])
    assert spec.run_dir.startswith("s3://")
    assert spec.workers == rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["replicas"] <= SPOT["replicas"]
    assert spec.data.cache_mib / 1024 < int(container(SPOT)["resources"]["limits"]["ephemeral-storage"][:-2])


def test_the_job_says_what_it_needs_of_this_cluster():
    """The lines at the end of jobs/imagenet100.yaml that are for a cluster are a comment, and valid."""
    text = (ROOT / "jobs/imagenet100.yaml").read_text()
    uncommented = re.sub(r"(?m)^# (?=(run_dir|device|resources|launch): )", "", text)
    assert len(re.findall(r"(?m)^(run_dir|device|resources|launch): ", uncommented)) == 4
    spec = parse(uncommented, [f"launch.cluster={MANIFEST}", "data.path=s3://BUCKET/imagenet100"])
    assert spec.launch.target == "kuberay"
    assert render(plan_of(spec))


def test_the_network_policy(crd):
    assert (POLICY["apiVersion"], POLICY["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    spec = POLICY["spec"]
    assert set(spec) == {"podSelector", "policyTypes", "ingress"}
    assert spec["policyTypes"] == ["Ingress"]
    check(spec["podSelector"], crd["selector"])
    check(spec["ingress"], crd["ingress"])
    among_themselves, *others = spec["ingress"]
    assert among_themselves == {"from": [{"podSelector": spec["podSelector"]}]}
    assert [[port["port"] for port in rule["ports"]] for rule in others] == [[8265], [8080]]
    assert all(source.get("namespaceSelector") is not None for rule in others for source in rule["from"])


def test_the_pod_monitor(crd):
    assert (MONITOR["apiVersion"], MONITOR["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    spec = MONITOR["spec"]
    assert set(spec) == {"selector", "podMetricsEndpoints", "podTargetLabels"}
    check(spec["selector"], crd["selector"])
    assert [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]] == ["metrics"]  # the name is KubeRay's
    ray = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["scrape_configs"][1]
    assert spec["podMetricsEndpoints"][0]["metricRelabelings"] == [
        {_camel_case(key): value for key, value in step.items()} for step in ray["metric_relabel_configs"]
    ]


def _camel_case(key):
    return re.sub("_(.)", lambda letter: letter[1].upper(), key)


def test_policy_and_monitor_select_the_pods():
    templates = [group["template"] for group in GROUPS.values()]
    for template in [*templates, *(job["spec"]["submitterPodTemplate"] for _, job in JOBS.values())]:
        assert POLICY["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    added_by_kuberay = {"ray.io/is-ray-node": "yes"}
    for template in templates:
        labels = template["metadata"]["labels"] | added_by_kuberay
        assert MONITOR["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_launcher_takes_the_file_for_aws(launcher):
    check(AWS, launcher)
    for mistake in ({"max_worker": 1}, {"max_workers": "10"}, {"available_node_types": {"head": {"resources": {}}}}):
        with pytest.raises(jsonschema.ValidationError):
            check(AWS | mistake, launcher)


def test_aws_has_the_same_groups():
    head, cpu, spot = (AWS["available_node_types"][name] for name in ("head", "cpu", "gpu_spot"))
    assert AWS["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "memory": 0}
    assert spot["resources"] == {"CPU": 0, "memory": 0, "GPU": 1}
    for ours, theirs in ((head, HEAD), (cpu, CPU), (spot, SPOT)):
        assert ours["labels"] == theirs["labels"]
        assert ours.get("min_workers") == ours.get("max_workers") == theirs.get("replicas")
        assert "InstanceMarketOptions" not in ours["node_config"] or ours is spot
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert AWS["max_workers"] == cpu["max_workers"] + spot["max_workers"]
    assert AWS["docker"]["image"] == container(HEAD)["image"]


def test_aws_is_closed_but_for_ssh():
    (start,) = (command for command in AWS["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]
    assert AWS["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "security_group" not in AWS["provider"]  # Ray's own: the nodes among themselves, and SSH
    for group in AWS["available_node_types"].values():
        assert set(group["node_config"]["IamInstanceProfile"]) == {"Name"}


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.*")), ids=lambda path: path.name)
def test_no_file_holds_a_secret(path):
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|\b[0-9a-f]{32,}\b", text)
    assert not re.search(r"(?i)(secret|token|password|key)\w*\s*[:=]\s*['\"]?[a-z0-9+/]{16,}", text)


def pod(group):
    return group["template"]["spec"]


def container(group):
    return pod(group)["containers"][0]


def variables(of):
    return {variable["name"]: variable["value"] for variable in of["env"]}
