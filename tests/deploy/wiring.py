"""Whether the objects of one rendering fit together, and whether each set of values does what it is for."""

import re

from render import NAMESPACE, containers, find, matches, name_of, workloads

LENGTH = 63
ADDRESS = re.compile(r"(?:https?://|dns(?:\+https)?:///)([a-z0-9.-]+):7700")


def objects_fit(objects):
    """Names are unique and short, selectors select what they should, and what is referred to is there."""
    names = [(item["apiVersion"], name_of(item)) for item in objects]
    yield from (f"{name} is rendered {names.count((version, name))} times" for version, name in set(names) if names.count((version, name)) > 1)
    yield from (f"{name}: the name has more than {LENGTH} characters" for _, name in names if len(name.split("/")[1]) > LENGTH)
    yield from (f"{name_of(item)}: names a namespace" for item in objects if "namespace" in item["metadata"])
    yield from selectors(objects)
    yield from references(objects)
    yield from addresses(objects)


def selectors(objects):
    pods = workloads(objects)
    for item, template in pods:
        selector = item["spec"].get("selector", {}).get("matchLabels")
        if selector is None:
            continue
        taken = [name_of(other) for other, labels in labels_of(pods) if matches(selector, labels)]
        if taken != [name_of(item)]:
            yield f"{name_of(item)}: selects the pods of {taken}"
    for item in objects:
        if item["kind"] == "PodDisruptionBudget":
            taken = [other for other, labels in labels_of(pods) if matches(item["spec"]["selector"]["matchLabels"], labels)]
            # The budget of pods without a scale subresource cannot be counted.
            if len(taken) != 1 or taken[0]["kind"] == "Job":
                yield f"{name_of(item)}: selects the pods of {[name_of(other) for other in taken]}"
        if item["kind"] == "Service":
            taken = [labels for _, labels in labels_of(pods) if matches(item["spec"]["selector"], labels)]
            if not taken:
                yield f"{name_of(item)}: selects no pods"
            headless = item["spec"].get("clusterIP") == "None"
            if headless and item["spec"].get("publishNotReadyAddresses") is not True:
                yield f"{name_of(item)}: hides pods that are not ready, so that roles wait for each other"


def labels_of(pods):
    return [(item, template["metadata"]["labels"]) for item, template in pods]


