"""A kubectl for tests, with neither an API server nor KubeRay behind it: a folder holds what was applied.

It knows the commands that emc2dist sends and refuses others. What is applied has to pass the schemas of KubeRay's CRDs
(kept as schemas.json). Where KubeRay would act, tests do: they write an object's status, or a list of statuses of which
every `get` takes the next one. Two of its rules are here, because `stop` and `submit` rest on them: a job that Ray
stops is Complete, and an object that is deleted stays until what it owns is gone, here for one `get` more.

Layout of $FAKE_KUBECTL: calls.jsonl, schemas.json, KIND.NAME.json, next.NAME.json, logs.NAME, fail (how many commands
are refused, and the words).
"""

import json
import os
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_KUBECTL"])
STATUS = {
    "Complete": {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
    "Suspended": {"jobDeploymentStatus": "Suspended", "jobStatus": ""},
}


def main(words):
    stdin = "" if sys.stdin.isatty() else sys.stdin.read()
    with (HOME / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    namespace, timeout, verb, *words = words
    assert namespace.startswith("--namespace=")
    assert timeout.startswith("--request-timeout=")
    refuse_if_told()
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    names = [word for word in words if not word.startswith("--")]
    {"get": get, "apply": apply, "patch": patch, "delete": delete, "exec": run, "logs": logs}[verb](
        names, flags, stdin, namespace.partition("=")[2]
    )


def refuse_if_told():
    if (HOME / "fail").exists():
        count, words = json.loads((HOME / "fail").read_text())
        (HOME / "fail").write_text(json.dumps([count - 1, words])) if count > 1 else (HOME / "fail").unlink()
        sys.exit(words)


def get(names, flags, _stdin, _namespace):
    assert flags["output"] == "json"
    if len(names) == 2:
        found = path("RayJob", names[1])
        if found.exists():
            advance(found)
        print(found.read_text() if found.exists() else "", end="")
        return
    wanted = dict(pair.split("=") for pair in flags["selector"].split(","))
    found = sorted(HOME.glob("RayJob.*.json"))
    for each in found:
        advance(each)
    items = [json.loads(each.read_text()) for each in found if each.exists()]
    print(json.dumps({"items": [each for each in items if wanted.items() <= each["metadata"]["labels"].items()]}))


def advance(found):
    rayjob = json.loads(found.read_text())
    name = rayjob["metadata"]["name"]
    if rayjob["metadata"].get("deletionTimestamp"):
        if rayjob["metadata"].pop("finalizers"):
            write(rayjob | {"metadata": rayjob["metadata"] | {"finalizers": []}})
        else:
            found.unlink()
    elif (HOME / f"next.{name}.json").exists():
        status, *later = json.loads((HOME / f"next.{name}.json").read_text())
        write(rayjob | {"status": status})
        if later:
            (HOME / f"next.{name}.json").write_text(json.dumps(later))
        else:
            (HOME / f"next.{name}.json").unlink()


def apply(_names, flags, stdin, namespace):
    import jsonschema
    import yaml

    assert flags["filename"] == "-"
    schemas = json.loads((HOME / "schemas.json").read_text())
    for each in yaml.safe_load_all(stdin):
        kind, name = each["kind"], each["metadata"]["name"]
        assert each["metadata"]["namespace"] == namespace
        if kind in schemas:
            jsonschema.Draft202012Validator(schemas[kind]).validate(each)
        old = json.loads(path(kind, name).read_text()) if path(kind, name).exists() else {}
        if old.get("immutable") and old["data"] != each["data"]:
            sys.exit(f'The ConfigMap "{name}" is invalid: data: Forbidden: field is immutable when `immutable` is set')
        count = len(list(HOME.glob("*.json")))
        each["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{count:02}Z"
        write(each | ({"status": old["status"]} if "status" in old else {}))


def patch(names, flags, _stdin, _namespace):
    assert flags["type"] == "merge"
    rayjob = json.loads(path("RayJob", names[1]).read_text())
    rayjob["spec"] |= json.loads(flags["patch"])["spec"]
    write(rayjob | {"status": STATUS["Suspended"]})


def delete(names, flags, _stdin, _namespace):
    assert (flags["cascade"], flags["wait"]) == ("foreground", "false")
    rayjob = json.loads(path("RayJob", names[1]).read_text())
    rayjob["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}
    write(rayjob)


def run(names, flags, _stdin, _namespace):
    pod, *command, job = names
    assert (flags["container"], command) == ("ray", ["ray", "job", "stop"])
    for found in HOME.glob("RayJob.*.json"):
        rayjob = json.loads(found.read_text())
        if rayjob["status"]["jobId"] == job and rayjob["status"]["rayClusterStatus"]["head"]["podName"] == pod:
            write(rayjob | {"status": rayjob["status"] | STATUS["Complete"]})
            return
    sys.exit(f"Job {job} does not exist")


def logs(names, flags, _stdin, _namespace):
    assert "timestamps" in flags
    found = HOME / f"logs.{names[0].removeprefix('job/')}"
    if not found.exists():
        sys.exit("container submitter is waiting to start: ContainerCreating")
    since = flags.get("since-time", "")[:19]  # Kubernetes cuts it to seconds
    print("".join(line for line in found.read_text().splitlines(True) if line >= since), end="")
    if flags["follow"] == "true":
        for later in sorted(HOME.glob("later.*")):  # printed while nobody listens: this connection is lost
            found.write_text(found.read_text() + later.read_text())
            later.unlink()
            sys.exit("http2: client connection lost")


def path(kind, name):
    return HOME / f"{kind}.{name}.json"


def write(each):
    path(each["kind"], each["metadata"]["name"]).write_text(json.dumps(each))


if __name__ == "__main__":
    main(sys.argv[1:])
