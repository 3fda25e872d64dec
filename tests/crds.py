"""What KubeRay takes: the schemas of its custom resource definitions, as strict as the API server is asked to be."""

from pathlib import Path

import jsonschema
import yaml

CRDS = Path(__file__).parents[2] / "shared" / "data" / "kuberay"


def schemas():
    """Schemas by kind, and those of parts that Kubernetes shares."""
    found = {}
    for path in CRDS.glob("*.yaml"):
        definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        (version,) = (version for version in definition["versions"] if version["name"] == "v1")
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"]["additionalProperties"] = True  # the CRD leaves it to Kubernetes
        found[definition["names"]["kind"]] = schema
    rules = found["RayCluster"]["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]
    found["ingress"] = rules["properties"]["ingressRules"]
    found["selector"] = found["ingress"]["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
    return found


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
