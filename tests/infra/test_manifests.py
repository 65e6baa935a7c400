"""Manifests are read strictly: fields that KubeRay, Kubernetes or Ray does not know fail, and so do bad commands."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from preprocessing.arguments import parse_job
from training.__main__ import parse
from training.recorder import FIGURES
from training.trainer import Gauges

INFRA = Path(__file__).parents[2] / "infra"
JOBS = sorted((INFRA / "kuberay").glob("*ing.yaml"))

OBJECT: dict[str, Any] = {}
"""Stands for a value that is not looked into."""

PROBE_OR_HOOK = {"exec": {"command": OBJECT}}
CONTAINER = {
    "name": OBJECT,
    "image": OBJECT,
    "imagePullPolicy": OBJECT,
    "command": OBJECT,
    "args": OBJECT,
    "env": OBJECT,
    "envFrom": OBJECT,
    "ports": [{"containerPort": OBJECT, "name": OBJECT, "protocol": OBJECT}],
    "resources": {"requests": OBJECT, "limits": OBJECT},
    "volumeMounts": [{"name": OBJECT, "mountPath": OBJECT, "readOnly": OBJECT, "subPath": OBJECT}],
    "lifecycle": {"preStop": PROBE_OR_HOOK, "postStart": PROBE_OR_HOOK},
    "securityContext": OBJECT,
}
TEMPLATE = {
    "metadata": {"annotations": OBJECT, "labels": OBJECT},
    "spec": {
        "containers": [CONTAINER],
        "initContainers": [CONTAINER],
        "nodeSelector": OBJECT,
        "affinity": OBJECT,
        "tolerations": [dict.fromkeys(("key", "operator", "value", "effect", "tolerationSeconds"), OBJECT)],
        "terminationGracePeriodSeconds": OBJECT,
        "serviceAccountName": OBJECT,
        "volumes": [
            {
                "name": OBJECT,
                "persistentVolumeClaim": {"claimName": OBJECT, "readOnly": OBJECT},
                "emptyDir": {"medium": OBJECT, "sizeLimit": OBJECT},
                "hostPath": OBJECT,
            }
        ],
    },
}
CLUSTER = {
    "rayVersion": OBJECT,
    "enableInTreeAutoscaling": OBJECT,
    "autoscalerOptions": dict.fromkeys(
        ("resources", "image", "imagePullPolicy", "env", "idleTimeoutSeconds", "upscalingMode"), OBJECT
    ),
    "headGroupSpec": {"serviceType": OBJECT, "rayStartParams": OBJECT, "template": TEMPLATE},
    "workerGroupSpecs": [
        {
            **dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"), OBJECT),
            "rayStartParams": OBJECT,
            "template": TEMPLATE,
        }
    ],
}
# KubeRay's API ray.io/v1, as of operator 1.4.
RAY_JOB = {
    "apiVersion": OBJECT,
    "kind": OBJECT,
    "metadata": {"name": OBJECT, "namespace": OBJECT, "labels": OBJECT, "annotations": OBJECT},
    "spec": {
        **dict.fromkeys(
            (
                "activeDeadlineSeconds",
                "backoffLimit",
                "entrypoint",
                "entrypointNumCpus",
                "runtimeEnvYAML",
                "shutdownAfterJobFinishes",
                "submissionMode",
                "suspend",
                "ttlSecondsAfterFinished",
            ),
            OBJECT,
        ),
        "rayClusterSpec": CLUSTER,
    },
}


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML otherwise takes in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is given twice in {keys}, {node.start_mark}"
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=StrictLoader)


def unknown_fields(values: Any, known: Any, where: str = "") -> Iterator[str]:
    if known is OBJECT:
        return
    if isinstance(known, list):
        assert isinstance(values, list), f"{where} must be a list"
        for number, value in enumerate(values):
            yield from unknown_fields(value, known[0], f"{where}[{number}]")
        return
    assert isinstance(values, dict), f"{where} must be a mapping"
    for key, value in values.items():
        if key in known:
            yield from unknown_fields(value, known[key], f"{where}.{key}")
        else:
            yield f"{where}.{key}"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_ray_job_has_no_unknown_field_and_keeps_its_promises(path: Path) -> None:
    job = read(path)
    assert list(unknown_fields(job, RAY_JOB)) == []
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["enableInTreeAutoscaling"] is True
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert all(isinstance(value, str) for part in (head, group) for value in part["rayStartParams"].values())
    head_pod, pod = head["template"]["spec"], group["template"]["spec"]
    assert head_pod["nodeSelector"] != pod["nodeSelector"], "the head must not be preemptible"
    claim = read(INFRA / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for one in (head_pod, pod):
        (container,) = one["containers"]
        volumes = {volume["name"]: volume for volume in one["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_training_job_runs_a_command_that_fits_its_workers() -> None:
    job = read(INFRA / "kuberay" / "training.yaml")
    python, dash_m, module, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, dash_m, module) == ("python", "-m", "training")
    config = parse(arguments).config
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.cluster.launcher == "ray"
    assert (config.cluster.min_workers, config.cluster.max_workers) == (group["minReplicas"], group["maxReplicas"])
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    requests = container["resources"]["requests"]
    assert float(requests["cpu"]) >= config.cluster.cpus_per_worker
    assert float(requests["nvidia.com/gpu"]) == config.cluster.gpus_per_worker
    script, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (INFRA / Path(script).name).is_file()
    assert int(seconds) < pod["terminationGracePeriodSeconds"]


def test_preprocessing_job_runs_a_command_that_is_understood() -> None:
    job = read(INFRA / "kuberay" / "preprocessing.yaml")
    *start, command = shlex.split(job["spec"]["entrypoint"])[:4]
    assert start == ["python", "-m", "preprocessing"]
    parsed = parse_job(shlex.split(job["spec"]["entrypoint"])[4:], command)
    assert (parsed.corpus, parsed.shards) == ("/data/corpus", "/data/shards")


def test_cluster_of_virtual_machines_follows_rays_schema() -> None:
    cluster = read(INFRA / "ray-cluster.yaml")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    workers = cluster["available_node_types"]["preemptible"]
    assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert any("drain.sh" in command for command in cluster["worker_start_ray_commands"])


def test_dashboard_shows_figures_that_a_run_publishes() -> None:
    dashboard = json.loads((INFRA / "grafana" / "training.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    text = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    shown = set(re.findall(r"ray_videoldm_training_(\w+)\{", text))
    assert shown
    assert shown <= {Gauges.metric(name).removeprefix("videoldm_training_") for name in FIGURES}


def test_image_installs_every_package_and_copies_what_exists() -> None:
    text = (INFRA / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((INFRA.parent / name).exists() for name in source.split()), source
    for package in ("pipelines", "preprocessing", "training", "serving", "infra"):
        assert f"COPY {package} {package}" in text
