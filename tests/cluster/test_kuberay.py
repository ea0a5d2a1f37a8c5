"""The KubeRay manifests: fields, Secrets, spot workers and the time that a checkpoint gets.

The fields that KubeRay knows are those of its API reference (1.6). Where `kubernetes-validate` is installed the pods
are also held against Kubernetes' own schema, strictly.
"""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.manifests import comment_of, read, training_of

NAMES = ("rayjob.yaml", "raycluster.yaml")
CLUSTER_FIELDS = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs", "authOptions",
    "gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "suspend",
}  # fmt: skip
JOB_FIELDS = {
    "entrypoint", "rayClusterSpec", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "suspend",
    "backoffLimit", "submitterConfig", "submitterPodTemplate", "activeDeadlineSeconds", "runtimeEnvYAML", "jobId",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "clusterSelector", "metadata", "managedBy",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version", "env",
    "envFrom", "volumeMounts",
}  # fmt: skip
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}


def cluster_spec(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec["rayClusterSpec"] if read(name)["kind"] == "RayJob" else spec


def pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = cluster_spec(name)
    yield "head", spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_known_to_kuberay(name: str) -> None:
    manifest, spec = read(name), cluster_spec(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    if manifest["kind"] == "RayJob":
        assert manifest["spec"].keys() <= JOB_FIELDS
        assert manifest["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert spec.keys() <= CLUSTER_FIELDS
    assert spec["autoscalerOptions"].keys() <= AUTOSCALER_FIELDS
    assert spec["authOptions"] == {"mode": "token", "secretName": "ebmscale-token"}
    assert spec["headGroupSpec"].keys() <= {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
    for group in spec["workerGroupSpecs"]:
        assert group.keys() <= GROUP_FIELDS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert spec["enableInTreeAutoscaling"]
    for params in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in params["rayStartParams"].values())


@pytest.mark.parametrize("name", NAMES)
def test_pods_fit_kubernetes_own_schema(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs `pip install kubernetes-validate`")
    for group, pod in pods(name):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, "spec": pod}
        validator.validate(whole, validator.latest_version(), strict=True)


def rules_of(pod: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The alternatives of a pod's rules on its node."""
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]


@pytest.mark.parametrize("name", NAMES)
def test_workers_run_on_spot_nodes_alone_and_the_head_on_none(name: str) -> None:
    found = dict(pods(name))
    (of_head,) = rules_of(found.pop("head"))
    assert {rule["operator"] for rule in of_head} == {"NotIn"}
    spot = {(rule["key"], *rule["values"]) for rule in of_head}
    assert len(spot) == 3
    for pod in found.values():
        rules = [rule for (rule,) in rules_of(pod)]
        assert {rule["operator"] for rule in rules} == {"In"}
        assert {(rule["key"], *rule["values"]) for rule in rules} == spot


@pytest.mark.parametrize("name", NAMES)
def test_spot_workers_have_time_for_a_checkpoint(name: str) -> None:
    for group, pod in pods(name):
        (container,) = pod["containers"]
        if group == "head":
            continue
        command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        words = shlex.split(command)
        slept = int(words[words.index("sleep") + 1].rstrip(";"))
        assert slept <= int(words[words.index("--deadline-remaining-seconds") + 1])
        assert pod["terminationGracePeriodSeconds"] >= slept + 20


def test_the_announcement_of_a_stop_is_a_command_that_ray_has() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs Ray")
    for _, pod in list(pods("rayjob.yaml"))[1:]:
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        words = shlex.split(command.split("&&")[0])
        assert words[:2] == ["ray", "drain-node"]
        scripts.drain_node.make_context("drain-node", words[2:], resilient_parsing=False)


@pytest.mark.parametrize("name", NAMES)
def test_credentials_come_from_secrets_and_metrics_have_a_port(name: str) -> None:
    text = str(read(name))
    assert "AWS_SECRET_ACCESS_KEY" not in text
    assert "RAY_AUTH_TOKEN" not in text
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"secretRef": {"name": "ebmscale-s3"}} in container["envFrom"]
        port = group["rayStartParams"]["metrics-export-port"]
        assert {"name": "metrics", "containerPort": int(port)} in container["ports"]
        assert group["template"]["metadata"]["annotations"]["prometheus.io/port"] == port
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_entrypoint_is_a_run_that_fits_the_workers() -> None:
    config = training_of(read("rayjob.yaml")["spec"]["entrypoint"])
    assert config.ray.num_workers == (2, 8)
    assert config.storage.url.startswith("s3://")
    largest = max(group["maxReplicas"] for group in cluster_spec("rayjob.yaml")["workerGroupSpecs"])
    assert config.ray.most_workers <= min(largest, config.data.num_streams)
    grace = min(pod["terminationGracePeriodSeconds"] for group, pod in pods("rayjob.yaml") if group != "head")
    assert config.checkpoint.grace_s < grace
    assert training_of(comment_of("raycluster.yaml").split("&")[-1]).ray.num_workers == (2, 8)


def test_both_manifests_describe_the_same_cluster() -> None:
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")
