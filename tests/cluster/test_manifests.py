"""cluster/: what KubeRay, Kubernetes and Ray's launcher would say of the files, and what we promise about them."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from emc2dist.config import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "data" / "kuberay"

CLUSTER_YAML, JOB_YAML, POLICY, MONITOR, AWS = (
    yaml.safe_load((CLUSTER / name).read_text())
    for name in (
        "kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "kuberay/networkpolicy.yaml", "kuberay/podmonitor.yaml",
        "aws.yaml",
    )
)  # fmt: skip
SPEC, JOB = CLUSTER_YAML["spec"], JOB_YAML["spec"]
HEAD = SPEC["headGroupSpec"]
CPU, SPOT = SPEC["workerGroupSpecs"]
GROUPS = {"head": HEAD, "cpu": CPU, "gpu-spot": SPOT}


def strict(schema):
    """The schema, with keys that it does not know refused, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def check(instance, schema):
    jsonschema.Draft202012Validator(schema).validate(instance)  # without checking these large schemas every time


@pytest.fixture(scope="module")
def crd():
    """Schemas by kind, out of KubeRay's custom resource definitions, and those of parts that Kubernetes shares."""
    if not CRDS.is_dir():
        pytest.skip("KubeRay's custom resource definitions are not here")
    schemas = {}
    for path in CRDS.glob("*.yaml"):
        definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        (version,) = (version for version in definition["versions"] if version["name"] == "v1")
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"]["additionalProperties"] = True  # the CRD leaves it to Kubernetes
        schemas[definition["names"]["kind"]] = schema
    rules = schemas["RayCluster"]["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]
    schemas["ingress"] = rules["properties"]["ingressRules"]
    schemas["selector"] = schemas["ingress"]["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
    return schemas


@pytest.fixture(scope="module")
def launcher():
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("resource", [CLUSTER_YAML, JOB_YAML], ids=lambda resource: resource["kind"])
def test_kuberay_takes_it(crd, resource):
    assert resource["apiVersion"] == "ray.io/v1"
    check(resource, crd[resource["kind"]])


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
    resource = copy.deepcopy({"RayCluster": CLUSTER_YAML, "RayJob": JOB_YAML}[kind])
    mistake(resource["spec"] if kind == "RayCluster" else resource["spec"]["rayClusterSpec"])
    with pytest.raises(jsonschema.ValidationError):
        check(resource, crd[kind])


def test_the_job_runs_on_the_cluster_of_the_other_file():
    assert JOB["rayClusterSpec"] == SPEC


def test_nothing_is_placed_on_the_head_and_only_gpu_work_on_spot():
    for group in (HEAD, SPOT):
        assert group["rayStartParams"] == {"num-cpus": "0", "memory": "0"}
    assert CPU["rayStartParams"] == {}
    assert JOB["entrypointNumCpus"] > 0
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


def test_the_job_cleans_up_and_recovers_under_the_same_name():
    assert JOB["shutdownAfterJobFinishes"]
    assert JOB["backoffLimit"] > 0
    assert JOB.get("submissionMode", "K8sJobMode") == "K8sJobMode"
    submitter = JOB["submitterPodTemplate"]["spec"]
    assert submitter["containers"][0]["image"] == container(HEAD)["image"]
    assert submitter["securityContext"]["runAsNonRoot"]


def test_the_entrypoint_is_a_command_of_ours_with_a_spec_that_is_valid():
    words = JOB["entrypoint"].split()
    assert words[:2] == ["emc2dist", "train"]
    assert words == shlex.split(JOB["entrypoint"])  # nothing for a shell to work on
    assert not set("$`;&|<>(){}*?!\\") & set(JOB["entrypoint"])
    path, overrides = ROOT / words[2], words[3:]
    assert "name=imagenet100" in overrides  # given, so that every retry has it
    if not path.exists():
        pytest.skip(f"{words[2]} is not written yet")
    spec = load(path, overrides)
    assert spec.run_dir.startswith("s3://")
    assert spec.workers <= SPOT["replicas"]
    assert spec.data.cache_mib / 1024 < int(container(SPOT)["resources"]["limits"]["ephemeral-storage"][:-2])


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
    for template in [*templates, JOB["submitterPodTemplate"]]:
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