def references(objects):
    there = {name_of(item) for item in objects}
    for item, template in workloads(objects):
        account = template["spec"]["serviceAccountName"]
        if f"ServiceAccount/{account}" not in there:
            yield f"{name_of(item)}: there is no service account {account}"
        claimed = {"volume claim " + claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        volumes |= {claim.removeprefix("volume claim ") for claim in claimed}
        mounted = set()
        for container in containers(template):
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            mounted |= mounts
            yield from (f"{name_of(item)}: mounts {name}, which is no volume" for name in sorted(mounts - volumes))
            for source in container.get("envFrom", []):
                config = source.get("configMapRef", {}).get("name")
                if config and f"ConfigMap/{config}" not in there:
                    yield f"{name_of(item)}: there is no config map {config}"
        yield from (f"{name_of(item)}: has volume {name} that nothing mounts" for name in sorted(volumes - mounted))
        service = item["spec"].get("serviceName")
        if service and f"Service/{service}" not in there:
            yield f"{name_of(item)}: there is no service {service}"
    for item in objects:
        target = item["spec"].get("scaleTargetRef") if "spec" in item else None
        if target:
            found = f"{target.get('kind', 'Deployment')}/{target['name']}"
            if found not in there:
                yield f"{name_of(item)}: there is no {found} to scale"
            elif "replicas" in find(objects, found)["spec"]:
                yield f"{found}: fixes the replicas that {item['kind']} sets"
        if item["kind"] == "GRPCRoute":
            backends = [backend["name"] for rule in item["spec"]["rules"] for backend in rule["backendRefs"]]
            yield from (f"{name_of(item)}: there is no service {name}" for name in backends if f"Service/{name}" not in there)


def addresses(objects):
    """Every address on a command line is a service, or a pod of a stateful set's service."""
    services = {item["metadata"]["name"] for item in objects if item["kind"] == "Service"}
    pods = set()
    for item in objects:
        if item["kind"] == "StatefulSet":
            for ordinal in range(int(item["spec"]["replicas"])):
                pods.add(f"{item['metadata']['name']}-{ordinal}.{item['spec']['serviceName']}")
    for item, template in workloads(objects):
        for container in containers(template):
            for host in ADDRESS.findall(" ".join(container["args"])):
                if host not in services | pods:
                    yield f"{name_of(item)}: calls {host}, which is no service"


def container(objects, name):
    """The container that serves in a workload."""
    return find(objects, name)["spec"]["template"]["spec"]["containers"][0]


def minimal(objects):
    args = container(objects, "Deployment/e2llm-decoder")["args"]
    assert "--index-url=http://e2llm-index-0.e2llm-index-headless:7700" in args, args
    assert "--encoder-url=dns:///e2llm-encoder-headless:7700" in args, args
    assert "--coordinator-url=dns:///e2llm-coordinator-headless:7700" in args, args
    assert "--allow-unauthenticated" in args, args
    assert find(objects, "Deployment/e2llm-decoder")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    kinds = {item["kind"] for item in objects}
    assert not kinds & {"HorizontalPodAutoscaler", "ScaledObject", "GRPCRoute", "PodMonitor", "Job", "Secret"}, kinds
    assert sum(item["kind"] == "PodDisruptionBudget" for item in objects) == 4


def secure(objects):
    decoder = container(objects, "Deployment/e2llm-decoder")
    names = {variable["name"]: variable.get("value") for variable in decoder["env"]}
    assert names["E2LLM_TLS_CLIENT_CA"] == "/etc/e2llm/tls/ca.crt" and names["E2LLM_TOKENS"] and names["E2LLM_TOKEN_FILE"], names
    assert "--encoder-url=dns+https:///e2llm-encoder-headless:7700" in decoder["args"], decoder["args"]
    assert "--index-url=https://e2llm-index-0.e2llm-index-headless:7700" in decoder["args"], decoder["args"]
    assert "--allow-unauthenticated" not in decoder["args"]
    assert decoder["image"].endswith("@sha256:" + "0123456789abcdef" * 4), decoder["image"]
    volumes = find(objects, "StatefulSet/e2llm-index")["spec"]["template"]["spec"]["volumes"]
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert secrets == {"tls": "tls-index", "tokens": "tokens"}, secrets
    assert len(find(objects, "GRPCRoute/e2llm")["spec"]["rules"]) == 4
    assert not [item for item in objects if item["kind"] == "Secret"]


def gpu(objects):
    decoder, encoder = container(objects, "Deployment/e2llm-decoder"), container(objects, "Deployment/e2llm-encoder")
    spec = find(objects, "Deployment/e2llm-decoder")["spec"]["template"]["spec"]
    assert decoder["resources"]["limits"]["nvidia.com/gpu"] == 1 and "nvidia.com/gpu" not in encoder["resources"]["limits"]
    assert "nvidia.com/gpu" not in spec["initContainers"][0]["resources"]["limits"]
    assert "--device=cuda:0" in decoder["args"] and "--device=cpu" in encoder["args"]
    assert decoder["image"].endswith("-cuda") and not encoder["image"].endswith("-cuda")
    assert spec["nodeSelector"] == {"pool": "models", "cloud.google.com/gke-accelerator": "nvidia-l4"}, spec["nodeSelector"]
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["models", "nvidia.com/gpu"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["initContainers"][0]["args"] == ["models", "pull", "--from-store", "llama"]
    account = find(objects, "ServiceAccount/e2llm-decoder")
    assert account["metadata"]["annotations"] and account["automountServiceAccountToken"] is False


def keda(objects):
    scaled = find(objects, "ScaledObject/e2llm-encoder")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 50)
    trigger = scaled["triggers"][0]
    query = f'sum(max by (stage, state) (e2llm_tasks{{namespace="{NAMESPACE}", stage=~"encode",state=~"queued|running"}}))'
    assert trigger["metadata"]["query"] == query, trigger["metadata"]["query"]
    assert trigger["metadata"]["threshold"] == "4" and trigger["authenticationRef"] == {"name": "prometheus"}
    assert find(objects, "HorizontalPodAutoscaler/e2llm-decoder")["spec"]["minReplicas"] == 2
    spec = find(objects, "Deployment/e2llm-decoder")["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in spec["containers"][0]["volumeMounts"]}
    assert "initContainers" not in spec and mounts["/var/cache/e2llm"] and not mounts["/var/cache/e2llm/soft-prompts"], mounts
    assert find(objects, "PrometheusRule/e2llm")["spec"]["groups"][0]["rules"]
    assert find(objects, "PodMonitor/e2llm")["metadata"]["labels"]["release"] == "prometheus"
    assert '"e2llm"' in find(objects, "ConfigMap/e2llm-dashboard")["data"]["e2llm.json"]


def bulk(objects):
    submit = container(objects, "Job/e2llm-bulk-submit-reports-2024")
    assert submit["args"][:3] == ["summarize", "s3://corpus/2024/", "/input/more.jsonl"], submit["args"]
    assert "--job=reports-2024" in submit["args"] and submit["args"][-3:-1] == ["--max-tokens", "200"], submit["args"]
    assert submit["args"][-1] == (
        "--server=encoder=https://e2llm-encoder:7700,decoder=https://e2llm-decoder:7700,"
        "coordinator=https://e2llm-coordinator:7700,index=https://e2llm-index-0.e2llm-index-headless:7700"
    ), submit["args"]
    collector = find(objects, "CronJob/e2llm-gc")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert collector["containers"][0]["args"][:2] == ["gc", "--grace=24h"]
    keys = [volume["secret"]["items"][0]["key"] for volume in collector["volumes"] if volume["name"] == "token"]
    assert keys == ["gc"], keys
    for role, workers in (("encoder", 4), ("decoder", 8)):
        job = find(objects, f"Job/e2llm-bulk-{role}-reports-2024")["spec"]
        assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", workers, workers)
        spec = job["template"]["spec"]
        assert spec["restartPolicy"] == "Never" and "--until-job=reports-2024" in spec["containers"][0]["args"]
        # Other roles reach them, and none of the fleet's own budget or autoscaler counts them.
        selector = find(objects, f"Service/e2llm-{role}-headless")["spec"]["selector"]
        assert matches(selector, job["template"]["metadata"]["labels"])


def bundles(objects):
    small, large = container(objects, "Deployment/e2llm-decoder-small"), container(objects, "Deployment/e2llm-decoder-large")
    assert "--bundle=minilm-smollm2" in small["args"] and "--bundle=large-llama" in large["args"]
    assert "--encoder-url=dns:///e2llm-encoder-large-headless:7700" in large["args"], large["args"]
    assert large["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "8Gi", "nvidia.com/gpu": 1}
    assert find(objects, "Deployment/e2llm-decoder-small")["spec"]["replicas"] == 3
    for bundle in ("small", "large"):
        service = find(objects, f"Service/e2llm-decoder-{bundle}")
        assert service["spec"]["selector"]["e2llm.dev/bundle"] == bundle
        route = find(objects, f"GRPCRoute/e2llm-{bundle}")["spec"]
        assert route["hostnames"] == [f"{bundle}.example.com"]
        backends = [rule["backendRefs"][0]["name"] for rule in route["rules"]]
        assert backends == [f"e2llm-encoder-{bundle}", f"e2llm-decoder-{bundle}", "e2llm-index", "e2llm-coordinator"], backends
    find(objects, "ScaledObject/e2llm-decoder-large")
    labels = find(objects, "Job/e2llm-bulk-decoder-run")["spec"]["template"]["metadata"]["labels"]
    assert labels["e2llm.dev/bundle"] == "large", labels


def shards(objects):
    urls = ",".join(f"http://documents-index-{shard}.documents-index-headless:7700" for shard in range(3))
    assert f"--index-url={urls}" in container(objects, "Deployment/documents-encoder")["args"]
    index = find(objects, "StatefulSet/documents-index")["spec"]
    shard = [variable for variable in index["template"]["spec"]["containers"][0]["env"] if variable["name"] == "E2LLM_SHARD"]
    assert shard[0]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert index["replicas"] == 3 and "--shards=3" in index["template"]["spec"]["containers"][0]["args"]
    assert "Service/documents-index" not in {name_of(item) for item in objects}
    assert len(find(objects, "GRPCRoute/documents")["spec"]["rules"]) == 3
    pod = find(objects, "Deployment/documents-encoder")["spec"]["template"]
    assert "runAsUser" not in pod["spec"]["securityContext"] and pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is True
    assert pod["metadata"]["labels"]["azure.workload.identity/use"] == "true"


# By the name of the file of values.
PURPOSES = {check.__name__: check for check in (minimal, secure, gpu, keda, bulk, bundles, shards)}
