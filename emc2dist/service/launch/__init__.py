"""From a spec to a job on a cluster, and what becomes of it.

plan.py       what a spec becomes as a job, the same wherever it goes; what every target can do
manifest.py   what a cluster's manifest declares
placement.py  whether the run can be placed on that
jobs.py       a running Ray cluster, by its job API
local.py      a Ray of several nodes on this machine
kuberay.py    a cluster of its own on Kubernetes: rayjob.py says what is sent and read, kubectl.py sends it

cli.submit -> plan.of(spec) -> placement.check -> target.submit -> the cluster runs `emc2dist train spec.yaml`
"""
