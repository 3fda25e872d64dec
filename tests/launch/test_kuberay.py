"""What is sent to KubeRay, held against its CRDs; and how jobs are started, watched and stopped.

There is no API server here: kubectl is `fake_kubectl`, except where the real one, if installed, is asked whether it
knows the commands.
"""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import crds
import pytest
import yaml

from emc2dist.cli import main
from emc2dist.config import parse, parse_sweep
from emc2dist.errors import LaunchError, SpecError
from emc2dist.launch import kuberay, manifest, targets
from emc2dist.launch.kubectl import Kubectl
from emc2dist.launch.kuberay import KubeRay, preview
from emc2dist.launch.output import exit_status, table
from emc2dist.launch.plan import JobState, plan_of
from emc2dist.launch.rayjob import is_ours, name_of, render, state_of, text_of

ROOT = Path(__file__).parents[2]
MANIFEST = str(ROOT / "cluster/kuberay/raycluster.yaml")
RUN = f"""
name: Run_1
run_dir: s3://bucket/runs
data: {{path: s3://bucket/data}}
epochs: 1
lr: 0.1
workers: 3
batch_size: 66
device: cuda
resources: {{driver_cpus: 1}}
launch: {{target: kuberay, cluster: {MANIFEST}, namespace: team}}
"""


def plan(*overrides):
    return plan_of(parse(RUN, overrides))


def sweep_plan(**more):
    tree = {"name": "Sweep_1", "base": yaml.safe_load(RUN), "space": {"lr": [0.1, 0.2]}, "scheduler": {"name": "fifo"}}
    return plan_of(parse_sweep(yaml.safe_dump(tree | more)))


class Fake:
    """The folder behind `fake_kubectl`."""

    def __init__(self, home):
        self.home = home

    def calls(self):
        """The commands so far, without the flags that all have."""
        return [json.loads(line)[2:] for line in (self.home / "calls.jsonl").read_text().splitlines()]

    def verbs(self):
        return [call[0] for call in self.calls() if call[0] != "get"]

    def object(self, kind, name):
        return json.loads((self.home / f"{kind}.{name}.json").read_text())

    def becomes(self, name, *statuses):
        """What KubeRay says of a job at the next `get`, and at those after it."""
        (self.home / f"next.{name}.json").write_text(json.dumps(statuses))

    def fails(self, words, times=1):
        (self.home / "fail").write_text(json.dumps([times, words]))

    def prints(self, name, text):
        (self.home / f"logs.{name}").write_text(text)


@pytest.fixture
def fake(tmp_path, monkeypatch, crd):
    home, programs = tmp_path / "cluster", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    (home / "schemas.json").write_text(json.dumps({"RayJob": crd["RayJob"]}))
    kubectl = programs / "kubectl"
    kubectl.write_text(f"#!{sys.executable}\n" + (ROOT / "tests/fake_kubectl.py").read_text())
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("FAKE_KUBECTL", str(home))
    return Fake(home)


@pytest.fixture
def target():
    return KubeRay("team", poll_s=0.01, patience_s=20)


RUNNING = {
    "jobDeploymentStatus": "Running",
    "jobStatus": "RUNNING",
    "jobId": "run-x7",
    "startTime": "2026-01-01T00:00:00Z",
    "rayClusterStatus": {"head": {"podName": "run-head"}},
}
SUCCEEDED = RUNNING | {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "message": "Job finished."}
FAILED = RUNNING | {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\n"
    "step 1\nemc2dist: data.path: no such bucket\n",
}


# What is sent


@pytest.mark.parametrize(
    "run", ["a", "imagenet100", "2024", "A.B_c", "x" * 100, "ends-in-", "a--b", "1-" + "long-" * 12]
)
def test_names_are_what_kuberay_takes(run):
    name = name_of(plan(f"name='{run}'").id)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47
    assert name == name_of(plan(f"name='{run}'").id)
    assert name != name_of(plan(f"name='{run}'", "seed=1").id)


def test_two_objects_and_the_job_finds_the_spec_in_the_other(crd):
    sent = plan()
    config, rayjob = render(sent)
    assert (config["kind"], config["immutable"], config["data"]) == ("ConfigMap", True, {"spec.yaml": sent.spec})
    assert config["metadata"] == rayjob["metadata"]
    assert rayjob["metadata"]["namespace"] == "team"
    assert rayjob["metadata"]["labels"] == {"app": "emc2dist"}
    crds.check(rayjob, crd["RayJob"])
    spec = rayjob["spec"]
    assert spec["entrypoint"] == "emc2dist train /etc/emc2dist/spec.yaml"
    assert (spec["entrypointNumCpus"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (1, 3, True)
    assert render(plan("launch.retries=0"))[1]["spec"]["backoffLimit"] == 0
    for group in [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (volume,) = (each for each in pod["volumes"] if "configMap" in each)
        assert volume["configMap"]["name"] == config["metadata"]["name"]
        (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"])
        assert (mount["mountPath"], mount["readOnly"]) == ("/etc/emc2dist", True)


def test_a_sweep_is_a_job_of_its_own_that_takes_what_gpus_there_are():
    config, rayjob = render(sweep_plan())
    assert parse_sweep(config["data"]["spec.yaml"]).base == parse(RUN)
    assert rayjob["metadata"]["annotations"]["emc2dist/run"] == "Sweep_1"
    assert rayjob["spec"]["entrypoint"] == "emc2dist sweep /etc/emc2dist/spec.yaml"
    declared = manifest.read(MANIFEST)["spec"]["workerGroupSpecs"]
    made = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["replicas"] for group in made] == [group["replicas"] for group in declared]
    assert sweep_plan(seeds=2).id != sweep_plan().id
    assert (plan().workers, sweep_plan().workers, sweep_plan(budget={"concurrent": 2}).workers) == (3, 3, 6)


def test_all_else_is_the_manifests():
    declared = manifest.read(MANIFEST)["spec"]
    made = copy.deepcopy(render(plan("workers=8", "batch_size=64"))[1]["spec"]["rayClusterSpec"])
    for group in [made["headGroupSpec"], *made["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        pod["volumes"].pop()
        pod["containers"][0]["volumeMounts"].pop()
        assert pod["containers"][0]["env"].pop() == {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "120"}
    assert made == declared


def test_the_text_is_the_objects_and_readable():
    objects = render(plan())
    text = text_of(objects)
    assert list(yaml.safe_load_all(text)) == objects
    assert "  spec.yaml: |\n    name: Run_1\n" in text
    assert "&id" not in text
    assert preview(plan()) == text


def test_the_environment_of_the_run_wins_and_nothing_expands_it():
    _, rayjob = render(plan("launch.environment={RAY_worker_niceness: '5', GREETING: 'a $(b) $$c'}"))
    container = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]
    assert [each["value"] for each in container["env"] if each["name"] == "RAY_worker_niceness"] == ["5"]
    # Kubernetes makes $ of $$, and expands $(NAME).
    assert {"name": "GREETING", "value": "a $$(b) $$$$c"} in container["env"]
    assert "RAY_USAGE_STATS_ENABLED" in {each["name"] for each in container["env"]}
    assert "runtimeEnvYAML" not in rayjob["spec"]


@pytest.mark.parametrize(
    ("overrides", "replicas"),
    [
        (["workers=3"], [2, 3]),
        (["workers=1", "resources.worker_gpus=0.5"], [2, 1]),
        (["device=cpu", "workers=3", "resources.driver_cpus=0"], [2, 0]),
    ],
)
def test_gpu_nodes_are_as_many_as_the_workers_take(overrides, replicas):
    _, rayjob = render(plan(*overrides))
    groups = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["replicas"] for group in groups] == replicas
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_nodes_that_serve_others_too_are_never_fewer_than_declared(tmp_path):
    tree = manifest.read(MANIFEST)
    cpu, gpu = tree["spec"]["workerGroupSpecs"]
    gpu |= {"rayStartParams": {}, "replicas": 2, "minReplicas": 1}
    cpu |= {"replicas": 1, "minReplicas": 1, "maxReplicas": 4}
    path = tmp_path / "cluster.yaml"

    def replicas(*overrides):
        path.write_text(yaml.safe_dump(tree))
        cluster = render(plan(f"launch.cluster={path}", *overrides))[1]["spec"]["rayClusterSpec"]
        return [(group["minReplicas"], group["replicas"]) for group in cluster["workerGroupSpecs"]]

    assert replicas("workers=1") == [(1, 1), (1, 2)]
    assert replicas("workers=3", "shards=3", "resources.shard_mib=16384") == [(1, 3), (1, 3)]
    tree["spec"]["enableInTreeAutoscaling"] = True
    assert replicas("workers=3", "shards=3", "resources.shard_mib=16384") == [(1, 1), (1, 2)]


def test_the_submitter_is_locked_down_and_goes_where_the_head_may(tmp_path):
    tree = manifest.read(MANIFEST)
    head = tree["spec"]["headGroupSpec"]["template"]
    head["metadata"]["labels"] = {"team": "vision"}
    head["spec"] |= {"imagePullSecrets": [{"name": "pull"}], "tolerations": [{"operator": "Exists"}]}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    template = render(plan(f"launch.cluster={path}"))[1]["spec"]["submitterPodTemplate"]
    assert template["metadata"]["labels"] == {"team": "vision", "app": "emc2dist"}
    for key in ("nodeSelector", "imagePullSecrets", "tolerations"):
        assert template["spec"][key] == head["spec"][key]
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    assert not template["spec"]["automountServiceAccountToken"]


def test_manifests_that_kuberay_cannot_use_are_refused():
    with pytest.raises(SpecError, match=r"aws.yaml is for `ray up`; target: kuberay needs a RayCluster"):
        render(plan(f"launch.cluster={ROOT / 'cluster/aws.yaml'}"))
    with pytest.raises(SpecError, match="workers: 9 of 1 GPU do not fit"):
        render(plan("workers=9", "batch_size=9"))


# What is read


@pytest.mark.parametrize(
    ("deployment", "job", "status"),
    [
        ("", "", "pending"),
        ("Initializing", "", "pending"),
        ("Running", "", "pending"),
        ("Running", "PENDING", "pending"),
        ("Running", "RUNNING", "running"),
        ("Running", "SUCCEEDED", "running"),
        ("Retrying", "FAILED", "running"),
        ("Suspending", "RUNNING", "running"),
        ("Suspended", "", "stopped"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Complete", "STOPPED", "stopped"),
        ("Failed", "FAILED", "failed"),
        ("Failed", "", "failed"),
        ("ValidationFailed", "", "failed"),
    ],
)
def test_every_status_of_kuberay(deployment, job, status):
    rayjob = render(plan())[1] | {"status": {"jobDeploymentStatus": deployment, "jobStatus": job}}
    state = state_of(rayjob)
    assert (state.status, state.id, state.run) == (status, plan().id, "Run_1")
    assert state.exit_code == {"succeeded": 0, "failed": 1}.get(status)
    assert state.message


def test_exit_code_message_and_times():
    rayjob = render(plan())[1]
    state = state_of(rayjob | {"status": FAILED})
    assert (state.exit_code, state.message, state.started) == (2, "emc2dist: data.path: no such bucket", 1767225600.0)
    assert state.ended is None
    times = {"rayJobInfo": {"startTime": "2026-01-01T00:00:10Z", "endTime": "2026-01-01T01:00:00+01:00"}}
    state = state_of(rayjob | {"status": SUCCEEDED | times})
    assert (state.exit_code, state.message, state.started, state.ended) == (0, "Job finished.", 1767225610, 1767225600)


# How it is sent


def test_submit_applies_once_and_finds_what_it_has_started(fake, target):
    sent = plan()
    assert target.submit(sent).status == "pending"
    name = name_of(sent.id)
    assert fake.object("RayJob", name)["spec"]["entrypoint"] == "emc2dist train /etc/emc2dist/spec.yaml"
    assert fake.object("ConfigMap", name)["data"]["spec.yaml"] == sent.spec
    for status, expected in ((RUNNING, "running"), (SUCCEEDED, "succeeded")):
        fake.becomes(name, status)
        assert target.submit(sent).status == expected
    assert fake.verbs() == ["apply"]


@pytest.mark.parametrize(
    ("sent", "ended"),
    [(plan(), FAILED), (plan(), {"jobDeploymentStatus": "Suspended"}), (sweep_plan(), SUCCEEDED)],
    ids=["failed", "stopped", "a sweep, which may have lost trials"],
)
def test_a_job_that_is_not_over_is_started_anew_once_the_old_one_is_gone(fake, target, sent, ended):
    target.submit(sent)
    fake.becomes(name_of(sent.id), ended)
    assert target.submit(sent).status == "pending"
    calls = [call[:3] for call in fake.calls()]
    assert fake.verbs() == ["apply", "delete", "apply"]
    between = calls[[call[0] for call in calls].index("delete") + 1 : -2]
    assert between == [["get", "rayjobs.ray.io", name_of(sent.id)]] * 2  # still there, then gone
    assert "status" not in fake.object("RayJob", name_of(sent.id))


def test_what_the_crd_refuses_is_one_message(fake, target, monkeypatch):
    monkeypatch.setattr("emc2dist.launch.rayjob.LABELS", {"app": 1})
    with pytest.raises(LaunchError, match=r"kubectl apply in namespace team: .*1 is not of type 'string'"):
        target.submit(plan())


def test_jobs_are_found_by_id_and_the_newest_by_the_runs_name(fake, target):
    old, new, other = plan(), plan("seed=1"), plan("name=other")
    target.submit(old)
    with pytest.raises(LaunchError, match=f"job {old.id} runs under this name, with another spec"):
        target.submit(new)
    fake.becomes(name_of(old.id), FAILED)
    for sent in (new, other):
        target.submit(sent)
    assert [state.id for state in target.jobs()] == [other.id, new.id, old.id]
    assert target.state("Run_1").id == new.id
    assert target.state(old.id).id == old.id
    with pytest.raises(LaunchError, match=r"nobody: no such job, and no run of this name, in namespace team"):
        target.state("nobody")


def test_jobs_of_others_are_left_alone(fake, target):
    foreign = render(plan())[1] | {"status": RUNNING}
    del foreign["metadata"]["annotations"]
    (fake.home / f"RayJob.{foreign['metadata']['name']}.json").write_text(json.dumps(foreign))
    assert target.jobs() == []


NOTHING = [None, {}, [], "yesterday", 7, -1.5, "\x1b[31mred"]


@pytest.mark.parametrize("value", NOTHING, ids=repr)
@pytest.mark.parametrize(
    "keys",
    [
        ("metadata",), ("metadata", "annotations"), ("metadata", "creationTimestamp"), ("metadata", "name"),
        ("status",), ("status", "message"), ("status", "reason"), ("status", "rayJobInfo"), ("status", "startTime"),
        ("status", "rayClusterStatus"), ("status", "jobId"), ("spec",), ("spec", "rayClusterSpec"),
    ],
    ids=".".join,
)  # fmt: skip
def test_a_job_of_which_kubernetes_says_little_is_listed_or_left_out(keys, value):
    sent = render(plan())[1]
    sent["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    rayjob = copy.deepcopy(sent | {"status": copy.deepcopy(RUNNING)})
    part = rayjob
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    states = [state_of(each) for each in [rayjob] if is_ours(each)]
    assert len(states) == (
        keys[0] != "metadata" or keys[-1] == "creationTimestamp" or (keys[-1:] == ("name",) and isinstance(value, str))
    )
    table([*states])
    assert all("\x1b" not in f"{state}" for state in states)


@pytest.mark.parametrize("items", [None, [None], [{}], ["x"], [[]], [{"metadata": None}]])
def test_a_list_without_jobs_is_empty(items, target, monkeypatch):
    monkeypatch.setattr(Kubectl, "__call__", lambda *_, **__: json.dumps({"items": items}))
    assert target.jobs() == []


def test_a_head_without_a_grace_of_its_own_has_rays(fake, target):
    sent = plan()
    target.submit(sent)
    rayjob = fake.object("RayJob", name_of(sent.id))
    for env in (None, [], [{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "abc"}], [None]):
        rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"] = env
        assert kuberay._grace(rayjob) == 3
    del rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert kuberay._grace(rayjob) == 3


def test_a_job_that_failed_in_a_deployment_that_is_complete_has_failed():
    status = {"jobDeploymentStatus": "Complete", "jobStatus": "FAILED", "message": "job failed with exit code 137"}
    state = state_of(render(plan())[1] | {"status": status})
    assert (state.status, state.exit_code, exit_status(state)) == ("failed", 137, 137)


@pytest.mark.parametrize(("code", "shown"), [(-9, 137), (-15, 143), (256, 1), (-300, 1), (2, 2), (255, 255), (None, 1)])
def test_a_signal_is_an_exit_status_as_shells_have_it(code, shown):
    assert exit_status(JobState("a", "b", "failed", code, "", None, None)) == shown


def test_stop_asks_ray_where_the_job_has_begun_and_waits_for_its_end(fake, target):
    sent = plan()
    target.submit(sent)
    fake.becomes(name_of(sent.id), RUNNING)
    assert target.stop("Run_1").status == "stopped"
    (command,) = (call for call in fake.calls() if call[0] == "exec")
    assert command[1:] == [
        "run-head", "--container=ray", "--", "ray", "job", "stop", "--no-wait", "--address=http://127.0.0.1:8265",
        "run-x7",
    ]  # fmt: skip
    assert fake.verbs() == ["apply", "exec"]
    assert target.stop(sent.id).status == "stopped"  # it has ended: nothing more is sent
    assert fake.verbs() == ["apply", "exec"]


@pytest.mark.parametrize("status", [{}, {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}])
def test_stop_suspends_a_job_that_ray_has_not_begun(fake, target, status):
    sent = plan()
    target.submit(sent)
    fake.becomes(name_of(sent.id), status)
    assert target.stop(sent.id).status == "stopped"
    assert fake.verbs() == ["apply", "patch"]
    assert fake.object("RayJob", name_of(sent.id))["spec"]["suspend"] is True
    target.submit(sent)
    assert "suspend" not in fake.object("RayJob", name_of(sent.id))["spec"]


def test_stop_waits_for_a_job_that_is_being_wound_up(fake, target):
    sent = plan()
    target.submit(sent)
    winding_up = RUNNING | {"jobStatus": "SUCCEEDED"}
    fake.becomes(name_of(sent.id), winding_up, winding_up, SUCCEEDED)
    assert target.stop(sent.id).status == "succeeded"
    assert fake.verbs() == ["apply"]


def test_a_wait_has_an_end(fake):
    sent = plan("launch.stop_grace_s=1")
    target = KubeRay("team", poll_s=0.01, patience_s=0)
    target.submit(sent)
    fake.becomes(name_of(sent.id), *[RUNNING | {"jobStatus": "STOPPED"}] * 10_000)
    with pytest.raises(LaunchError, match=f"{sent.id} has not ended in 1 s"):
        target.stop(sent.id)


def test_logs_go_on_over_lost_connections_to_the_end_without_gaps_or_repeats(fake, target):
    sent = plan()
    target.submit(sent)
    name = name_of(sent.id)
    stamp = "2026-01-01T00:00:0{}.{:09}Z".format
    fake.prints(name, f"{stamp(1, 1)} one\n{stamp(1, 5)} two\n{stamp(1, 6)} thr")  # broken off within a line
    (fake.home / "later.1").write_text(f"ee\n{stamp(1, 7)} four\n")
    (fake.home / "later.2").write_text(f"{stamp(2, 0)} \n{stamp(2, 1)} six\n")
    fake.becomes(name, RUNNING, RUNNING, RUNNING, SUCCEEDED)
    assert list(target.logs("Run_1", follow=True)) == ["one\n", "two\n", "three\n", "four\n", "\n", "six\n"]
    assert [call[-1] for call in fake.calls() if call[0] == "logs"][1] == f"--since-time={stamp(1, 5)}"


@pytest.mark.parametrize(("end", "status"), [(SUCCEEDED, 0), (FAILED, 2)])
def test_a_submit_that_follows_ends_with_its_line_of_json(fake, target, end, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets, "open_target", lambda *_, **__: target)
    (tmp_path / "spec.yaml").write_text(RUN)
    job = plan().id
    fake.prints(name_of(job), "2026-01-01T00:00:01.000000000Z one\n")
    fake.becomes(name_of(job), RUNNING, RUNNING, end)
    assert main(["submit", str(tmp_path / "spec.yaml"), "--follow", "--json"]) == status
    shown = capsys.readouterr()
    log, last = shown.out.splitlines()
    found = json.loads(last)
    assert (log, found["job"], found["exit_code"]) == ("one", job, status)
    assert "its log follows" in shown.err


def test_logs_wait_for_the_pod_and_for_the_server(fake, target):
    sent = plan()
    target.submit(sent)
    fake.becomes(name_of(sent.id), {}, {}, RUNNING, RUNNING, RUNNING, SUCCEEDED)
    lines = target.logs(sent.id, follow=True)
    with pytest.raises(LaunchError, match="waiting to start"):
        list(target.logs(sent.id, follow=False))
    fake.prints(name_of(sent.id), "2026-01-01T00:00:01.000000000Z one\n")
    assert next(lines) == "one\n"
    fake.fails("Unable to connect to the server: connection refused", times=3)
    assert list(lines) == []
    assert not (fake.home / "fail").exists()
    fake.becomes(name_of(sent.id), RUNNING)
    lines = KubeRay("team", poll_s=0.01, patience_s=0).logs(sent.id, follow=True)
    assert next(lines) == "one\n"
    fake.fails("Unable to connect to the server", times=10_000)
    with pytest.raises(LaunchError, match=r"kubectl get in namespace team: Unable to connect"):
        list(lines)


def test_a_cluster_without_kuberay_is_told_what_it_lacks(fake, target):
    fake.fails('error: the server doesn\'t have a resource type "rayjobs"')
    with pytest.raises(LaunchError, match=r"kubectl get .*; install KubeRay's operator, 1.6 or newer"):
        target.submit(plan())


def test_without_a_context_the_message_is_for_people(fake, target):
    log = 'E1127 10:00:00.123456    4242 memcache.go:265] "Unhandled Error" err="couldn\'t get current server API"\n'
    refused = "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
    fake.fails(f"{log * 5}{refused}")
    with pytest.raises(LaunchError) as told:
        target.jobs()
    assert "memcache" not in str(told.value)
    assert str(told.value).startswith(f"kubectl get in namespace team: {refused}; that is: kubectl knows no cluster")
    fake.fails(log)  # better than nothing
    with pytest.raises(LaunchError, match=r"memcache\.go"):
        target.jobs()


def test_without_kubectl_one_is_told_to_install_it(target, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="kubectl is not installed; install it, and configure a context"):
        target.jobs()


def test_a_kubectl_that_does_not_answer_is_given_up(target, tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("emc2dist.launch.kubectl._COMMAND_S", 0.2)
    with pytest.raises(LaunchError, match=r"kubectl get: no answer in 0.2 s"):
        target.jobs()


def test_the_real_kubectl_knows_the_commands(fake, target, tmp_path, monkeypatch):
    """It gets as far as looking for a server, of which there is none."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    real = shutil.which("kubectl")
    if real is None:
        pytest.skip("kubectl is not installed")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    sent = plan()
    target.submit(sent)
    fake.becomes(name_of(sent.id), FAILED)
    target.submit(sent)
    fake.becomes(name_of(sent.id), {})
    target.stop(sent.id)
    target.submit(sent)
    fake.becomes(name_of(sent.id), RUNNING)
    target.stop(sent.id)
    fake.prints(name_of(sent.id), "2026-01-01T00:00:01.000000000Z one\n")
    list(target.logs(sent.id, follow=True))
    commands = {call[0]: call for call in fake.calls()}
    assert set(commands) == {"get", "apply", "delete", "patch", "exec", "logs"}
    for command in commands.values():
        done = subprocess.run(
            [real, "--server=http://127.0.0.1:1", "--kubeconfig=/dev/null", "--request-timeout=5s", *command],
            input=preview(sent), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert "refused" in done.stderr
